"""One run of training: checkpoints, what is kept, and what stops it."""

import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lepta.core.errors import LeptaError
from lepta.models import loss as loss_module
from lepta.training import trainer
from lepta.training.trainer import BEST, Run, Watch, last_checkpoint, train


@pytest.fixture(scope="module")
def folder(tiny_model_folder, tiny_tokenizer):
    return tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer)


@pytest.fixture
def go(folder, tmp_path, listed):
    """Train the embeddings for 10 steps of 2 short blocks; the fifth may be another one."""
    block = torch.randint(0, 4000, (24,), generator=torch.Generator().manual_seed(0)).tolist()

    def run(watch=None, work=tmp_path / "work", rate=1e-2, **values):
        model = AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)
        weight = model.get_input_embeddings().weight.requires_grad_()
        groups = [{"params": [weight], "lr": rate, "weight_decay": 0.0}]
        chosen = {"batch": 2, "warmup_steps": 1, "seed": 0, "watch": watch and watch(model)} | values
        trained = train(Run(model, listed([block] * 20), groups, work, **chosen))
        return trained.curve, trained.weights["model.embed_tokens.weight"], trained.stopped

    return run


class Stop(Exception):
    """The run ends here."""


def stopping(step):
    """A measurement that ends the run when it is taken for the given time."""
    calls = []

    def measure():
        calls.append(1)
        if len(calls) > step:
            raise Stop
        return {"calls": len(calls)}

    return lambda model: Watch(measure, 1)


def test_an_interrupted_run_ends_as_it_would_have(go, tmp_path):
    whole, expected, _ = go(save_every=3)
    work = tmp_path / "other"
    with pytest.raises(Stop):
        go(stopping(8), work, save_every=3)
    assert last_checkpoint(work).endswith("checkpoint-6")
    curve, found, _ = go(work=work, save_every=3)
    assert torch.equal(found, expected)
    assert [entry for entry in curve if "loss" in entry] == whole


def test_checkpoints_hold_what_trains_and_nothing_else(go, tmp_path):
    go(save_every=5)
    (checkpoint,) = (tmp_path / "work").glob("checkpoint-*")
    assert list(load_file(checkpoint / "trained.safetensors")) == ["model.embed_tokens.weight"]
    assert sum(file.stat().st_size for file in checkpoint.iterdir()) < 4000 * 32 * 12 + 100_000


@pytest.mark.parametrize("name", ["trainer_state.json", "trained.safetensors", "optimizer.pt", "rng_state.pth"])
def test_a_checkpoint_that_is_cut_short_is_left_for_the_one_before(go, tmp_path, name):
    whole, expected, _ = go(save_every=5)
    work = tmp_path / "other"
    with pytest.raises(Stop):
        go(stopping(8), work, save_every=3)
    for number, share in ((8, 0.5), (9, 0)):
        later = shutil.copytree(work / "checkpoint-6", work / f"checkpoint-{number}")
        content = (later / name).read_bytes()
        (later / name).write_bytes(content[: int(len(content) * share)])
    curve, found, _ = go(work=work, save_every=0)
    assert torch.equal(found, expected) and [entry for entry in curve if "loss" in entry] == whole
    assert [folder.name for folder in work.glob("checkpoint-*")] == ["checkpoint-6"]


def test_damage_that_leaves_files_as_long_as_they_were_is_seen(go, tmp_path):
    go(save_every=5)
    work = tmp_path / "work"
    for name, of, by in (
        ("optimizer.pt", b"param_groups", b"param_grouqs"),
        ("scheduler.pt", b"last_epoch", b"lest_epoch"),
        ("trainer_state.json", b'"global_step": 10', b'"global_step": "x"'),
        ("trainer_state.json", b'"step": 3', b'"at": 3'),
        ("trainer_state.json", b'"train_batch_size": 2', b'"train_batch_size": "x"'),
        ("trainer_state.json", b'"epoch"', b'"of another program": 1, "epoch"'),
    ):
        file = shutil.copytree(work / "checkpoint-10", work / "checkpoint-11") / name
        content = file.read_bytes()
        assert last_checkpoint(work).endswith("checkpoint-11") and of in content
        file.write_bytes(content.replace(of, by, 1))
        assert last_checkpoint(work).endswith("checkpoint-10")


def test_a_checkpoint_of_other_weights_is_refused(go, tmp_path, folder, listed):
    go(save_every=5)
    model = AutoModelForCausalLM.from_pretrained(folder)
    groups = [{"params": list(model.parameters()), "lr": 1e-3}]
    run = Run(model, listed([[1, 2, 3]] * 40), groups, tmp_path / "work", batch=2, seed=0)
    with pytest.raises(LeptaError, match=r"checkpoint-10.*of a run with other settings"):
        train(run)


def test_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(go, tmp_path, monkeypatch):
    calls, whole = [], loss_module.linear_cross_entropy

    def breaking(*arguments):
        calls.append(1)
        return whole(*arguments) * (float("nan") if len(calls) == 9 else 1.0)

    monkeypatch.setattr(loss_module, "linear_cross_entropy", breaking)
    with pytest.raises(LeptaError, match=r"loss is nan at step 9 of 10; the last good checkpoint is .*checkpoint-8\."):
        go(save_every=4)
    good = load_file(tmp_path / "work" / "checkpoint-8" / "trained.safetensors")
    assert torch.isfinite(good["model.embed_tokens.weight"]).all()


def test_running_out_of_memory_names_the_knobs(go, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(loss_module, "linear_cross_entropy", full)
    with pytest.raises(LeptaError, match=r"micro_batch below 2 .*gradient_checkpointing: true, a shorter block"):
        go()


def test_real_allocations_that_fail_name_the_knobs(go, monkeypatch):
    monkeypatch.setattr(loss_module, "linear_cross_entropy", lambda *_: torch.empty(1 << 50))
    with pytest.raises(LeptaError, match="out of memory"):
        go()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"micro_batch": 3}, "micro_batch: 3 does not divide the 4"),
        ({"micro_batch": 8}, "micro_batch: 8 does not divide"),
    ],
)
def test_batches_that_do_not_come_out_even(go, values, says):
    with pytest.raises(LeptaError, match=says):
        go(batch=4, **values)


def scores(*values):
    """Measurements that come out as given."""
    left = list(values)
    return lambda **rest: lambda model: Watch(lambda: {"score": left.pop(0), "other": 1.0}, 2, **rest)


def test_best_weights_are_kept(go, tmp_path):
    watch = scores(9.0, 3.0, 2.0, 4.0, 5.0, 6.0)(keep_best="score")
    seen = []

    def remember(model):
        chosen = watch(model)

        def measure():
            found = chosen.measure()
            seen.append(model.get_input_embeddings().weight.detach().clone())
            return found

        return Watch(measure, 2, "score")

    _, weights, _ = go(remember)
    assert torch.equal(weights, seen[2])
    assert not torch.equal(weights, seen[-1])
    assert (tmp_path / "work" / BEST).is_file()


def test_training_stops_when_it_forgets(go):
    curve, _, stopped = go(scores(1.0, 1.05, 1.2, 1.0, 1.0, 1.0)(limits=(("score", 0.1),)))
    assert [entry["step"] for entry in curve if "score" in entry] == [0, 2, 4]
    assert max(entry["step"] for entry in curve) == 4
    assert stopped == "score rose by 0.200, more than 0.1, at step 4"


def test_what_forgets_too_much_is_never_the_best(go):
    seen = []

    def watch(model):
        values = iter([(5.0, 1.0), (4.0, 1.0), (3.0, 9.0)])

        def measure():
            seen.append(model.get_input_embeddings().weight.detach().clone())
            target, source = next(values)
            return {"target": target, "source": source}

        return Watch(measure, 2, "target", (("source", 0.5),))

    curve, weights, _ = go(watch)
    assert [entry["target"] for entry in curve if "target" in entry] == [5.0, 4.0, 3.0]
    assert torch.equal(weights, seen[1])


def test_trackers_get_the_curve(go, tmp_path):
    tensorboard = pytest.importorskip("tensorboard", reason="pip install tensorboard")
    assert tensorboard
    go(report_to=("tensorboard",))
    assert list((tmp_path / "work").rglob("events.out.tfevents*"))


@pytest.mark.parametrize(
    ("values", "limits"), [((1.0, 2.0, 3.0, 4.0, 5.0, 6.0), ()), ((1.0, 9.0), (("score", 0.5),))], ids=["all", "limit"]
)
def test_weights_that_only_got_worse_are_those_it_began_with(folder, tmp_path, listed, values, limits):
    model = AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)
    weight = model.get_input_embeddings().weight.requires_grad_()
    before = weight.detach().clone()
    groups = [{"params": [weight], "lr": 1e-2, "weight_decay": 0.0}]
    watch = scores(*values)(keep_best="score", limits=limits)(model)
    run = Run(model, listed([[1, 2, 3]] * 20), groups, tmp_path, batch=2, seed=0, warmup_steps=1, watch=watch)
    trained = train(run)
    assert torch.equal(trained.weights["model.embed_tokens.weight"], before) and trained.kept_step == 0
    assert bool(trained.stopped) == bool(limits)


def test_the_step_of_the_best_weights_is_told(folder, tmp_path, listed):
    model = AutoModelForCausalLM.from_pretrained(folder)
    groups = [{"params": list(model.parameters()), "lr": 1e-3}]
    watch = scores(9.0, 3.0, 2.0, 4.0, 5.0, 6.0)(keep_best="score")(model)
    run = Run(model, listed([[1, 2, 3]] * 20), groups, tmp_path, batch=2, seed=0, warmup_steps=1, watch=watch)
    assert train(run).kept_step == 4


def test_overflowing_gradients_are_fatal_in_all_precisions_but_float16(tmp_path):
    """A GradScaler leaves such a step out and goes on with a smaller scale."""
    logs = {"loss": 9.1, "grad_norm": float("inf")}
    state = SimpleNamespace(global_step=1, max_steps=9, log_history=[logs])
    with trainer.progress("training", 9) as bar:
        callback = trainer._Callback(Run(None, [], [], tmp_path, batch=1, seed=0), bar, np.arange(10))
        callback.on_log(SimpleNamespace(fp16=True), state, None, logs)
    with pytest.raises(trainer.Diverged, match="grad_norm is inf at step 1 of 9"):
        callback.on_log(SimpleNamespace(fp16=False), state, None, logs)
    with pytest.raises(trainer.Diverged, match="loss is nan"):
        callback.on_log(SimpleNamespace(fp16=True), state, None, {"loss": float("nan")})


SIZES = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "pad_token_id": None}


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Falcon", "Bloom", "OPT", "Mamba"])
def test_architectures_that_see_across_documents_are_found(name):
    sizes = SIZES | ({"ffn_dim": 64, "word_embed_proj_dim": 32} if name == "OPT" else {})
    sizes |= {"n_head": 4, "n_layer": 1} if name == "Bloom" else {}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**sizes)).train()
    if name in ("Llama", "GPT2"):
        trainer.check_apart(model, "packing")
    else:
        with pytest.raises(LeptaError, match=rf"packing: {name}ForCausalLM sees from one document of a row into the"):
            trainer.check_apart(model, "packing")
    assert model.training


@pytest.mark.parametrize(("share", "falls_from"), [(0.3, 7), (1.0, 2)])
def test_wsd_stays_at_its_peak_and_falls_at_the_end(go, tmp_path, share, falls_from):
    go(warmup_steps=2, decay_share=share, save_every=10)
    (state,) = tmp_path.rglob("checkpoint-10/trainer_state.json")
    history = json.loads(state.read_text())["log_history"]
    rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    assert len(rates) == 10 and rates[0] < max(rates)
    assert rates[2:falls_from] == [max(rates)] * (falls_from - 2)
    falling = rates[falls_from:]
    assert falling == sorted(falling, reverse=True) and falling[-1] < 0.3 * max(rates)


def test_each_step_shows_its_loss(go, monkeypatch):
    """The mean of the last ones: those of several languages differ much. The Trainer logs a loss after its step."""
    shown = []

    class Meter:
        def begin(self, done=0):
            pass

        def set(self, done, note=""):
            shown.append((done, note))

    monkeypatch.setattr(trainer, "progress", lambda *_: nullcontext(Meter()))
    losses = [entry["loss"] for entry in go()[0]]
    means = [sum(losses[:step]) / step for step in range(1, 11)]
    assert [step for step, _ in shown] == list(range(1, 11))
    assert [note.partition(", loss ")[2] for _, note in shown] == [f"{mean:.3f}" for mean in means]
