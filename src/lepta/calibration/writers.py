"""Models that write answers to conversations: in this process, or behind an OpenAI-compatible server (also vLLM's)."""

import itertools
import math
import random
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lepta.core.errors import LeptaError
from lepta.inference.chat import Message, chat_prompt
from lepta.inference.client import AT_ONCE, SECONDS, Client, Refused
from lepta.inference.generation import generate_batch
from lepta.inference.scoring import Question, Scorer, branches_of, token_ids
from lepta.inference.thinking import Thoughts, split_thinking, think_here


@dataclass(frozen=True)
class Sampling:
    """How to write; temperature 0 is greedy, `thinking` is the most tokens of thinking before an answer."""

    max_tokens: int
    samples: int = 1
    temperature: float = 0.0
    seed: int = 1
    thinking: int = 0


@dataclass(frozen=True)
class Answer:
    """What a model wrote, and whether it came to its end before the longest allowed.

    `thinking` is what it thought before; "" if nothing, or if that had to be ended.
    """

    text: str
    tokens: int
    whole: bool
    thinking: str = ""


@dataclass(frozen=True)
class Refusal:
    """Why a conversation got no answer."""

    reason: str


Written = list[Answer] | Refusal  # of one conversation


@dataclass(frozen=True)
class Form:
    """A reply that is a JSON object of whole numbers: its names, and the values that each may have."""

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

    def __init__(self, message: str, done: list[Written | None]) -> None:
        super().__init__(message)
        self.done = done


class Writer(Protocol):
    """A model, however it is run."""

    at_once: int  # conversations that it is best given together
    keeps_form: bool | None  # whether replies have the form that is asked for; None: that cannot be known

    def write(
        self, conversations: Sequence[Sequence[Message]], sampling: Sampling, form: Form | None = None
    ) -> list[Written]:
        """Answer each conversation, in the order given; in a form if that can be had."""


class LocalWriter:
    """A model of transformers with a chat template, for `batch` conversations at once.

    Prompt and answer have at most `context` tokens, and no more than the model was made for.
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
    ) -> list[Written]:
        """Answer in batches padded on the left, the longest first; a form is filled in with its likeliest values."""
        result: list[Written] = [Refusal("")] * len(conversations)
        asked: list[tuple[int, str, int]] = []  # number, prompt and its length
        for number, messages in enumerate(conversations):
            try:
                prompt = chat_prompt(self._tokenizer, messages, sampling.thinking > 0)
            except LeptaError as error:
                result[number] = Refusal(str(error))
                continue
            length = len(token_ids(self._tokenizer, [prompt])[0])
            answer = sampling.thinking + sampling.max_tokens
            if length + answer > self._context:
                result[number] = Refusal(
                    f"prompt: {length} tokens, with {answer} for the answer too long for a context of {self._context}"
                )
            else:
                asked.append((number, prompt, length))
        asked.sort(key=lambda item: -item[2])
        size = max(1, len(asked)) if form else self._batch  # the scorer of forms makes its own batches
        for start in range(0, len(asked), size):
            batch = asked[start : start + size]
            prompts = [prompt for _, prompt, _ in batch]
            found = self._filled(prompts, form, sampling) if form else self._answers(prompts, sampling)
            for (number, *_), answers in zip(batch, found, strict=True):
                result[number] = answers
        return result

    def _filled(self, prompts: list[str], form: Form, sampling: Sampling) -> list[list[Answer]]:
        """Replies that have the form: its text is given, and of each value the model says how likely it is."""
        prompts = self._thoughts(prompts, sampling).prompts
        scorer = Scorer(self._model)
        scorer.share(token_ids(self._tokenizer, prompts))
        values = tuple(map(str, form.values))
        draws = [random.Random(f"{sampling.seed} {prompt}") for prompt in prompts]  # the same when a run is resumed
        replies = ["{"] * len(prompts)
        for number, name in enumerate(form.names):
            lead_in = f'{", " if number else ""}"{name}": '
            asked = []
            for prompt, reply in zip(prompts, replies, strict=True):
                question = Question(prompt + reply + lead_in, values)
                asked.append(branches_of(self._tokenizer, question, together=True))
            weighed = scorer.choose(asked)
            for place, (logs, draw) in enumerate(zip(weighed, draws, strict=True)):
                replies[place] += lead_in + _drawn(values, logs, sampling.temperature, draw)
        texts = [reply + "}" for reply in replies]
        lengths = map(len, token_ids(self._tokenizer, texts))
        return [[Answer(text, length, True)] * sampling.samples for text, length in zip(texts, lengths, strict=True)]

    def _answers(self, prompts: list[str], sampling: Sampling) -> list[list[Answer]]:
        first = token_ids(self._tokenizer, prompts[:1])[0]
        torch.manual_seed(sampling.seed + hash(first) % (1 << 30))  # the same when a run goes on
        each, samples = 1, sampling.samples
        if sampling.thinking:  # samples each think for themselves
            each, samples = samples, 1
        repeated = itertools.chain.from_iterable(itertools.repeat(prompt, each) for prompt in prompts)
        thoughts = self._thoughts(list(repeated), sampling)
        ids = token_ids(self._tokenizer, thoughts.prompts)
        written = generate_batch(self._model, self._tokenizer, ids, sampling.max_tokens, samples, sampling.temperature)
        answers = []
        for number, one in enumerate(written):
            _, text = split_thinking(self._tokenizer.decode(one.ids, skip_special_tokens=True))
            thinking = thoughts.thinking[number // samples]
            answers.append(Answer(text.strip(), len(one.ids), one.ended, thinking.strip()))
        return [answers[n : n + sampling.samples] for n in range(0, len(answers), sampling.samples)]

    def _thoughts(self, prompts: list[str], sampling: Sampling) -> Thoughts:
        if not sampling.thinking:
            return Thoughts(prompts, [""] * len(prompts))
        budget, temperature = sampling.thinking, sampling.temperature
        return think_here(self._model, self._tokenizer, prompts, budget, self._batch, temperature)


def _drawn(values: Sequence[str], logs: Sequence[float], temperature: float, draw: random.Random) -> str:
    """The likeliest value, or one drawn by how likely they are."""
    highest = max(logs)
    if not temperature:
        return values[logs.index(highest)]
    return draw.choices(values, [math.exp((log - highest) / temperature) for log in logs])[0]


class ServerWriter:
    """A model behind an OpenAI-compatible server, asked through its chat completions; arguments as for `Client`."""

    at_once = AT_ONCE * 4

    def __init__(self, url: str, model: str, wait: float = 1.0, seconds: float = SECONDS) -> None:
        self._client = Client(url, model, wait, seconds)
        self.keeps_form: bool | None = None  # some take a form and take no notice of it

    def write(
        self, conversations: Sequence[Sequence[Message]], sampling: Sampling, form: Form | None = None
    ) -> list[Written]:
        """Answer several at a time; a form is sent along until a request is taken only without it.

        Stopped if the server is not there, or goes on failing.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            calls = [pool.submit(self._write, messages, sampling, form) for messages in conversations]
            wait(calls, return_when=FIRST_EXCEPTION)
            pool.shutdown(cancel_futures=True)  # what has not begun when one failed
        failed = [error for call in calls if not call.cancelled() and (error := call.exception())]
        if not failed:
            return [call.result() for call in calls]
        done = [None if call.cancelled() or call.exception() else call.result() for call in calls]
        raise Stopped(str(failed[0]), done) from failed[0]

    def _write(self, messages: Sequence[Message], sampling: Sampling, form: Form | None) -> Written:
        answers = []
        for number in range(sampling.samples):
            request: dict[str, Any] = {
                "messages": messages,
                "max_tokens": sampling.max_tokens,
                "thinking": sampling.thinking,
                "temperature": sampling.temperature,
                "seed": sampling.seed + number,
            }
            formed = {}
            if form is not None and self.keeps_form is not False:
                formed = {"response_format": form.response_format}
            found = self._ask(request | formed)
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
            reply = self._client.chat(**request)
        except Refused as error:
            return Refusal(error.reason)
        return Answer(reply.text, reply.tokens, reply.ended, reply.thinking.strip())
