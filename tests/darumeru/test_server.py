"""A server that runs the same tiny model gives what the model gives in this process; failures are loud."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from lepta.darumeru import server_backend
from lepta.darumeru.backend import Order, Question
from lepta.darumeru.server_backend import ServerBackend
from lepta.errors import LeptaError


class Server:
    """Completions of a transformers model over HTTP; `failures` are status codes to answer first."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.failures, self.requests, self.lock = model, tokenizer, [], 0, threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests += 1
                    status = outer.failures.pop(0) if outer.failures else 200
                    body = json.dumps(outer.answer(request) if status == 200 else {"error": "no"}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    @torch.no_grad()
    def answer(self, request):
        ids = request["prompt"]
        new = self.model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=request["max_tokens"])[0]
        new = new[len(ids) :].tolist()
        choice = {"text": self.tokenizer.decode(new, skip_special_tokens=True), "finish_reason": "length"}
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


@pytest.fixture
def server(loaded):
    server = Server(*loaded())
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def remote(server):
    return ServerBackend(server.url, "tiny", server.tokenizer, chat=False, wait=0.01)


def test_a_server_gives_what_the_model_gives(server, remote, backend_of, monkeypatch):
    monkeypatch.setattr(server_backend, "TOP", 2000)
    local = backend_of()
    token = int(server.model(torch.tensor(local.ids(["Ответ:"]))).logits[0, -1].argmax())
    best = server.tokenizer.decode([token])
    several = Question("Вопрос.\n\nОтвет:", (" Да, это так", " Нет", " 10"))
    for mine, theirs in zip(remote.choose([several] * 3), local.choose([several] * 3), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    if local.ids(["Ответ:" + best])[0] == (*local.ids(["Ответ:"])[0], token):
        single = Question("Ответ:", (best, " A"))
        assert remote.choose([single])[0][0] == pytest.approx(local.choose([single])[0][0], abs=1e-4)
    assert remote.sentence_logprobs(several) == pytest.approx(local.sentence_logprobs(several), abs=1e-4)
    orders = [Order(f"Раз, два, {word}") for word in ("три", "четыре", "пять и так далее", "шесть")]
    assert remote.generate(orders, 8) == local.generate(orders, 8)


def test_labels_that_are_not_among_the_likely_tokens(remote):
    with pytest.raises(LeptaError, match="none of  A,  B is among"):
        remote.choose([Question("Вопрос.\n\nОтвет:", (" A", " B"))])


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(server, remote):
    server.failures = [503, 429]
    assert remote.generate([Order("Раз")], 3)[0].emitted == 3 and server.requests == 3
    server.failures = [400]
    with pytest.raises(LeptaError, match=r"400 .*tried 1 times"):
        remote.generate([Order("Раз")], 3)
    server.failures = [500] * 9
    with pytest.raises(LeptaError, match="tried 5 times"):
        remote.generate([Order("Раз")], 3)


def test_answers_without_what_is_needed(remote, monkeypatch):
    monkeypatch.setattr(remote, "_post", lambda options: {"choices": [{"text": ""}]})
    with pytest.raises(LeptaError, match=r"no logprobs\.token_logprobs"):
        remote.sentence_logprobs(Question("Ответ:", (" да",)))


def test_no_server(loaded):
    remote = ServerBackend("http://127.0.0.1:9/v1", "tiny", loaded()[1], chat=False, wait=0.001)
    with pytest.raises(LeptaError, match="see that the server runs"):
        remote.generate([Order("Раз")], 3)
