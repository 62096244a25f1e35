"""Publishing, to a server here that answers as the hub does; a dry run reaches nobody."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from typer.testing import CliRunner

from lepta.card import FRONT_MATTER, OURS
from lepta.cli import app
from lepta.core.errors import LeptaError
from lepta.deployment.publish import prepare

TOKEN = "hf_secretsecretsecretsecret"
CARD = f"---\nlicense: mit\n---\n{OURS}\n\nLoad THIS_FOLDER.\n"


@pytest.fixture
def folder(tiny_model_folder, tiny_extended):
    folder = tiny_model_folder(rows=4300, tokenizer=tiny_extended)
    (folder / "README.md").write_text(CARD)
    manifest = {"key": {"stage": "init", "settings": {}}, "sources": {"model": str(folder)}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "notes.txt").write_text("mine")
    return folder


class Hub(BaseHTTPRequestHandler):
    """Takes repositories, large files (LFS) and commits; `refuse` is the status of every answer instead."""

    def reply(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self):
        self.reply({}, self.server.refuse or 404)

    def do_PUT(self):
        self.server.stored[self.path] = self.body()
        self.reply({})

    def do_POST(self):
        body = self.body()
        self.server.authorised.append(self.headers.get("Authorization") == f"Bearer {TOKEN}")
        address = f"http://127.0.0.1:{self.server.server_port}"
        if self.server.refuse:
            self.reply({"error": f"bad token {TOKEN}"}, self.server.refuse)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.reply({"url": f"{address}/OWNER/NAME"})
        elif self.path.startswith("/api/models/OWNER/NAME/preupload/"):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            self.reply({"files": files})
        elif self.path == "/api/validate-yaml":  # of the card
            self.reply({"warnings": [], "errors": []})
        elif self.path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            actions = [one | {"actions": {"upload": {"href": f"{address}/lfs/{one['oid']}"}}} for one in wanted]
            self.reply({"transfer": "basic", "objects": actions})
        elif "/commit/" in self.path:
            self.server.commits.append([json.loads(line) for line in body.splitlines()])
            self.reply({"commitUrl": f"{address}/OWNER/NAME/commit/1", "commitOid": "1", "success": True})
        else:
            self.server.unknown.append(self.path)
            self.reply({}, 404)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.stored, server.created, server.commits, server.authorised = {}, [], [], []
    server.refuse, server.unknown = None, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", f"http://127.0.0.1:{server.server_port}", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()


def run(*arguments):
    return CliRunner().invoke(app, ["publish", *map(str, arguments)])


def test_a_dry_run_shows_all_and_reaches_nobody(folder, hub):
    result = run(folder, "--repo", "OWNER/NAME", "--dry-run", "--json")
    shown = json.loads(result.stdout)
    assert shown["files"]["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    assert shown["left_out"] == ["notes.txt"]
    assert "Load OWNER/NAME." in shown["card"]
    assert [warning.partition(":")[0] for warning in shown["warnings"]] == [
        "the card names no base model",
        "the card names no language",
    ]
    assert not hub.authorised
    assert "Nothing was sent." in run(folder, "--repo", "OWNER/NAME", "--dry-run").stdout


@pytest.mark.parametrize(
    ("card", "languages"),
    [("", ["kk", "ru"]), ("language: en\n", ["kk", "ru", "en"]), ("language: [ru, en]\n", ["kk", "ru", "en"])],
    ids=["none", "one", "several"],
)
def test_languages_come_before_those_that_the_card_names(folder, card, languages):
    (folder / "README.md").write_text(CARD.replace("---\n", f"---\n{card}", 1))
    result = run(folder, "--repo", "OWNER/NAME", "--language", "kk", "--language", "ru", "--dry-run", "--json")
    shown = json.loads(result.stdout)
    facts = yaml.safe_load(FRONT_MATTER.match(shown["card"])[1])
    assert facts == {"license": "mit", "language": languages} and "Load OWNER/NAME." in shown["card"]
    assert not any("language" in warning for warning in shown["warnings"])


def test_a_language_is_a_code(folder):
    error = run(folder, "--repo", "OWNER/NAME", "--language", "Kazakh", "--dry-run").exception
    assert str(error) == "--language Kazakh: expected a code of ISO 639, such as ru or kk"


def test_all_files_arrive_in_one_commit(folder, hub):
    result = run(folder, "--repo", "OWNER/NAME", "--private", "--base-model", "OWNER/BASE")
    assert result.exit_code == 0, (result.exception, hub.unknown)
    assert hub.created[0]["name"] == "NAME" and hub.created[0]["organization"] == "OWNER"
    assert "private" in str(hub.created[0])
    (commit,) = hub.commits
    regular = {line["value"]["path"]: line["value"]["content"] for line in commit if line["key"] == "file"}
    texts = {name: base64.b64decode(content).decode() for name, content in regular.items()}
    large = [line["value"]["path"] for line in commit if line["key"] == "lfsFile"]
    assert large == ["model.safetensors"]
    assert list(hub.stored.values()) == [(folder / "model.safetensors").read_bytes()]
    assert {"config.json", "tokenizer.json", "README.md", "manifest.json"} <= texts.keys()
    assert "base_model: OWNER/BASE" in FRONT_MATTER.match(texts["README.md"])[1]
    assert str(folder.parent) not in texts["manifest.json"]  # no places of this machine
    assert all(hub.authorised)
    assert TOKEN not in result.output


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_refusal_is_one_line_without_the_token(folder, hub, status):
    hub.refuse = status
    error = run(folder, "--repo", "OWNER/NAME").exception
    assert isinstance(error, LeptaError) and f"answers {status}" in str(error) and TOKEN not in str(error)


def test_without_a_token_nothing_is_sent(folder, hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    error = run(folder, "--repo", "OWNER/NAME").exception
    assert isinstance(error, LeptaError) and "hf auth login" in str(error)
    assert not hub.commits


@pytest.mark.parametrize("repo", ["NAME", "a/b/c", "OWNER/na me"])
def test_a_name_that_the_hub_does_not_take(folder, repo):
    assert isinstance(run(folder, "--repo", repo).exception, LeptaError)


def test_a_folder_without_a_model_is_refused(tmp_path):
    error = run(tmp_path, "--repo", "OWNER/NAME", "--dry-run").exception
    assert isinstance(error, LeptaError) and "no model to publish" in str(error)
    error = run(tmp_path / "gone", "--repo", "OWNER/NAME", "--dry-run").exception
    assert isinstance(error, LeptaError) and "no such folder" in str(error)


def test_a_card_or_manifest_with_odd_values_is_no_traceback(folder):
    sources = {"model": "~nobody-of-this-name/x", "text": ["x" * 5000, "a\0b"]}
    (folder / "manifest.json").write_text(json.dumps({"key": {"stage": "init", "settings": {}}, "sources": sources}))
    assert run(folder, "--repo", "OWNER/NAME", "--dry-run").exit_code == 0
    (folder / "README.md").write_bytes(b"\xff\xfe")
    refused = run(folder, "--repo", "OWNER/NAME", "--dry-run")
    assert isinstance(refused.exception, LeptaError) and "README.md: byte 0 is not UTF-8" in str(refused.exception)


def test_no_place_of_this_machine_is_sent_wherever_it_is_named(folder):
    places = ["/gone/secret/a.gguf", str(folder.parent / "gone/a.jsonl?field=text"), "C:\\secret\\a", "~/secret/a"]
    key = {"stage": "init", "settings": {"text": places}}
    manifest = {"key": key, "sources": {"model": "package:a/b.gguf"}, "facts": {"source": places[0]}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "q8.gguf.json").write_text(json.dumps({"model": str(folder), "converter": "llama.cpp b1"}))
    files = prepare(folder, "OWNER/NAME").files
    sent = json.loads(files["manifest.json"])
    assert sent["key"]["settings"]["text"] == ["a.gguf", "a.jsonl?field=text", "a", "a"]
    assert sent["facts"] == {"source": "a.gguf"} and sent["sources"] == {"model": "package:a/b.gguf"}
    assert json.loads(files["q8.gguf.json"]) == {"model": folder.name, "converter": "llama.cpp b1"}


def test_no_link_out_of_the_folder_is_sent(folder, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (folder / ".hidden.json").write_text("{}")
    assert ".hidden.json" in prepare(folder, "OWNER/NAME").left_out
    (folder / "more.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(LeptaError, match=r"more\.json: a link out of the folder"):
        prepare(folder, "OWNER/NAME")


def test_links_of_the_hubs_cache_are_files_of_the_model(folder, tmp_path):
    cached = tmp_path / "models--OWNER--NAME"
    snapshot = cached / "snapshots" / "0123abcd"
    (cached / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        blob = cached / "blobs" / file.name
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blob)
    assert "config.json" in prepare(snapshot, "OWNER/NAME").files
