"""A model behind an OpenAI-compatible server (vLLM, llama.cpp) takes the benchmark, through its completions.

Prompts go as token ids, made here by the model's own tokenizer, so the model sees what it would see in this process.
"""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lepta.core.errors import LeptaError
from lepta.darumeru.backend import Backend, Completion, GenerationRequest, Question
from lepta.darumeru.chat_backend import ChatBackend
from lepta.inference.client import Client, at_once, field
from lepta.inference.scoring import Branch
from lepta.inference.thinking import Block, needed_block, think
from lepta.models.load import load_tokenizer
from lepta.vocabulary.source import open_tokenizer

TOP = 20  # tokens whose log-probabilities are asked for

Api = Literal["completions", "chat"]


class ServerBackend(Backend):
    """A model of a server, and its tokenizer here; chat is None for the chat template if there is one."""

    def __init__(
        self, client: Client, tokenizer: Any, chat: bool | None = None, context: int = 4096, thinking: int = 0
    ) -> None:
        super().__init__(tokenizer, chat, context, thinking)
        self._client = client

    @property
    def identity(self) -> Mapping[str, str | int | bool]:
        """Address and name: what weights a server has cannot be seen from here."""
        return {"backend": "server", "model": self._client.name, **self.asked_how}

    def think(self, prompts: Sequence[str]) -> list[str]:
        """Prompts with the model's thinking in them, if it is to think: written for them before they are asked."""
        if not self.thinking:
            return list(prompts)
        block = needed_block(self._tokenizer.chat_template)
        # vLLM leaves special tokens out of texts, and finds no stop among them, unless it is told otherwise.
        options = {"max_tokens": self.thinking, "stop": [block.end], "skip_special_tokens": False}

        def write(begun: list[str]) -> list[str]:
            return at_once(partial(self._thinking, block, options), self.ids(begun))

        return [thought.prompt for thought in think(prompts, block, write)]

    def _thinking(self, block: Block, options: dict[str, Any], ids: Sequence[int]) -> str:
        choice = self._complete(ids, **options)
        return str(field(choice, "text")) + (block.end if choice.get("finish_reason") == "stop" else "")

    def choose(self, questions: Sequence[Question]) -> list[tuple[float, ...]]:
        """Log-likelihood of continuations: from one new token if that tells them apart, else from the whole texts.

        A label that is not among the most likely tokens gets less than the last of those.
        """
        return at_once(self._choose, [self.branches(question, together=True) for question in questions])

    def generate(self, requests: Sequence[GenerationRequest], max_tokens: int) -> list[Completion]:
        """Continue greedily."""
        prompts = self.ids([request.prompt for request in requests])
        pairs = list(zip(requests, prompts, strict=True))
        return at_once(lambda pair: self._generate(pair[0], pair[1], max_tokens), pairs)

    def sentence_logprobs(self, question: Question) -> tuple[float, ...]:
        """Mean log-probability per token of each continuation; the server must echo prompts with log-probabilities."""
        branches = self.branches(question, together=False)
        values = at_once(lambda branch: self._echo(branch.ids)[branch.start :], branches)
        return tuple(sum(part) / len(part) for part in values)

    def _choose(self, branches: Sequence[Branch]) -> tuple[float, ...]:
        start = branches[0].start
        if any(len(branch.ids) > start + 1 for branch in branches):
            return tuple(at_once(lambda branch: sum(self._echo(branch.ids)[start:]), branches))
        choice = self._complete(branches[0].ids[:start], max_tokens=1, logprobs=TOP)
        top = field(choice, "logprobs", "top_logprobs", 0)
        labels = [self._tokenizer.decode([branch.ids[start]]) for branch in branches]
        found = [self._value(top, branch.ids[start]) for branch in branches]
        if all(value is None for value in found):
            raise LeptaError(
                f"{self._client.url}: none of {', '.join(labels)} is among the {len(top)} most likely tokens"
            )
        return tuple(min(top.values()) - 1 if value is None else value for value in found)

    def _value(self, top: Mapping[str, float], token: int) -> float | None:
        """Log-probability of a token among the most likely ones, which a server calls by their texts."""
        raw, text = self._tokenizer.convert_ids_to_tokens(token), self._tokenizer.decode([token])
        names = [text, raw]
        if raw.startswith("▁"):  # decoding takes the space of a SentencePiece token away; few servers do
            shown = any(name.startswith((" ", "▁")) for name in top)
            names = [f" {text.lstrip()}", raw] if shown else [text]
        return next((top[name] for name in names if name in top), None)

    def _generate(self, request: GenerationRequest, ids: Sequence[int], max_tokens: int) -> Completion:
        options = {"prompt": list(ids), "max_tokens": max_tokens}
        answer = self._post(options | ({"stop": list(request.stops)} if request.stops else {}))
        if request.stops and not field(answer, "choices", 0, "text").strip():
            answer = self._post(options)  # a stop with nothing before it ends an answer there, but not here
        choice = field(answer, "choices", 0)
        whole = field(choice, "text")
        text = request.cut(whole)
        if text != whole:
            return Completion(text.strip(), len(self.tokens(text)))
        emitted = field(answer, "usage", "completion_tokens")
        ended = field(choice, "finish_reason") == "stop"  # by a token that is not part of the text, or by a stop
        return Completion(text.strip(), emitted - 1 if ended else emitted)

    def _echo(self, ids: Sequence[int]) -> list[float]:
        """Log-probability of each id of a text; of the first one, which nothing stands before, it is not a number."""
        choice = self._complete(ids, max_tokens=1, logprobs=1, echo=True)
        values = field(choice, "logprobs", "token_logprobs")
        if len(values) != len(ids) + 1:
            raise LeptaError(
                f"{self._client.url}: {len(values)} log-probabilities for a prompt of {len(ids)} tokens and a new one; "
                "this task needs a server that echoes prompts with log-probabilities (vLLM does)"
            )
        return [math.nan if value is None else value for value in values[:-1]]

    def _complete(self, ids: Sequence[int], **options: Any) -> dict[str, Any]:
        return field(self._post({"prompt": list(ids), **options}), "choices", 0)

    def _post(self, options: dict[str, Any]) -> dict[str, Any]:
        return self._client.post("completions", options)


@contextmanager
def opened_server(
    url: str,
    model: str,
    api: Api,
    source: str | Path,
    chat: bool | None = None,
    context: int = 4096,
    thinking: int = 0,
) -> Iterator[ServerBackend | ChatBackend]:
    """A server's model as a backend, with the tokenizer of any model source."""
    if api == "chat" and chat is False:
        raise LeptaError("--server-api chat and --plain: a chat server writes turns itself; leave one of them out")
    with tempfile.TemporaryDirectory(prefix="lepta-") as place:
        open_tokenizer(source).save(Path(place))
        tokenizer = load_tokenizer(Path(place))
    client = Client(url, model)
    if api == "chat":
        yield ChatBackend(client, tokenizer, context, thinking)
    else:
        yield ServerBackend(client, tokenizer, chat, context, thinking)
