"""Models that write answers to conversations: in this process, or behind an OpenAI-compatible server (also vLLM's)."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lepta.darumeru.turns import render_chat
from lepta.errors import LeptaError
from lepta.training.conversations import Message

TRIES = 5
AGAIN = {408, 429, 500, 502, 503, 504}  # answers of a server that may have a better one later
REFUSED = {400, 413, 422}  # answers to a request that this server will never take
AT_ONCE = 8  # requests
SECONDS = 600  # that an answer may take
KEY = "OPENAI_API_KEY"


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


class Writer(Protocol):
    """A model, however it is run."""

    at_once: int  # conversations that it is best given together

    def write(self, conversations: Sequence[Sequence[Message]], sampling: Sampling) -> list[list[Answer] | Refusal]:
        """Answer each conversation, in the order given."""


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

    def __init__(self, model: Any, tokenizer: Any, context: int, batch: int) -> None:
        if not tokenizer.chat_template:
            raise LeptaError("the model that answers has no chat template; give an instruct model")
        own = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._model, self._tokenizer, self._context = model, tokenizer, min(context, own or context)
        self._batch, self.at_once = batch, batch * 16  # many, so that those of a batch are about as long
        stop = model.generation_config.eos_token_id
        ends = [*(stop if isinstance(stop, list) else [stop]), tokenizer.eos_token_id]
        self._ends = sorted({end for end in ends if end is not None})

    def write(self, conversations: Sequence[Sequence[Message]], sampling: Sampling) -> list[list[Answer] | Refusal]:
        """Answer in batches padded on the left, the longest first."""
        result: list[list[Answer] | Refusal] = [Refusal("")] * len(conversations)
        asked: list[tuple[int, list[int]]] = []
        for number, messages in enumerate(conversations):
            try:
                ids = self._tokenizer(render_chat(self._tokenizer, messages), add_special_tokens=False)["input_ids"]
            except LeptaError as error:
                result[number] = Refusal(str(error))
                continue
            if len(ids) + sampling.max_tokens > self._context:
                result[number] = Refusal(f"prompt: {len(ids)} tokens, too long for a context of {self._context}")
            else:
                asked.append((number, ids))
        asked.sort(key=lambda item: -len(item[1]))
        for start in range(0, len(asked), self._batch):
            batch = asked[start : start + self._batch]
            for (number, _), answers in zip(batch, self._answers([ids for _, ids in batch], sampling), strict=True):
                result[number] = answers
        return result

    @torch.inference_mode()
    def _answers(self, prompts: list[list[int]], sampling: Sampling) -> list[list[Answer]]:
        from transformers import GenerationConfig

        pad = self._tokenizer.pad_token_id or 0
        width = max(map(len, prompts))
        inputs = torch.tensor([[pad] * (width - len(row)) + row for row in prompts], device=self._model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=self._model.device)
        sampled = sampling.temperature > 0
        torch.manual_seed(sampling.seed + hash(tuple(prompts[0])) % (1 << 30))  # the same when a run goes on
        output = self._model.generate(
            inputs,
            attention_mask=mask,
            # Settings of its own: those in a model's files may punish repetition.
            generation_config=GenerationConfig(
                max_new_tokens=sampling.max_tokens,
                do_sample=sampled,
                num_return_sequences=sampling.samples,
                repetition_penalty=1.0,
                pad_token_id=pad,
                eos_token_id=self._ends or None,
                **({"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0} if sampled else {}),
            ),
        )
        answers = [self._answer(row) for row in output[:, width:].tolist()]
        return [answers[n : n + sampling.samples] for n in range(0, len(answers), sampling.samples)]

    def _answer(self, row: list[int]) -> Answer:
        length = next((n for n, token in enumerate(row) if token in self._ends), None)
        ids = row[:length]
        return Answer(self._tokenizer.decode(ids, skip_special_tokens=True).strip(), len(ids), length is not None)


class ServerWriter:
    """A model behind an OpenAI-compatible server, asked through its chat completions.

    The key in the environment variable OPENAI_API_KEY is sent along if there is one.

    Parameters
    ----------
    url : str
        Up to and with `/v1`.
    model : str
        Its name on the server.
    wait : float
        Seconds before a failed request is sent again, doubled each time.
    seconds : float
        That an answer may take.
    """

    at_once = AT_ONCE * 4

    def __init__(self, url: str, model: str, wait: float = 1.0, seconds: float = SECONDS) -> None:
        self._url, self._model, self._wait, self._seconds = url.rstrip("/"), model, wait, seconds

    def write(self, conversations: Sequence[Sequence[Message]], sampling: Sampling) -> list[list[Answer] | Refusal]:
        """Answer several at a time.

        Raises
        ------
        LeptaError
            If the server is not there, or goes on failing.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda messages: self._write(messages, sampling), conversations))

    def _write(self, messages: Sequence[Message], sampling: Sampling) -> list[Answer] | Refusal:
        answers = []
        for number in range(sampling.samples):
            found = self._ask(
                {
                    "model": self._model,
                    "messages": list(messages),
                    "max_tokens": sampling.max_tokens,
                    "temperature": sampling.temperature,
                    "seed": sampling.seed + number,
                }
            )
            if isinstance(found, Refusal):
                return found
            answers.append(found)
        return answers

    def _ask(self, request: dict[str, Any]) -> Answer | Refusal:
        address, body = f"{self._url}/chat/completions", json.dumps(request).encode()
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        for tried in range(1, TRIES + 1):
            try:
                call = urllib.request.Request(address, body, headers)
                with urllib.request.urlopen(call, timeout=self._seconds) as response:
                    return _answer_in(json.load(response))
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {error.read()[:200].decode(errors='replace')}"
                if error.code in REFUSED:
                    return Refusal(reason)
                if error.code not in AGAIN:
                    break
            except (TimeoutError, OSError, json.JSONDecodeError, _NoAnswer) as error:
                reason = str(error) or type(error).__name__
            if tried < TRIES:
                time.sleep(self._wait * 2 ** (tried - 1))
        raise LeptaError(
            f"{address}: {reason} (tried {tried} times); see that the server runs and has {request['model']}, and give "
            "the same command again: what was answered is kept"
        )


class _NoAnswer(Exception):
    """A server's reply without what was asked for."""


def _answer_in(reply: Any) -> Answer:
    try:
        choice = reply["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
        tokens = int((reply.get("usage") or {}).get("completion_tokens") or 0)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise _NoAnswer(f"no answer in the reply ({str(reply)[:100]})") from error
    return Answer((text or "").strip(), tokens, reason == "stop")
