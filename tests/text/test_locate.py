"""From names to places."""

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler

import pytest
import serving

from lepta.core.errors import LeptaError
from lepta.text.locate import locate
from lepta.text.sources import text_files


def test_mistyped_paths_are_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "adapted").mkdir(parents=True)
    assert locate("my/adapted", []).is_dir()
    with pytest.raises(LeptaError, match=r"my/adaptd: no such file or folder; did you mean my/adapted\?"):
        locate("my/adaptd", [])
    with pytest.raises(LeptaError, match="my/other: no such file or folder; it is no hub id either"):
        locate("my/other", [])
    (tmp_path / "file.gguf").touch()
    for name in ("/my/other", "file.gguf/other"):
        with pytest.raises(LeptaError, match=f"{name}: no such file or folder$"):
            locate(name, [])


def test_a_folder_that_is_half_written_is_not_proposed(tmp_path, monkeypatch):
    (tmp_path / "my" / ".distilled.partial").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LeptaError, match=r"my/distilled: no such file or folder; it is no hub id either, since my is"):
        locate("my/distilled", [])


@pytest.mark.parametrize("name", ["~nouser/x", "a/b.git", "a/b--c", "a/..", "x" * 97 + "/y"])
def test_names_that_neither_a_path_nor_the_hub_has(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LeptaError, match="^" + name):
        locate(name, [])
    with pytest.raises(LeptaError, match="^" + name):
        text_files(name)


class UnknownHere(BaseHTTPRequestHandler):
    """The hub, to whoever asks for a repository that is private or not there."""

    def do_GET(self):
        self.send_response(401)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    def log_message(self, *args):
        """Say nothing."""


def refusal(cache, **environment):
    """What is said of a hub id; a process of its own, as the library reads its environment once."""
    code = "from lepta.text.locate import locate; locate('nobody/nothing', ['*.json'])"
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache), "HF_TOKEN": "", **environment}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    return run.stderr.splitlines()[-1].removeprefix("lepta.core.errors.LeptaError: ")


def test_a_hub_that_gives_nothing_is_told_by_its_cause(tmp_path):
    start = "nobody/nothing: no such path here; "
    assert refusal(tmp_path, HF_ENDPOINT="http://127.0.0.1:1").startswith(start + "no connection to the hub")
    assert refusal(tmp_path, HTTPS_PROXY="http://127.0.0.1:1").startswith(start + "no connection to the hub")
    assert "HF_HUB_OFFLINE forbids to download it; unset that" in refusal(tmp_path, HF_HUB_OFFLINE="1")
    http, url = serving.started(UnknownHere)
    try:
        assert "none of that name; check the name, or run `hf auth login`" in refusal(tmp_path, HF_ENDPOINT=url)
    finally:
        http.shutdown()
