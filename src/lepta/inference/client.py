"""The client of OpenAI-compatible servers: tries again while they are busy, and neither shows nor passes on the key."""

import http.client
import json
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from lepta.core.errors import LeptaError
from lepta.inference.thinking import split_thinking, switches

TRIES = 5
AGAIN = {408, 429, 500, 502, 503, 504}  # statuses of a server that may have a better answer later
REFUSED = {400, 413, 422}  # statuses of a request that this server will never take
AT_ONCE = 8  # requests
SECONDS = 600  # for one try
TOTAL_SECONDS = 900  # for all tries of a request; none begins after that
MOST_TOKENS = 1 << 24  # of an answer
LARGEST = 32 << 20  # bytes of an answer; log-probabilities of 4,096 tokens take about 1 MB
KEY = "OPENAI_API_KEY"
SWITCH = "chat_template_kwargs"  # what a request says to the chat template, in vLLM, SGLang, llama.cpp, transformers


@dataclass(frozen=True)
class Reply:
    """A turn that a server wrote, its thinking apart; `tokens` are those of both, `ended` tells whether it is whole."""

    text: str
    thinking: str
    tokens: int
    ended: bool


class Refused(LeptaError):
    """A server takes other requests, but not this one; `reason` is what it said."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Gives every answer as it is: urllib would send the key to whatever address a redirect names."""

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        return response

    https_response = http_response


class Client:
    """One model of a server, whose address `url` goes up to and with `/v1`.

    A failed request is sent again after `wait` seconds, doubled each time; a try takes at most `seconds`. The key in
    the environment variable OPENAI_API_KEY, if there is one, is sent along.
    """

    def __init__(self, url: str, model: str, wait: float = 1.0, seconds: float = SECONDS) -> None:
        self.url, self.model, self._wait, self._seconds = check_address(url), model, wait, seconds
        self._opener = urllib.request.build_opener(_AnyStatus)
        self._gone, self._has_switch = False, True

    @property
    def name(self) -> str:
        """Address and name: what weights a server has cannot be seen from here."""
        return f"{self.url} {self.model}"

    def post(self, path: str, options: dict[str, Any]) -> dict[str, Any]:
        """Send one request, greedy unless the options say otherwise, and give the answer.

        A busy server, a broken connection and an answer that is cut off or empty are tried again. Refused if the server
        will never take this request, LeptaError if it does not answer.
        """
        address = f"{self.url}/{path}"
        body = json.dumps({"model": self.model, "temperature": 0, "n": 1, **options}).encode()
        request = urllib.request.Request(address, body, {"Content-Type": "application/json", **_authorization()})
        end = time.monotonic() + TOTAL_SECONDS
        tries = 1 if self._gone else TRIES  # a server that went away is to end a run soon
        for tried in range(1, tries + 1):
            try:
                status, reply = self._exchange(request, min(self._seconds, max(1.0, end - time.monotonic())))
                if 200 <= status < 300:
                    answer = _answer(reply)
                    self._gone = False
                    return answer
                reason = f"{status} {reply.decode(errors='replace')}"
            except (OSError, http.client.HTTPException, ValueError) as error:
                status, reason = 0, f"{type(error).__name__}: {error}"
            reason = _shown(reason)
            if status in REFUSED:
                raise Refused(f"{address}: {reason} (tried {tried} times)", reason)
            temporary = status == 0 or status in AGAIN
            pause = self._wait * 2 ** (tried - 1)
            if not temporary or tried == tries or time.monotonic() + pause > end:
                break
            time.sleep(pause)
        self._gone = temporary  # known only now: other requests are sent while this one is tried again
        raise LeptaError(
            f"{address}: {reason} (tried {tried} times); see that the server runs and has {self.model}, and give the "
            "same command again: what was answered is kept"
        )

    def chat(self, messages: Sequence[dict[str, Any]], max_tokens: int, thinking: int = 0, **options: Any) -> Reply:
        """Have a turn written, with at most `thinking` tokens of thinking before it; raises what `post` does.

        Thinking that takes longer takes its tokens from the answer: a server cannot be told to end it. Refused if the
        server is to think and cannot be told to.
        """
        request = {"messages": list(messages), "max_tokens": max_tokens + thinking, **options}
        switched = request | {SWITCH: switches(thinking > 0)}
        try:
            reply = self.post("chat/completions", switched if self._has_switch else request)
        except Refused as error:
            if SWITCH not in error.reason or thinking:
                raise
            reply = self.post("chat/completions", request)  # of models that have nothing to be turned off
            self._has_switch = False
        message = field(reply, "choices", 0, "message") or {}
        inline, text = split_thinking(message.get("content") or "")
        said = message.get("reasoning") or message.get("reasoning_content") or inline  # vLLM now, and before
        tokens = int((reply.get("usage") or {}).get("completion_tokens") or 0)
        return Reply(text.strip(), said, tokens, field(reply, "choices", 0, "finish_reason") == "stop")

    def _exchange(self, request: urllib.request.Request, seconds: float) -> tuple[int, bytes]:
        """Status and body of the answer; TimeoutError if it is not whole in time."""

        def work() -> None:
            try:
                with self._opener.open(request, timeout=self._seconds) as response:
                    body = response.read(LARGEST + 1)
                    if 300 <= response.status < 400:
                        body = f"redirects to {response.headers['Location']}".encode()
                    answer.set_result((response.status, body))
            except Exception as error:  # whatever it is, raised again in the thread that waits for the answer
                answer.set_exception(error)

        # A timeout of a socket starts again with every byte that comes, so a server could hold a request for ever.
        # Nothing is waited for longer than this; a thread that is left behind reads no more than the largest answer.
        answer: Future[tuple[int, bytes]] = Future()
        threading.Thread(target=work, daemon=True).start()
        try:
            status, body = answer.result(seconds)
        except TimeoutError as error:
            raise TimeoutError(f"no whole answer in {seconds:.3g} s") from error
        if len(body) > LARGEST:
            raise LeptaError(f"{self.url}: an answer of more than {LARGEST >> 20} MiB; see what this address is")
        return status, body


def check_address(url: str) -> str:
    """The address of a server without its last slash; LeptaError if it is none, or holds what logs must not show."""
    if "@" in url or "?" in url:  # not shown: it may hold a password
        raise LeptaError(
            "server: its address holds a user name, a password or a query, which logs and pages would show; "
            f"give http://HOST:PORT/v1, and a key in the environment variable {KEY}"
        )
    if not url.startswith(("http://", "https://")):
        raise LeptaError(f"{url}: no address of a server; expected http://HOST:PORT/v1 or https://HOST/v1")
    return url.rstrip("/")


def _key() -> str:
    return os.environ.get(KEY, "").strip()


def _authorization() -> dict[str, str]:
    """The header with the key; LeptaError, which does not show it, if no header can hold it."""
    key = _key()
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()):
        raise LeptaError(f"{KEY}: holds a line break or another character that no key has; set it again")
    return {"Authorization": f"Bearer {key}"}


LogProbability = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class _LogProbabilities(BaseModel):
    top_logprobs: list[dict[str, LogProbability] | None] | None = None
    token_logprobs: list[LogProbability | None] | None = None


class _Message(BaseModel):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(BaseModel):
    text: str | None = None
    message: _Message | None = None
    finish_reason: str | None = None
    logprobs: _LogProbabilities | None = None


class _Usage(BaseModel):
    completion_tokens: Annotated[int, Field(strict=True, ge=0, le=MOST_TOKENS)] | None = None


class _Answer(BaseModel):
    """What is read of an answer; what a task needs of it and is not there, `field` tells."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def _answer(body: bytes) -> dict[str, Any]:
    """The answer in a body; ValueError if there is none."""
    answer: dict[str, Any] = from_json(body)  # refuses what is no text, as half of a UTF-16 pair
    try:
        _Answer.model_validate(answer)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise ValueError(f"no answer in the reply ({answer}): {place}: {fault['msg']}") from error
    return answer


def _shown(reason: str) -> str:
    """What a server said, as messages, logs and pages may show it: short, without the key or escape sequences."""
    if _key():
        reason = reason.replace(_key(), "(the key)")  # before it is cut: half a key is too much as well
    return "".join(character if character.isprintable() else " " for character in reason[:200])


def at_once(ask: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Ask several at a time; results are in the order of the items, and the first failure is an error."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(ask, items))


def field(value: Any, *path: str | int, kind: type = object) -> Any:
    """A value inside an answer; LeptaError names what is missing, or of another kind."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError) as error:
            where = ".".join(map(str, path))
            raise LeptaError(
                f"server: its answer has no {where}, which this task needs; see what it supports"
            ) from error
    if not isinstance(value, kind):
        raise LeptaError(
            f"server: {'.'.join(map(str, path))} of its answer is {value!r:.40}, expected {kind.__name__}; it does not "
            "speak the OpenAI protocol"
        )
    return value
