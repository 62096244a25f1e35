"""A model behind an OpenAI-compatible server (vLLM, llama.cpp) takes the benchmark, by its completions or its chat.

Completions: prompts go as token ids, made here by the model's own tokenizer, so the model sees what it would see in
this process. Chat: messages go, and only texts come back. A chat server starts the assistant's turn itself, so the
answer's lead-in cannot be given, and shows no probabilities of given texts. Labels are therefore written by the model
and read from its text; a text without one is a wrong answer. Such results are another kind of measurement (`labels:
generated`), which never goes on in, or is compared as, one of the other kinds.
"""

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.darumeru.backend import USUAL, Asking, Backend, Completion, GenerationRequest, Question
from lepta.darumeru.settings import Api
from lepta.darumeru.tasks import Message
from lepta.inference.client import Client, at_once, field
from lepta.inference.scoring import Branch
from lepta.inference.thinking import Block, needed_block, think
from lepta.models.load import load_tokenizer
from lepta.vocabulary.source import open_tokenizer

TOP = 20  # tokens whose log-probabilities are asked for
LABEL_TOKENS = 32  # for a label, and the words that a model may write before it
CHOSEN, LEFT = 0.0, -100.0  # log-probabilities that stand for the label that was written, and the others
ALIKE = {"A": "[AА]", "B": "[BВ]", "C": "[CС]"}  # Latin and Cyrillic letters that look the same
ENDS = r"(?=[^\S\n]*(?:[^\w\s]|\n|$))"  # a sign or the end of the line comes next
ANSWER = r"(?i:\bответ|\banswer)\W+(?i:(?:is|это)\W+)?"


class ServerBackend(Backend):
    """A model asked by completions, and its tokenizer here."""

    def __init__(self, client: Client, tokenizer: Any, how: Asking = USUAL) -> None:
        super().__init__(tokenizer, {"backend": "server", "model": client.name}, how)
        self._client = client

    def think(self, prompts: Sequence[str]) -> list[str]:
        """Prompts with the model's thinking in them, if it is to think: written for them before they are asked."""
        if not self.thinking:
            return list(prompts)
        block = needed_block(self._tokenizer.chat_template)
        # vLLM leaves special tokens out of texts, and finds no stop among them, unless it is told otherwise.
        options = {"max_tokens": self.thinking, "stop": [block.end], "skip_special_tokens": False}

        def write(begun: list[str]) -> list[str]:
            return at_once(partial(self._thinking, block, options), self.ids(begun))

        return think(prompts, block, write).prompts

    def _thinking(self, block: Block, options: dict[str, Any], ids: Sequence[int]) -> str:
        choice = self._complete(ids, **options)
        text = field(choice, "text", kind=str)
        if choice.get("finish_reason") == "stop":
            text += block.end
        return text

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
            return tuple(sum(self._echo(branch.ids)[start:]) for branch in branches)
        choice = self._complete(branches[0].ids[:start], max_tokens=1, logprobs=TOP)
        top = field(choice, "logprobs", "top_logprobs", 0, kind=dict)
        absent = min(top.values(), default=0.0) - 1
        found = [self._value(top, branch.ids[start], absent) for branch in branches]
        if set(found) == {absent}:
            labels = [self._tokenizer.decode([branch.ids[start]]) for branch in branches]
            raise LeptaError(
                f"{self._client.url}: none of {', '.join(labels)} is among the {len(top)} most likely tokens"
            )
        return tuple(found)

    def _value(self, top: Mapping[str, float], token: int, absent: float) -> float:
        """Log-probability of a token among the most likely ones, which a server calls by their texts."""
        raw, text = self._tokenizer.convert_ids_to_tokens(token), self._tokenizer.decode([token])
        names = [text, raw]
        if raw.startswith("▁"):  # decoding takes the space of a SentencePiece token away; few servers do
            shown = any(name.startswith((" ", "▁")) for name in top)
            names = [f" {text.lstrip()}", raw] if shown else [text]
        return next((top[name] for name in names if name in top), absent)

    def _generate(self, request: GenerationRequest, ids: Sequence[int], max_tokens: int) -> Completion:
        options = {"prompt": list(ids), "max_tokens": max_tokens}
        answer = self._post(options | ({"stop": list(request.stops)} if request.stops else {}))
        if request.stops and not field(answer, "choices", 0, "text", kind=str).strip():
            answer = self._post(options)  # a stop with nothing before it ends an answer there, but not here
        choice = field(answer, "choices", 0, kind=dict)
        whole = field(choice, "text", kind=str)
        text = request.cut(whole)
        if text != whole:
            return Completion(text.strip(), len(self.tokens(text)))
        emitted = field(answer, "usage", "completion_tokens", kind=int)
        ended = field(choice, "finish_reason") == "stop"  # by a token that is not part of the text, or by a stop
        return Completion(text.strip(), emitted - ended)

    def _echo(self, ids: Sequence[int]) -> list[float]:
        """Log-probability of each id of a text; of the first one, which nothing stands before, it is not a number."""
        choice = self._complete(ids, max_tokens=1, logprobs=1, echo=True)
        values = field(choice, "logprobs", "token_logprobs", kind=list)
        if len(values) != len(ids) + 1:
            raise LeptaError(
                f"{self._client.url}: {len(values)} log-probabilities for a prompt of {len(ids)} tokens and a new one; "
                "this task needs a server that echoes prompts with log-probabilities (vLLM does)"
            )
        return [math.nan if value is None else value for value in values[:-1]]

    def _complete(self, ids: Sequence[int], **options: Any) -> dict[str, Any]:
        return field(self._post({"prompt": list(ids), **options}), "choices", 0, kind=dict)

    def _post(self, options: dict[str, Any]) -> dict[str, Any]:
        return self._client.post("completions", options)


class ChatBackend(Backend):
    """A model asked by chat; its tokenizer here counts tokens by its chat template."""

    def __init__(self, client: Client, tokenizer: Any, how: Asking = USUAL) -> None:
        facts = {"backend": "chat server", "labels": "generated", "model": client.name}
        super().__init__(tokenizer, facts, replace(how, chat=True))
        self._client = client

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as JSON, the lead-in of the unfinished turn apart."""
        turns, lead_in = list(messages), ""
        if turns[-1]["role"] == "assistant":
            lead_in = turns.pop()["content"]
        return json.dumps({"messages": turns, "lead_in": lead_in}, ensure_ascii=False)

    def count_tokens(self, prompt: str) -> int:
        """How many tokens the conversation has by the chat template here."""
        return super().count_tokens(super().render(json.loads(prompt)["messages"]))

    def choose(self, questions: Sequence[Question]) -> list[tuple[float, ...]]:
        """0 for the label that the model writes, -100 for the others; no numbers if it writes none of them."""
        written = self.generate([GenerationRequest(question.prompt) for question in questions], LABEL_TOKENS)
        pairs = zip(questions, written, strict=True)
        return [_chosen(list(map(str.strip, question.continuations)), answer.text) for question, answer in pairs]

    def generate(self, requests: Sequence[GenerationRequest], max_tokens: int) -> list[Completion]:
        """Write a turn greedily; a lead-in that the model repeats is cut off."""
        return at_once(lambda request: self._completion(request, max_tokens), requests)

    def sentence_logprobs(self, question: Question) -> tuple[float, ...]:
        """Refused: a chat server does not tell how likely a given text is."""
        raise LeptaError(
            "summary_extractive: a chat server does not tell how likely given sentences are; name the other tasks with "
            "--tasks, or use --server-api completions"
        )

    def _completion(self, request: GenerationRequest, max_tokens: int) -> Completion:
        prompt = json.loads(request.prompt)
        reply = self._client.chat(prompt["messages"], max_tokens, self.thinking)
        text = reply.text.removeprefix(prompt["lead_in"])
        cut = request.cut(text)
        if cut != text or reply.thinking:  # the server counts more tokens than those of the text
            return Completion(cut.strip(), len(self.tokens(cut)))
        return Completion(text.strip(), reply.tokens - reply.ended)  # ended by a token that is not part of the text


def _chosen(labels: Sequence[str], text: str) -> tuple[float, ...]:
    """The label that a text begins with or calls its answer, before a sign or line end; else the first by itself.

    Letters and digits count as they are, words in any case. Cyrillic letters that look like a label stand for it only
    in the first two places: elsewhere they are words.
    """
    exact = [f"(?i:{label})" if len(label) > 1 else label for label in map(re.escape, labels)]
    alike = list(map(ALIKE.get, labels, exact))
    for before, ways, after in ((r"^\W*", alike, ENDS), (ANSWER, alike, ENDS), (r"(?<!\w)", exact, r"(?!\w)")):
        groups = "|".join(f"({way})" for way in ways)
        if match := re.search(f"{before}(?:{groups}){after}", text):
            chosen = [LEFT] * len(labels)
            chosen[(match.lastindex or 1) - 1] = CHOSEN
            return tuple(chosen)
    return ()


@contextmanager
def opened_server(
    url: str, model: str, api: Api, source: str | Path, how: Asking
) -> Iterator[ServerBackend | ChatBackend]:
    """A server's model as a backend, with the tokenizer of any model source."""
    with tempfile.TemporaryDirectory(prefix="lepta-") as place:
        open_tokenizer(source).save(Path(place))
        tokenizer = load_tokenizer(Path(place))
    client = Client(url, model)
    yield ChatBackend(client, tokenizer, how) if api == "chat" else ServerBackend(client, tokenizer, how)
