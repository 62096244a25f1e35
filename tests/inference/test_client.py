"""What a server must not be able to do: see the key elsewhere, get it shown, hold a run for ever, or fill memory."""

import json
import time

import pytest
from serving import Posted, started, stopped

from lepta.calibration.calibrate import Place
from lepta.core.errors import LeptaError
from lepta.inference import client
from lepta.inference.client import KEY, Client, Refused

SECRET = "sk-proj-0123456789abcdef"
GOOD = json.dumps({"choices": [{"text": "да"}]}).encode()


class Server:
    """Answers with `status` and `body`, and what `headers` say; `pause` seconds after each byte, if there is one."""

    def __init__(self):
        self.status, self.body, self.headers, self.pause, self.seen = 200, GOOD, {}, 0, []
        outer = self

        class Handler(Posted):
            def do_POST(self):
                self.sent()
                outer.seen.append(self.headers["Authorization"])
                self.send_response(outer.status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                if not outer.pause:
                    self.wfile.write(outer.body)
                    return
                try:
                    for byte in outer.body:
                        self.wfile.write(bytes([byte]))
                        time.sleep(outer.pause)
                except OSError:  # nobody reads any more
                    self.close_connection = True

            def do_GET(self):
                outer.seen.append(self.headers["Authorization"])
                self.reply(200, GOOD)

        self.http, self.url = started(Handler)


@pytest.fixture
def server():
    server = Server()
    yield server
    stopped(server)


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv(KEY, SECRET)


def failure(server, kind=LeptaError, **options):
    with pytest.raises(kind) as error:
        Client(server.url, "tiny", wait=0.001, **options).post("completions", {})
    return str(error.value)


def test_the_key_goes_to_the_server_that_was_named(server, key):
    assert Client(server.url, "tiny").post("completions", {}) == json.loads(GOOD)
    assert server.seen == [f"Bearer {SECRET}"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_follows_no_redirect(server, key, status):
    other = Server()
    server.status, server.headers = status, {"Location": f"{other.url}/completions"}
    assert f"{status} redirects to {other.url}/completions (tried 1 times)" in failure(server)
    stopped(other)
    assert other.seen == [] and len(server.seen) == 1


@pytest.mark.parametrize("status", [400, 401, 500])
@pytest.mark.parametrize("before", ["", "x" * 185])  # the second is cut off within the key
def test_an_echoed_key_is_not_shown(server, key, status, before):
    server.status, server.body = status, f"{before}Incorrect key: {SECRET}\x1b[31m\n\x9b".encode()
    shown = failure(server)
    assert SECRET[:4] not in shown and shown.isprintable()
    if status == 400:
        with pytest.raises(Refused) as refused:
            Client(server.url, "tiny").post("completions", {})
        assert SECRET[:4] not in refused.value.reason and refused.value.reason.isprintable()


def test_a_key_echoed_in_place_of_an_answer_is_not_shown(server, key):
    server.body = json.dumps({"error": SECRET}).encode()
    assert "no answer in the reply ({'error': '(the key)'})" in failure(server)


@pytest.mark.parametrize("broken", [f"{SECRET}\nX-More: yes", f"{SECRET}\x00", f"{SECRET}ключ"])
def test_a_key_that_no_header_can_hold_is_not_shown(server, monkeypatch, broken):
    monkeypatch.setattr(client.os, "environ", {KEY: broken})
    shown = failure(server)
    assert shown.startswith(f"{KEY}: ") and SECRET not in shown and not server.seen


def test_a_line_break_after_a_key_is_no_part_of_it(server, monkeypatch):
    monkeypatch.setenv(KEY, f"{SECRET}\n")
    Client(server.url, "tiny").post("completions", {})
    assert server.seen == [f"Bearer {SECRET}"]


@pytest.mark.parametrize("make", [lambda url: Client(url, "tiny"), lambda url: Place("tiny", url)])
@pytest.mark.parametrize("url", ["http://user:PASSWORD@host/v1", "user:PASSWORD@host", "https://host/v1?key=PASSWORD"])
def test_an_address_with_a_password_is_refused_and_not_shown(make, url):
    with pytest.raises(LeptaError, match=KEY) as error:
        make(url)
    assert "PASSWORD" not in str(error.value)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "file:///etc/passwd", ""])
def test_an_address_of_no_server_is_refused(url):
    with pytest.raises(LeptaError, match="no address of a server; expected http"):
        Client(url, "tiny")


def test_an_answer_without_end_is_not_taken(server, monkeypatch):
    monkeypatch.setattr(client, "LARGEST", 1 << 20)
    server.body = b" " * (1 << 20) + GOOD
    assert "an answer of more than 1 MiB" in failure(server) and len(server.seen) == 1


def test_a_server_that_sends_byte_by_byte_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(client, "TOTAL_SECONDS", 1.0)
    server.pause, begun = 0.2, time.monotonic()
    assert "TimeoutError: no whole answer in" in failure(server, seconds=0.5)
    assert time.monotonic() - begun < 6 and len(server.seen) < 4


@pytest.mark.parametrize("body", [b"[" * 100_000, rb'{"choices": [{"text": "\ud800"}]}'])
def test_json_that_is_too_deep_or_has_half_a_character_is_no_answer(server, body):
    server.body = body
    assert "(tried 5 times)" in failure(server)
