"""A server that runs the same tiny model gives what the model gives in this process; failures are loud."""

import json
import threading
import time

import pytest
import torch
from serving import Proxy, Server, stopped
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import lepta.inference.client
from lepta.cli import app
from lepta.core.errors import LeptaError
from lepta.darumeru import server_backend
from lepta.darumeru.backend import Asking, GenerationRequest, Question
from lepta.darumeru.data import load_dataset, write_dataset
from lepta.darumeru.runner import run
from lepta.darumeru.server_backend import ServerBackend
from lepta.inference.client import AT_ONCE, Client


@pytest.fixture
def server(loaded):
    server = Server(*loaded())
    yield server
    stopped(server)


@pytest.fixture
def remote(server):
    return ServerBackend(Client(server.url, "tiny", wait=0.01), server.tokenizer, Asking(chat=False))


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
    requests = [GenerationRequest(f"Раз, два, {word}") for word in ("три", "четыре", "пять и так далее", "шесть")]
    assert remote.generate(requests, 8) == local.generate(requests, 8)


def test_labels_that_are_not_among_the_likely_tokens(remote):
    with pytest.raises(LeptaError, match="none of  A,  B is among"):
        remote.choose([Question("Вопрос.\n\nОтвет:", (" A", " B"))])


@pytest.mark.parametrize(
    ("family", "top", "expected"),
    [
        ("smollm2", {"A": -0.7, " B": -2.3}, (-3.3, -2.3)),  # "A" is another token than " A"
        ("smollm2", {"ĠA": -0.7, "ĠB": -2.3}, (-0.7, -2.3)),
        ("mistral", {"A": -0.7, " A": -1.5, " B": -2.3}, (-1.5, -2.3)),
        ("mistral", {"A": -0.7, "▁B": -2.3}, (-3.3, -2.3)),
        ("mistral", {"A": -0.7, "B": -2.3}, (-0.7, -2.3)),  # a server that shows no spaces
    ],
)
def test_a_label_is_its_own_token(loaded, monkeypatch, family, top, expected):
    remote = ServerBackend(Client("http://unused/v1", "tiny"), loaded(family)[1], Asking(chat=False))
    monkeypatch.setattr(remote, "_post", lambda options: {"choices": [{"logprobs": {"top_logprobs": [top]}}]})
    assert remote.choose([Question("Вопрос.\n\nОтвет:", (" A", " B"))]) == [pytest.approx(expected)]


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(server, remote):
    server.failures = [503, 429]
    assert remote.generate([GenerationRequest("Раз")], 3)[0].emitted == 3 and server.requests == 3
    server.failures = [400]
    with pytest.raises(LeptaError, match=r"400 .*tried 1 times"):
        remote.generate([GenerationRequest("Раз")], 3)
    server.failures = [500] * 9
    with pytest.raises(LeptaError, match="tried 5 times"):
        remote.generate([GenerationRequest("Раз")], 3)


def test_line_breaks_before_an_answer_do_not_end_it(remote, monkeypatch):
    """A server ends there, so it is asked again; an answer that has begun is not."""
    asked = []

    def post(options):
        asked.append(options)
        text = "" if "stop" in options and options["prompt"] == first else "\nМосква\nКиев"
        return {"choices": [{"text": text, "finish_reason": "length"}], "usage": {"completion_tokens": 9}}

    monkeypatch.setattr(remote, "_post", post)
    requests = [GenerationRequest("Раз", ("\n",)), GenerationRequest("Два", ("\n",))]
    first = list(remote.ids(["Раз"])[0])
    assert [written.text for written in remote.generate(requests, 9)] == ["Москва", "Москва"]
    assert len(asked) == 3 and sum("stop" in options for options in asked) == 2


def test_answers_without_what_is_needed(remote, monkeypatch):
    monkeypatch.setattr(remote, "_post", lambda options: {"choices": [{"text": ""}]})
    with pytest.raises(LeptaError, match=r"no logprobs\.token_logprobs"):
        remote.sentence_logprobs(Question("Ответ:", (" да",)))


@pytest.mark.parametrize("text", [None, 7, ["да"]])
def test_answers_whose_text_is_none(remote, monkeypatch, text):
    answer = {"choices": [{"text": text, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}
    monkeypatch.setattr(remote, "_post", lambda options: answer)
    with pytest.raises(LeptaError, match=r"server: text of its answer is .*, expected str"):
        remote.generate([GenerationRequest("Раз")], 4)


def test_labels_of_several_tokens_take_no_more_requests_at_once(remote, monkeypatch):
    under_way, most, lock = 0, 0, threading.Lock()

    def post(options):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01)
        with lock:
            under_way -= 1
        return {"choices": [{"logprobs": {"token_logprobs": [None, *[-1.0] * len(options["prompt"])]}}]}

    monkeypatch.setattr(remote, "_post", post)
    remote.choose([Question("Вопрос.\n\nОтвет:", (" Да, это так", " Нет, это не так"))] * 16)
    assert 1 < most <= AT_ONCE


def test_no_server(loaded):
    remote = ServerBackend(Client("http://127.0.0.1:9/v1", "tiny", wait=0.001), loaded()[1], Asking(chat=False))
    with pytest.raises(LeptaError, match="see that the server runs"):
        remote.generate([GenerationRequest("Раз")], 3)


@pytest.fixture(scope="module")
def small(tiny_model_folder, tiny_extended):
    """A model of 4,300 tokens, all of which fit among the most likely."""
    folder = tiny_model_folder(rows=4300, tokenizer=tiny_extended, hidden=16, context=4096)
    server = Server(AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))
    yield folder, server
    stopped(server)


@pytest.fixture
def data(tmp_path):
    """A few rows of each kind of task."""
    for name in ("rucola", "rwsd", "multiq"):
        write_dataset(tmp_path / "data" / name, load_dataset(name).first(12), {"format": "builtin"})
    return str(tmp_path / "data")


NAMES = ["rucola", "rwsd", "multiq"]


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def backend(url, server, monkeypatch):
    monkeypatch.setattr(server_backend, "TOP", 4300)
    monkeypatch.setattr(Client, "name", "tiny")  # the same model, whichever way it is reached
    return ServerBackend(Client(url, "tiny", wait=0.01), server.tokenizer, Asking(chat=False))


def test_failures_on_the_way_change_nothing(small, data, tmp_path, monkeypatch):
    """A tenth of all requests fails; another try gets the same answer."""
    _, server = small
    before = server.requests
    run(backend(server.url, server, monkeypatch), data, tmp_path / "direct", NAMES)
    needed = server.requests - before
    proxy = Proxy(server.url, share=0.1)
    summary = run(backend(proxy.url, server, monkeypatch), data, tmp_path / "proxied", NAMES)
    stopped(proxy)
    assert proxy.failed >= 3 and proxy.requests == proxy.failed + needed
    assert set(summary.tasks) == set(NAMES) and files(tmp_path / "proxied") == files(tmp_path / "direct")


def test_a_server_that_goes_away(small, data, tmp_path, monkeypatch):
    """Errors that say so, no total, and soon; the next run finishes, with the same files as one that nothing broke."""
    folder, server = small
    monkeypatch.setattr(server_backend, "TOP", 4300)
    monkeypatch.setattr(Client, "name", "tiny")
    monkeypatch.setattr(lepta.inference.client.time, "sleep", lambda seconds: None)

    def asked(url, output):
        command = ["darumeru", "run", "--server", url, "--server-model", "tiny", "--model", str(folder), "--plain"]
        given = ["--data", data, "--shots", "0", "--tasks", ",".join(NAMES), "--output", str(output)]
        return CliRunner().invoke(app, [*command, *given])

    # Pages are called like their folders.
    assert asked(server.url, tmp_path / "whole" / "run").exit_code == 0
    proxy = Proxy(server.url, share=0, dies=20)
    broken = asked(proxy.url, tmp_path / "broken" / "run")
    stopped(proxy)
    assert broken.exit_code == 1 and "no total" in broken.output
    assert "see that the server runs" in " ".join(broken.stdout.split())
    assert proxy.requests < 200  # 144 were seen; five tries for each are more than 400
    assert json.loads((tmp_path / "broken" / "run" / "summary.json").read_text())["micro_avg"] is None
    assert asked(server.url, tmp_path / "broken" / "run").exit_code == 0
    assert files(tmp_path / "broken" / "run") == files(tmp_path / "whole" / "run")
