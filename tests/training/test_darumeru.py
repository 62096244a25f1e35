"""The benchmark asked of a model while it trains: the same scores as of the result, and training is not disturbed."""

import contextlib
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lepta.core.errors import LeptaError
from lepta.darumeru.backend import Asking
from lepta.darumeru.runner import run
from lepta.darumeru.settings import Benchmark
from lepta.darumeru.transformers_backend import TransformersBackend
from lepta.evaluation.benchmark import scores_of
from lepta.models.folder import Checkpoint
from lepta.models.write import write_model
from lepta.training.merge import changed_tensors
from lepta.training.precision import load_for_training
from lepta.training.pretrain import HeldOut, Pretraining, pretrain, pretrain_folder, watch_of
from lepta.training.settings import PretrainSettings

ROWS, FIRST_NEW = 4000, 3600
ASKED = {"tasks": ["rucola", "copy_sentence_ru"], "limit": 3, "shots": 1}
SCORES = {"darumeru/rucola", "darumeru/copy_sentence_ru"}


@pytest.fixture(scope="module")
def folder(tiny_model_folder, tiny_tokenizer):
    return tiny_model_folder(rows=ROWS, tokenizer=tiny_tokenizer)


@pytest.fixture
def go(folder, tiny_tokenizer, tmp_path, listed):
    """Train for 6 steps of random blocks, measuring at every third; returns curve, weights and the written result."""

    def train(name="run", measured=True, **values):
        chosen = PretrainSettings.model_validate(
            {"tokens": 1, "batch": 2, "warmup_steps": 1, "learning_rate": 1e-2, "measure_every": 3}
            | ({"darumeru": ASKED} if measured else {})
            | values
        )
        generator = torch.Generator().manual_seed(0)
        rows = [torch.randint(0, ROWS, (40,), generator=generator).tolist() for _ in range(12)]
        model, tokenizer = load_for_training(folder, chosen), AutoTokenizer.from_pretrained(folder)
        held_out = HeldOut(benchmark=partial(scores_of, settings=chosen.darumeru))
        watch = watch_of(model, tokenizer, held_out, chosen)
        run = Pretraining(chosen, listed(rows), FIRST_NEW, rate=1e-2, seed=0, work=tmp_path / f"{name}-work")
        trained = pretrain(model, run, watch)
        output, source = tmp_path / name, Checkpoint(folder)
        output.mkdir()
        write_model(source, changed_tensors(model, trained.weights, source), tiny_tokenizer, output)
        return trained.curve, load_file(output / "model.safetensors"), output

    return train


@pytest.mark.parametrize("trains", ["embeddings", "new-rows", "embeddings+lora", "full"])
def test_last_scores_are_those_of_the_result(go, tmp_path, trains):
    curve, _, output = go(trains=trains)
    measured = [entry for entry in curve if "loss" not in entry]
    assert [entry["step"] for entry in measured] == [0, 3, 6]
    assert all(set(entry) == {"step", "tokens"} | SCORES for entry in measured)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(output).eval(), AutoTokenizer.from_pretrained(output)
    backend = TransformersBackend(model, tokenizer, "result", Asking(chat=False))
    summary = run(backend, "builtin", tmp_path / "answers", ASKED["tasks"], ASKED["shots"], limit=ASKED["limit"])
    assert {f"darumeru/{name}": task.score.value for name, task in summary.tasks.items()} == {
        name: measured[-1][name] for name in SCORES
    }


def test_asking_changes_no_weight(go):
    curve, asked, _ = go("asked")
    plain, left_alone, _ = go("alone", measured=False)
    assert [entry for entry in curve if "loss" in entry] == plain
    assert all(torch.equal(asked[name], left_alone[name]) for name in left_alone)


def test_a_body_in_16_bits_is_asked_as_it_trains(go):
    curve, _, _ = go(body_dtype="bfloat16")
    assert all(set(entry) > SCORES for entry in curve if "loss" not in entry)


def test_trackers_get_the_scores(go, tmp_path):
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curve, _, _ = go(report_to=["tensorboard"])
    (file,) = (tmp_path / "run-work").rglob("events.out.tfevents*")
    events = EventAccumulator(str(file))
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("train/darumeru/rucola")}
    expected = {entry["step"]: entry["darumeru/rucola"] for entry in curve if "darumeru/rucola" in entry}
    assert found == pytest.approx(expected) and list(found) == [0, 3, 6]
    assert len(events.Scalars("train/loss")) == 6


def test_a_task_that_cannot_be_asked_stops_before_the_first_step(go):
    with pytest.raises(LeptaError, match=r"pretrain\.darumeru: copy_paragraph_ru: .* the context is 512"):
        go(darumeru={"tasks": ["copy_paragraph_ru"], "limit": 2})


def test_part_of_mmlu_has_no_score(folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with pytest.raises(LeptaError, match=r"mmlu_en: .*all four"):
        scores_of(model, tokenizer, Benchmark(tasks=["mmlu_en"], limit=1, shots=0))


def test_sharded_weights_are_refused_at_once(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    settings = PretrainSettings.model_validate({"tokens": 10, "darumeru": ASKED})
    with pytest.raises(LeptaError, match="FSDP2"), contextlib.chdir(tmp_path):
        pretrain_folder(folder, FIRST_NEW, [], HeldOut(), settings, 0, tmp_path)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    with pytest.raises(LeptaError, match=r"pretrain\.darumeru: needs HeldOut\.benchmark"):
        pretrain_folder(folder, FIRST_NEW, [], HeldOut(), settings, 0, tmp_path)
