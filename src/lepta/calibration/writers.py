"""Models that write answers to conversations: in this process, or behind an OpenAI-compatible server (also vLLM's)."""

import math
import random
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lepta.core.errors import LeptaError
from lepta.inference.chat import Message, chat_prompt
from lepta.inference.client import AT_ONCE, SECONDS, Client, Refused, field
from lepta.inference.generation import Continuation, generate_batch
from lepta.inference.scoring import Question, Scorer, branches_of, token_ids


@dataclass(frozen=True)
class Sampling:
    """How to write.

    Attributes
    ----------
    samples, max_tokens : int
    temperature : float
        0: greedily.
    seed : int
    """

    max_tokens: int
    samples: int = 1
    temperature: float = 0.0
    seed: int = 1


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes
    ----------
    text : str
    tokens : int
    whole : bool
        Whether it came to its end before the longest allowed.
    """

    text: str
    tokens: int
    whole: bool


@dataclass(frozen=True)
class Refusal:
    """Why a conversation got no answer."""

    reason: str


@dataclass(frozen=True)
class Form:
    """A reply that is a JSON object of whole numbers.

    Attributes
    ----------
    names : tuple of str
    values : tuple of int
        That each of them may have.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]

    @property
    def response_format(self) -> dict[str, Any]:
        """The same for a server that writes replies by a schema."""
        schema = {
            "type": "object",
            "properties": {name: {"type": "integer", "enum": list(self.values)} for name in self.names},
            "required": list(self.names),
            "additionalProperties": False,
        }
        return {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}}


class Stopped(LeptaError):
    """A writer that cannot go on, and what it has written of what it was last given; None for the rest."""

    def __init__(self, message: str, done: "list[list[Answer] | Refusal | None]") -> None:
        super().__init__(message)
        self.done = done


class Writer(Protocol):
    """A model, however it is run."""

    at_once: int  # conversations that it is best given together
    keeps_form: bool | None  # whether replies have the form that is asked for; None: that cannot be known

    def write(
        self, conversations: Sequence[Sequence[Message]], sampling: Sampling, form: Form | None = None
    ) -> list[list[Answer] | Refusal]:
        """Answer each conversation, in the order given; in a form if that can be had."""


class LocalWriter:
    """A model of transformers.

    Parameters
    ----------
    model, tokenizer : transformers causal LM and its tokenizer with a chat template
    context : int
        Most tokens of prompt and answer; less if the model was made for less.
    batch : int
        Conversations at once.
    """

    keeps_form: bool | None = True

    def __init__(self, model: Any, tokenizer: Any, context: int, batch: int) -> None:
        if not tokenizer.chat_template:
            raise LeptaError("the model that answers has no chat template; give an instruct model")
        own = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._model, self._tokenizer, self._context = model, tokenizer, min(context, own or context)
        self._batch, self.at_once = batch, batch * 16  # many, so that those of a batch are about as long

    def write(
        self, conversations: Sequence[Sequence[Message]], sampling: Sampling, form: Form | None = None
    ) -> list[list[Answer] | Refusal]:
        """Answer in batches padded on the left, the longest first; a form is filled in with its likeliest values."""
        result: list[list[Answer] | Refusal] = [Refusal("")] * len(conversations)
        asked: list[tuple[int, str, list[int]]] = []
        for number, messages in enumerate(conversations):
            try:
                prompt = chat_prompt(self._tokenizer, messages)
            except LeptaError as error:
                result[number] = Refusal(str(error))
                continue
            ids = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
            if len(ids) + sampling.max_tokens > self._context:
                result[number] = Refusal(f"prompt: {len(ids)} tokens, too long for a context of {self._context}")
            else:
                asked.append((number, prompt, ids))
        asked.sort(key=lambda item: -len(item[2]))
        size = len(asked) if form else self._batch  # what is weighed is laid out in batches elsewhere
        for start in range(0, len(asked), max(1, size)):
            batch = asked[start : start + size]
            found = self._filled(batch, form, sampling) if form else self._answers([ids for *_, ids in batch], sampling)
            for (number, *_), answers in zip(batch, found, strict=True):
                result[number] = answers
        return result

    def _filled(self, asked: list[tuple[int, str, list[int]]], form: Form, sampling: Sampling) -> list[list[Answer]]:
        """Replies that have the form: its text is given, and of each value the model says how likely it is."""
        scorer = Scorer(self._model)
        prompts = [prompt for _, prompt, _ in asked]
        scorer.share(token_ids(self._tokenizer, prompts))
        values = [str(value) for value in form.values]
        draws = [random.Random(f"{sampling.seed} {prompt}") for prompt in prompts]  # the same when a run goes on
        replies = [""] * len(prompts)
        for name in form.names:
            replies = [f'{reply + ", " if reply else "{"}"{name}": ' for reply in replies]
            questions = [Question(a + b, tuple(values)) for a, b in zip(prompts, replies, strict=True)]
            weighed = scorer.choose([branches_of(self._tokenizer, question, together=True) for question in questions])
            chosen = (_drawn(values, logs, sampling.temperature, by) for logs, by in zip(weighed, draws, strict=True))
            replies = [reply + value for reply, value in zip(replies, chosen, strict=True)]
        texts = [reply + "}" for reply in replies]
        lengths = map(len, token_ids(self._tokenizer, texts))
        return [[Answer(text, length, True)] * sampling.samples for text, length in zip(texts, lengths, strict=True)]

    def _answers(self, prompts: list[list[int]], sampling: Sampling) -> list[list[Answer]]:
        torch.manual_seed(sampling.seed + hash(tuple(prompts[0])) % (1 << 30))  # the same when a run goes on
        written = generate_batch(
            self._model, self._tokenizer, prompts, sampling.max_tokens, sampling.samples, sampling.temperature
        )
        answers = [self._answer(one) for one in written]
        return [answers[n : n + sampling.samples] for n in range(0, len(answers), sampling.samples)]

    def _answer(self, written: Continuation) -> Answer:
        text = self._tokenizer.decode(written.ids, skip_special_tokens=True).strip()
        return Answer(text, len(written.ids), written.ended)


def _drawn(values: Sequence[str], logs: Sequence[float], temperature: float, draw: random.Random) -> str:
    """The likeliest value, or one drawn by how likely they are."""
    highest = max(logs)
    if not temperature:
        return values[logs.index(highest)]
    return draw.choices(values, [math.exp((log - highest) / temperature) for log in logs])[0]


class ServerWriter:
    """A model behind an OpenAI-compatible server, asked through its chat completions.

    Parameters
    ----------
    url, model, wait, seconds
        See `Client`.
    """

    at_once = AT_ONCE * 4

    def __init__(self, url: str, model: str, wait: float = 1.0, seconds: float = SECONDS) -> None:
        self._client = Client(url, model, wait, seconds)
        self.keeps_form: bool | None = None  # some take a form and take no notice of it

    def write(
        self, conversations: Sequence[Sequence[Message]], sampling: Sampling, form: Form | None = None
    ) -> list[list[Answer] | Refusal]:
        """Answer several at a time; a form goes along until a request is taken only without it.

        Raises
        ------
        Stopped
            If the server is not there, or goes on failing.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            calls = [pool.submit(self._write, messages, sampling, form) for messages in conversations]
            wait(calls, return_when=FIRST_EXCEPTION)
            for call in calls:
                call.cancel()  # what has not begun when one failed
        errors = [call.exception() for call in calls if not call.cancelled()]
        if failed := next((error for error in errors if error), None):
            raise Stopped(
                str(failed), [None if call.cancelled() or call.exception() else call.result() for call in calls]
            ) from failed
        return [call.result() for call in calls]

    def _write(self, messages: Sequence[Message], sampling: Sampling, form: Form | None) -> list[Answer] | Refusal:
        answers = []
        for number in range(sampling.samples):
            request = {
                "messages": list(messages),
                "max_tokens": sampling.max_tokens,
                "temperature": sampling.temperature,
                "seed": sampling.seed + number,
            }
            formed = form is not None and self.keeps_form is not False
            found = self._ask(request | ({"response_format": form.response_format} if form and formed else {}))
            if formed and isinstance(found, Refusal):
                found = self._ask(request)
                if not isinstance(found, Refusal):
                    self.keeps_form = False
            if isinstance(found, Refusal):
                return found
            answers.append(found)
        return answers

    def _ask(self, request: dict[str, Any]) -> Answer | Refusal:
        try:
            reply = self._client.post("chat/completions", request)
        except Refused as error:
            return Refusal(error.reason)
        text, reason = (field(reply, "choices", 0, *path) for path in (("message", "content"), ("finish_reason",)))
        tokens = int((reply.get("usage") or {}).get("completion_tokens") or 0)
        return Answer((text or "").strip(), tokens, reason == "stop")
