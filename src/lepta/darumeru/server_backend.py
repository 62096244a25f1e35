"""A model behind an OpenAI-compatible server (vLLM, llama.cpp) takes the benchmark, through its completions.

Prompts go as token ids, made here by the model's own tokenizer, so the model sees what it would see in this process.
"""

import json
import math
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lepta.darumeru.backend import Order, Question, Written
from lepta.darumeru.scoring import Branch
from lepta.darumeru.turns import Turns
from lepta.errors import LeptaError

TRIES = 5
AGAIN = {408, 429, 500, 502, 503, 504}  # answers of a server that may have a better one later
AT_ONCE = 8  # requests
TOP = 20  # tokens whose log-probabilities are asked for
SECONDS = 600  # that an answer may take


class ServerBackend(Turns):
    """A model of a server, and its tokenizer here.

    Parameters
    ----------
    url : str
        Up to and with `/v1`.
    model : str
        Its name on the server.
    tokenizer : transformers tokenizer
        The model's own.
    chat : bool or None
        Write turns by the tokenizer's chat template, else as plain text; None: if there is one.
    context : int
        Most tokens of prompt and answer.
    wait : float
        Seconds before a failed request is sent again, doubled each time.
    """

    def __init__(
        self, url: str, model: str, tokenizer: Any, chat: bool | None = None, context: int = 4096, wait: float = 1.0
    ) -> None:
        super().__init__(tokenizer, chat, context)
        self._url, self._model, self._wait = url.rstrip("/"), model, wait

    @property
    def identity(self) -> Mapping[str, str | int | bool]:
        """Address and name: what weights a server has cannot be seen from here."""
        model = f"{self._url} {self._model}"
        return {"backend": "server", "model": model, "template": self.template, "context": self.context}

    def share(self, prompts: Sequence[str]) -> None:
        """Nothing to do: servers keep prefixes themselves."""

    def choose(self, questions: Sequence[Question]) -> list[tuple[float, ...]]:
        """Log-likelihood of continuations: from one new token if that tells them apart, else from the whole texts.

        A label that is not among the most likely tokens gets less than the last of those.
        """
        return _at_once(self._choose, [self.branches(question, together=True) for question in questions])

    def generate(self, orders: Sequence[Order], max_tokens: int) -> list[Written]:
        """Go on greedily."""
        prompts = self.ids([order.prompt for order in orders])
        return _at_once(
            lambda asked: self._generate(asked[0], asked[1], max_tokens), list(zip(orders, prompts, strict=True))
        )

    def sentence_logprobs(self, question: Question) -> tuple[float, ...]:
        """Mean log-probability per token of each continuation; the server must echo prompts with log-probabilities."""
        branches = self.branches(question, together=False)
        values = _at_once(lambda branch: self._echo(branch.ids)[branch.start :], branches)
        return tuple(sum(part) / len(part) for part in values)

    def _choose(self, branches: Sequence[Branch]) -> tuple[float, ...]:
        start = branches[0].start
        if any(len(branch.ids) > start + 1 for branch in branches):
            return tuple(_at_once(lambda branch: sum(self._echo(branch.ids)[start:]), branches))
        choice = self._complete(branches[0].ids[:start], max_tokens=1, logprobs=TOP)
        top = _field(choice, "logprobs", "top_logprobs", 0)
        labels = [self._tokenizer.decode([branch.ids[start]]) for branch in branches]
        found = [_of_token(top, label) for label in labels]
        if all(value is None for value in found):
            raise LeptaError(f"{self._url}: none of {', '.join(labels)} is among the {len(top)} most likely tokens")
        return tuple(min(top.values()) - 1 if value is None else value for value in found)

    def _generate(self, order: Order, ids: Sequence[int], max_tokens: int) -> Written:
        stops = {"stop": list(order.stops)} if order.stops else {}
        answer = self._post({"prompt": list(ids), "max_tokens": max_tokens, **stops})
        choice = _field(answer, "choices", 0)
        whole = _field(choice, "text")
        text = order.cut(whole)
        if text != whole:
            return Written(text.strip(), len(self.tokens(text)))
        emitted = _field(answer, "usage", "completion_tokens")
        ended = _field(choice, "finish_reason") == "stop"  # by a token that is not part of the text, or by a stop
        return Written(text.strip(), emitted - 1 if ended else emitted)

    def _echo(self, ids: Sequence[int]) -> list[float]:
        """Log-probability of each id of a text; of the first one, which nothing stands before, it is not a number."""
        choice = self._complete(ids, max_tokens=1, logprobs=1, echo=True)
        values = _field(choice, "logprobs", "token_logprobs")
        if len(values) != len(ids) + 1:
            raise LeptaError(
                f"{self._url}: {len(values)} log-probabilities for a prompt of {len(ids)} tokens and a new one; "
                "this task needs a server that echoes prompts with log-probabilities (vLLM does)"
            )
        return [math.nan if value is None else value for value in values[:-1]]

    def _complete(self, ids: Sequence[int], **options: Any) -> dict[str, Any]:
        return _field(self._post({"prompt": list(ids), **options}), "choices", 0)

    def _post(self, options: dict[str, Any]) -> dict[str, Any]:
        """One request, sent again while the server is busy; any other refusal is an error."""
        body = json.dumps({"model": self._model, "temperature": 0, "n": 1, **options}).encode()
        address = f"{self._url}/completions"
        for tried in range(1, TRIES + 1):
            request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=SECONDS) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                reason, final = f"{error.code} {error.read()[:200].decode(errors='replace')}", error.code not in AGAIN
            except (OSError, json.JSONDecodeError) as error:
                reason, final = str(error), False
            if final:
                break
            if tried < TRIES:
                time.sleep(self._wait * 2 ** (tried - 1))
        raise LeptaError(f"{address}: {reason} (tried {tried} times); see that the server runs and has {self._model}")


def _at_once(ask: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Ask several at a time; results are in the order of the items, and the first failure is an error."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(ask, items))


def _of_token(top: Mapping[str, float], label: str) -> float | None:
    """Log-probability of a token by its text; SentencePiece servers may write its space otherwise."""
    if label in top:
        return top[label]
    return max((value for token, value in top.items() if token.strip(" ▁Ġ") == label.strip()), default=None)


def _field(value: Any, *path: str | int) -> Any:
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError) as error:
            where = ".".join(map(str, path))
            raise LeptaError(
                f"server: its answer has no {where}, which this task needs; see what it supports"
            ) from error
    return value


@contextmanager
def opened_server(
    url: str, model: str, source: str | Path, chat: bool | None = None, context: int = 4096
) -> Iterator[ServerBackend]:
    """A backend of a server, with the tokenizer of a folder, a file or a hub id."""
    from lepta.checkpoints.load import load_tokenizer
    from lepta.vocabulary.source import open_tokenizer

    with tempfile.TemporaryDirectory(prefix="lepta-") as place:
        open_tokenizer(source).save(Path(place))
        tokenizer = load_tokenizer(Path(place))
    yield ServerBackend(url, model, tokenizer, chat, context)
