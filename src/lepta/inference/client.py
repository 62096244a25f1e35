"""Requests to an OpenAI-compatible server: sent again while it is busy, several at a time, answers in order."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lepta.core.errors import LeptaError

TRIES = 5
AGAIN = {408, 429, 500, 502, 503, 504}  # answers of a server that may have a better one later
REFUSED = {400, 413, 422}  # answers to a request that this server will never take
AT_ONCE = 8  # requests
SECONDS = 600  # that an answer may take
KEY = "OPENAI_API_KEY"


class Refused(LeptaError):
    """A server takes others, but not this request; `reason` is what it said."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Client:
    """One model of a server. The key in the environment variable OPENAI_API_KEY is sent along if there is one.

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

    def __init__(self, url: str, model: str, wait: float = 1.0, seconds: float = SECONDS) -> None:
        self.url, self.model, self._wait, self._seconds = url.rstrip("/"), model, wait, seconds
        self._gone = False

    @property
    def name(self) -> str:
        """Address and name: what weights a server has cannot be seen from here."""
        return f"{self.url} {self.model}"

    def post(self, path: str, options: dict[str, Any]) -> dict[str, Any]:
        """One request, greedy unless the options say otherwise.

        A busy server, a connection that breaks and an answer that is cut off or empty are tried again. After a request
        that was tried in vain, the next ones are tried once, until one is answered: a server that went away ends a run
        soon.

        Raises
        ------
        Refused
            If the server will never take this request.
        LeptaError
            If it does not answer.
        """
        body = json.dumps({"model": self.model, "temperature": 0, "n": 1, **options}).encode()
        address = f"{self.url}/{path}"
        tries = 1 if self._gone else TRIES
        for tried in range(1, tries + 1):
            try:
                answer = self._send(address, body)
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {_body_of(error)}"
                if error.code in REFUSED:
                    raise Refused(f"{address}: {reason} (tried {tried} times)", reason) from error
                final = error.code not in AGAIN
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason, final = f"{type(error).__name__}: {error}", False
            else:
                self._gone = False
                return answer
            if final:
                break
            if tried < tries:
                time.sleep(self._wait * 2 ** (tried - 1))
        self._gone = not final
        raise LeptaError(
            f"{address}: {reason} (tried {tried} times); see that the server runs and has {self.model}, and give the "
            "same command again: what was answered is kept"
        )

    def _send(self, address: str, body: bytes) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        request = urllib.request.Request(address, body, headers)
        with urllib.request.urlopen(request, timeout=self._seconds) as response:
            answer = json.loads(response.read())
        if not isinstance(answer, dict) or not answer.get("choices"):
            raise ValueError(f"no answer in the reply ({str(answer)[:100]})")
        return answer


def _body_of(error: urllib.error.HTTPError) -> str:
    """What a server says about its refusal, as far as it comes through."""
    try:
        return error.read()[:200].decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return "(its reason was cut off)"


def at_once(ask: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Ask several at a time; results are in the order of the items, and the first failure is an error."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(ask, items))


def field(value: Any, *path: str | int) -> Any:
    """A value inside an answer; LeptaError names what is missing."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError) as error:
            where = ".".join(map(str, path))
            raise LeptaError(
                f"server: its answer has no {where}, which this task needs; see what it supports"
            ) from error
    return value
