"""Real servers for the tests: completions of a model of transformers, `transformers serve`, and a proxy that fails."""

import http.client
import json
import random
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import torch
from commands import Command

STARTED = 240  # seconds that `transformers serve` may take to load a model


class Posted(BaseHTTPRequestHandler):
    """What all test servers do with a request."""

    def sent(self):
        """The body that was posted."""
        return self.rfile.read(int(self.headers["Content-Length"]))

    def reply(self, status, body, cut=False):
        """Answer; or only with half of what was announced."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)

    def log_message(self, *args):
        """Say nothing."""


class Server:
    """Completions of a transformers model over HTTP; `failures` are status codes to answer first."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.failures, self.requests, self.lock = model, tokenizer, [], 0, threading.Lock()
        outer = self

        class Handler(Posted):
            def do_POST(self):
                request = json.loads(self.sent())
                with outer.lock:
                    outer.requests += 1
                    status = outer.failures.pop(0) if outer.failures else 200
                    body = json.dumps(outer.answer(request) if status == 200 else {"error": "no"}).encode()
                self.reply(status, body)

        self.http, self.url = started(Handler)

    @torch.no_grad()
    def answer(self, request):
        ids = request["prompt"]
        draws = request.get("temperature", 1) > 0  # what servers do if nothing is said
        new = self.model.generate(torch.tensor([ids]), do_sample=draws, max_new_tokens=request["max_tokens"])[0]
        new = new[len(ids) :].tolist()
        text = self.tokenizer.decode(new, skip_special_tokens=request.get("skip_special_tokens", True))
        ends = [text.index(stop) for stop in request.get("stop", ()) if stop in text]
        choice = {"text": text[: min(ends, default=len(text))], "finish_reason": "stop" if ends else "length"}
        if "logprobs" in request:
            table = torch.log_softmax(self.model(torch.tensor([ids])).logits[0], -1)
            top = table[-1].topk(request["logprobs"])
            names = self.tokenizer.batch_decode([[token] for token in top.indices.tolist()])
            echoed = [None, *(float(table[n, token]) for n, token in enumerate(ids[1:]))]
            last = [float(top.values[0])]
            choice["logprobs"] = {
                "top_logprobs": [dict(zip(reversed(names), reversed(top.values.tolist()), strict=True))],
                "token_logprobs": [*echoed, *last] if request.get("echo") else last,
            }
        return {"choices": [choice], "usage": {"completion_tokens": len(new)}}


class Proxy:
    """Hands requests on to a server, but fails a share of them: errors, dropped connections, answers cut off.

    The same request fails three times at most, whatever order threads come in: a client gives up after five tries.
    """

    def __init__(self, url, share, dies=None, seed=1):
        self.requests, self.failed, self.lock, draw = 0, 0, threading.Lock(), random.Random(seed)
        to, outer, failures = urlsplit(url), self, Counter()

        class Handler(Posted):
            def do_POST(self):
                sent = self.sent()
                with outer.lock:
                    outer.requests += 1
                    fails = draw.random() < share and failures[str(sent)] < 3
                    fault = draw.choice(["error", "drop", "cut"]) if fails else None
                    failures[str(sent)] += fails
                    if dies is not None and outer.requests > dies:
                        fault = "drop"
                    outer.failed += fault is not None
                if fault == "drop":
                    self.close_connection = True
                    return
                status, body = (500, b"{}") if fault == "error" else self.passed_on(sent)
                self.reply(status, body, fault == "cut")

            def passed_on(self, sent):
                connection = http.client.HTTPConnection(to.hostname, to.port, timeout=120)
                connection.request("POST", self.path, sent, {"Content-Type": "application/json"})
                response = connection.getresponse()
                return response.status, response.read()

        self.http, self.url = started(Handler)


def started(handler):
    """A server on a free port, and its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}/v1"


def stopped(*servers):
    """End servers and free their ports."""
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


@contextmanager
def transformers_serve(folder):
    """Address of `transformers serve` with a model folder, which is its name there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    server = Command(["serve", folder, *options], module="transformers.cli.transformers")
    try:
        deadline = time.monotonic() + STARTED
        while not _healthy(f"http://127.0.0.1:{port}/health"):
            if server.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"transformers serve did not start: {server.text('stderr')[-2000:]}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


def _healthy(address):
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
