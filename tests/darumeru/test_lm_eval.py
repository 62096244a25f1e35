"""lm-evaluation-harness runs our tasks and lends us its models: the same prompts, answers and scores either way."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from lepta.cli import app
from lepta.darumeru.backend import Order, Question
from lepta.darumeru.data import load_dataset
from lepta.darumeru.log import read_log
from lepta.darumeru.metrics import micro_average
from lepta.darumeru.runner import run
from lepta.darumeru.tasks import tasks
from lepta.darumeru.transformers_backend import TransformersBackend
from lepta.errors import LeptaError

pytest.importorskip("lm_eval", reason="needs lm_eval: pip install 'lepta[lm-eval]'")

SHORT = {"summary_abstractive", "copy_paragraph_ru", "copy_paragraph_en", "copy_sentence_ru", "copy_sentence_en"}


@pytest.fixture(scope="module")
def folder(tiny_model_folder):
    """A tiny random model with the tokenizer of SmolLM2, chat template included."""
    return tiny_model_folder(hidden=16, context=4096)


@pytest.fixture(scope="module")
def model(folder):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def local(folder):
    """The same model in our own backend."""

    def make(chat):
        loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
        return TransformersBackend(loaded, AutoTokenizer.from_pretrained(folder), "tiny", chat)

    return make


def exported(folder, model_folder, shots):
    command = ["darumeru", "export", "--output", str(folder), "--shots", str(shots), "--tokenizer", str(model_folder)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    return folder


def evaluated(model, tasks_folder, names, chat=False):
    import lm_eval
    from lm_eval.tasks import TaskManager

    return lm_eval.simple_evaluate(
        model=model,
        tasks=[f"darumeru_{name}" if name in tasks() else name for name in names],
        task_manager=TaskManager(include_path=str(tasks_folder), include_defaults=False),
        apply_chat_template=chat,
        bootstrap_iters=0,
    )


@pytest.mark.parametrize(("chat", "shots"), [(False, 2), (True, 0), (True, 1)])
def test_the_same_scores_and_answers(folder, model, local, tmp_path, monkeypatch, chat, shots):
    """Choices, sentences, answers that are written; plain text with examples, and chat."""
    names = ["rucola", "parus", "mmlu_ru", "multiq", "use", "summary_extractive", "copy_sentence_ru"]
    found = evaluated(model, exported(tmp_path / "tasks", folder, shots), names, chat)
    summary = run(local(chat), "builtin", tmp_path / "ours", names, shots)
    for name in names:
        assert found["results"][f"darumeru_{name}"]["score,none"] == pytest.approx(summary.tasks[name].score.value)
        _, records = read_log(tmp_path / "ours" / "samples" / f"{name}.jsonl")
        theirs = {sample["doc"]["id"]: sample for sample in found["samples"][f"darumeru_{name}"]}
        assert set(theirs) == {record["id"] for record in records}
        backend = local(chat)
        task = tasks()[name]
        data = load_dataset(task.dataset)
        for sample in task.samples(data):
            prompt = backend.render(task.messages(sample, task.shots(data, sample, shots)))
            assert theirs[sample.id]["arguments"][0][0] == prompt
        for record in records:
            values = dict(record["score"]["values"])
            values.pop("label_mass", None)
            assert theirs[record["id"]]["score"]["values"] == values
