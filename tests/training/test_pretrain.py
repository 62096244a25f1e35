"""What trains, at which rate, in which precision, and what is written."""

import itertools

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lepta.core.errors import LeptaError
from lepta.models.folder import Checkpoint
from lepta.models.split import SplitEmbedding, split_rows
from lepta.models.write import write_model
from lepta.training.blocks import TrainingText
from lepta.training.merge import changed_tensors, prepare_merge
from lepta.training.precision import compute_dtype, load_for_training
from lepta.training.pretrain import HeldOut, Pretraining, no_gain, pretrain, pretrain_folder
from lepta.training.settings import PretrainSettings
from lepta.training.trainable import make_trainable
from lepta.training.trainer import Trained

ROWS, FIRST_NEW = 4000, 3600
AMONG_OLD = [0, 7, 8, *range(500, 900), 3999]  # rows of new tokens, as scenario replaced has them
EMBEDDINGS = {"model.embed_tokens.weight", "lm_head.weight"}


def settings(**values):
    return PretrainSettings.model_validate(
        {"tokens": 1, "batch": 2, "warmup_steps": 1, "weight_decay": 0.0, "learning_rate": 1e-2} | values
    )


def blocks(number=12, length=40):
    """Random blocks, one of them short, so that it is padded."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, ROWS, (length,), generator=generator).tolist() for _ in range(number)]
    rows[3] = rows[3][:17]
    return rows


@pytest.fixture
def train(listed):
    """Train a model on random blocks; returns curve and weights."""

    def run(model, work, chosen, rate=1e-2, rows=None, new_rows=FIRST_NEW):
        trained = pretrain(model, Pretraining(chosen, listed(rows or blocks()), new_rows, rate, seed=0, work=work))
        return trained.curve, trained.weights

    return run


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request, tiny_model_folder, tiny_tokenizer):
    return tiny_model_folder(rows=ROWS, tied=request.param, tokenizer=tiny_tokenizer)


@pytest.fixture
def trained(folder, tiny_tokenizer, tmp_path, train):
    """Train a folder and write the result; returns its tensors, those before, and the trained model."""

    def run(new_rows=FIRST_NEW, **values):
        chosen = settings(**values)
        model = load_for_training(folder, chosen)
        _, weights = train(model, tmp_path / "work", chosen, new_rows=new_rows)
        source = Checkpoint(folder)
        (tmp_path / "out").mkdir()
        write_model(source, changed_tensors(model, weights, source), tiny_tokenizer, tmp_path / "out")
        return load_file(tmp_path / "out" / "model.safetensors"), load_file(folder / "model.safetensors"), model

    return run


def changed(after, before):
    return {name for name in before if not torch.equal(after[name], before[name])}


def test_embeddings_train_and_the_body_keeps_every_bit(trained):
    after, before, _ = trained(trains="embeddings")
    assert changed(after, before) == EMBEDDINGS & set(before)


def test_only_new_rows_train_and_cost_nothing_for_old_ones(trained):
    after, before, model = trained(trains="new-rows", weight_decay=0.1)
    assert changed(after, before) == EMBEDDINGS & set(before)
    for name in EMBEDDINGS & set(before):
        assert torch.equal(after[name][:FIRST_NEW], before[name][:FIRST_NEW])
        assert (after[name][FIRST_NEW:] != before[name][FIRST_NEW:]).any(dim=1).all()  # the head sees all of them
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == len(EMBEDDINGS & set(before)) * 400 * 32


def test_old_rows_move_as_slowly_as_they_are_told(trained):
    after, before, _ = trained(trains="embeddings", old_rows_learning_rate=1e-4)
    for name in EMBEDDINGS & set(before):
        moved = (after[name] - before[name]).abs()
        assert 0 < moved[:FIRST_NEW].max() < 1e-3 < moved[FIRST_NEW:].max()


def test_new_rows_among_old_ones_train_alone(trained):
    after, before, model = trained(new_rows=AMONG_OLD, trains="new-rows", weight_decay=0.1)
    assert changed(after, before) == EMBEDDINGS & set(before)
    old = torch.ones(ROWS, dtype=torch.bool)
    old[AMONG_OLD] = False
    for name in EMBEDDINGS & set(before):
        assert torch.equal(after[name][old], before[name][old])
        assert (after[name][~old] != before[name][~old]).any(dim=1).all()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == len(EMBEDDINGS & set(before)) * 404 * 32


@pytest.mark.parametrize("new_rows", [FIRST_NEW, AMONG_OLD], ids=["behind", "among"])
def test_split_rows_train_as_whole_ones_do(folder, tmp_path, train, new_rows):
    whole, _ = train(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "a", settings())
    chosen = settings(old_rows_learning_rate=0.00999999)
    model = AutoModelForCausalLM.from_pretrained(folder)
    split, _ = train(model, tmp_path / "b", chosen, new_rows=new_rows)
    losses = [torch.tensor([entry["loss"] for entry in curve]) for curve in (whole, split)]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-4)


@pytest.mark.parametrize("trains", ["embeddings+lora", "new-rows+lora"])
def test_lora_is_merged_exactly(trained, tmp_path, trains):
    after, before, model = trained(trains=trains, lora={"rank": 4, "alpha": 8})
    assert changed(after, before) > EMBEDDINGS & set(before)
    for name in EMBEDDINGS & set(before):
        assert torch.equal(after[name][:FIRST_NEW], before[name][:FIRST_NEW]) == (trains == "new-rows+lora")
        assert (after[name][FIRST_NEW:] != before[name][FIRST_NEW:]).any()
    assert {name for name in changed(after, before) if "layers" in name} == {
        name for name in before if name.endswith("_proj.weight")
    }
    ids = torch.arange(100, 140)[None]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, model(ids).logits, rtol=0, atol=1e-4)


def test_full_training_changes_everything(trained, tmp_path):
    after, before, model = trained(trains="full")
    assert changed(after, before) == set(before)
    ids = torch.arange(100, 140)[None]
    with torch.no_grad():
        written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
        torch.testing.assert_close(written, model(ids).logits, rtol=0, atol=1e-5)


def test_body_rate_is_its_own(trained):
    after, before, _ = trained(trains="full", body_learning_rate=1e-6)
    moved = {name: (after[name] - before[name]).abs().max() for name in before}
    assert max(value for name, value in moved.items() if "layers" in name) < 1e-4 < moved["model.embed_tokens.weight"]


def test_what_trains_has_float32_masters_over_a_body_in_16_bits(folder, tmp_path, train):
    """Updates far below the spacing of bfloat16 add up; a body in bfloat16 keeps its bits."""
    chosen = settings(body_dtype="bfloat16")
    model = load_for_training(folder, chosen)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    curve, weights = train(model, tmp_path, chosen, rate=1e-5)
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    for name, parameter in model.named_parameters():
        if "layers" in name:
            assert parameter.dtype == torch.bfloat16
            assert torch.equal(parameter, before[name])
    moved = weights["model.embed_tokens.weight"] - before["model.embed_tokens.weight"].float()
    assert 0 < moved.abs().max() < 1e-4
    exact, _ = train(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "exact", settings(), rate=1e-5)
    losses = [torch.tensor([entry["loss"] for entry in c]) for c in (curve, exact)]
    torch.testing.assert_close(*losses, rtol=0, atol=2e-2)


def test_gradient_checkpointing_and_parts_of_a_batch_change_no_loss(folder, tmp_path, train):
    curves = []
    for number, values in enumerate(({}, {"gradient_checkpointing": True}, {"micro_batch": 1})):
        model = AutoModelForCausalLM.from_pretrained(folder)
        curve, _ = train(model, tmp_path / str(number), settings(**values))
        curves.append(torch.tensor([entry["loss"] for entry in curve]))
    torch.testing.assert_close(curves[1], curves[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(curves[2], curves[0], rtol=0, atol=1e-4)


def test_loss_curve_is_that_of_the_stock_trainer(folder, tmp_path, monkeypatch, train):
    from lepta.models import loss

    rows, chosen = blocks()[:1] * 9 + blocks()[3:4] + blocks()[:1] * 2, settings(weight_decay=0.1)
    ours, mine = train(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "ours", chosen, rows=rows)
    monkeypatch.setattr(loss, "logit_rule", lambda model: None)
    stock, theirs = train(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "stock", chosen, rows=rows)
    assert len(ours) == 6
    assert ours[-1]["loss"] < ours[0]["loss"]
    for one, other in zip(ours, stock, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    for name, weight in mine.items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-4)


def test_unknown_lora_target_names_those_there_are(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(LeptaError, match=r"lora\.targets: .*linear layers here: down_proj, gate_proj, .*q_proj"):
        make_trainable(model, settings(trains="embeddings+lora", lora={"targets": ["query"]}), FIRST_NEW, 1e-3)


def test_nothing_new_to_train_raises(folder):
    with pytest.raises(LeptaError, match="4,000 of 4,000 rows are old"):
        split_rows(AutoModelForCausalLM.from_pretrained(folder), ROWS)


def test_embeddings_that_do_more_than_look_up_are_not_split(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, rows: rows + 1)
    with pytest.raises(LeptaError, match="does more than look up rows"):
        split_rows(model, FIRST_NEW)


def test_scaled_embeddings_are_split_with_their_scale():
    """Gemma multiplies its rows by the root of their width."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16}
    model = Gemma3ForCausalLM(Gemma3TextConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)).eval()
    ids = torch.arange(50)[None]
    with torch.no_grad():
        before = model(ids).logits
        split_rows(model, [3, 4, 40])
        torch.testing.assert_close(model(ids).logits, before)
    assert isinstance(model.get_input_embeddings(), SplitEmbedding)


@pytest.mark.parametrize("body_dtype", ["8bit", "4bit"])
def test_quantised_weights_cannot_train(body_dtype):
    with pytest.raises(ValidationError, match=f"{body_dtype} weights cannot train"):
        settings(trains="full", body_dtype=body_dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize("body_dtype", ["8bit", "4bit"])
def test_a_quantised_body_needs_a_gpu(folder, body_dtype):
    with pytest.raises(LeptaError, match=f"{body_dtype} needs a GPU"):
        load_for_training(folder, settings(body_dtype=body_dtype))


@pytest.mark.parametrize(
    ("values", "steps", "expected"),
    [
        ({}, 101, 100),  # as ever
        ({}, 100, 10),
        ({}, 3, 0),
        ({"warmup_steps": 0}, 1, 0),
        ({"warmup_steps": 11}, 12, 11),
    ],
)
def test_a_default_warm_up_gives_way_to_a_short_run(values, steps, expected):
    chosen = PretrainSettings.model_validate({"tokens": 1, "batch": 2} | values)
    run = Pretraining(chosen, [None] * (2 * steps - 1), FIRST_NEW, 1e-2, seed=0, work=None)
    assert run.warmup_steps == expected


def test_a_warm_up_that_never_ends_is_refused_before_training(folder, tmp_path, monkeypatch, train):
    monkeypatch.setattr("lepta.training.pretrain.make_trainable", None)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(LeptaError, match=r"warmup_steps: 6, but there are 6 steps, so the rate .* fewer than 6"):
        train(model, tmp_path, settings(warmup_steps=6))
    with pytest.raises(LeptaError, match=r"there are 6 steps to try a rate in \(sweep_share 0\.2\)"):
        train(model, tmp_path, settings(warmup_steps=6, learning_rate=[1e-2, 1e-3]))


@pytest.fixture
def on_russian(folder, russian, tmp_path):
    """Pre-train a folder on a little Russian; returns facts, curve, and the weights that were written."""
    numbers = itertools.count()

    def run(source=folder, **values):
        held_out = HeldOut([russian[0][:200]], [russian[1][:200]], "ru", "en")
        place = tmp_path / str(next(numbers))
        place.mkdir(exist_ok=True)
        values = {"tokens": 2000, "block": 64, "batch": 4, "measure_every": 3} | values
        rates = values.pop("learning_rate", ["auto"])  # not validated: tests need some at which training diverges
        chosen = PretrainSettings.model_validate(values).model_copy(update={"learning_rate": rates})
        text = TrainingText(lambda: russian, 1.0)
        facts, curve = pretrain_folder(source, FIRST_NEW, [text], held_out, chosen, 1, place)
        return facts, curve, load_file(place / "model.safetensors")

    return run


def test_a_short_first_try_learns_and_says_how_it_warmed_up(on_russian, folder):
    facts, _, after = on_russian(learning_rate=[1e-2])
    before = load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    assert facts["warmup_steps"] == 0
    assert (after[name] - before[name]).abs().max() > 1e-2  # more than one step at the full rate


def test_a_sweep_survives_rates_that_cannot_be_used(on_russian):
    rates = {"keep": "best", "forget_limit": 1.0, "sweep_share": 0.9, "warmup_steps": 1, "measure_every": 2}
    facts, curve, weights = on_russian(**rates, learning_rate=[1e30, 1e-4, 30.0])  # diverges; is fine; forgets
    assert facts["sweep"]["1e+30"] is None and facts["sweep"]["30"] is None and facts["learning_rate"] == 1e-4
    alone, same, others = on_russian(**rates, learning_rate=[1e-4])
    assert curve == same and all(torch.equal(weights[name], others[name]) for name in weights)
    assert alone["kept_step"] == facts["kept_step"] > 0
    with pytest.raises(LeptaError, match=r"learning_rate: with each of 1e\+30, 1e\+31 training diverged or passed"):
        on_russian(learning_rate=[1e30, 1e31], warmup_steps=0)


@pytest.mark.parametrize("content", ["", "[]", '{"0.0001": "low"}'])
def test_damaged_scores_of_a_sweep_are_refused(on_russian, tmp_path, content):
    (tmp_path / "0" / "checkpoints").mkdir(parents=True)
    (tmp_path / "0" / "checkpoints" / "sweep.json").write_text(content)
    with pytest.raises(LeptaError, match=r"sweep\.json.*--force"):
        on_russian(learning_rate=[1e-4, 1e-3])


def test_documents_apart_is_refused_where_the_model_sees_across(tmp_path, train):
    from transformers import OPTConfig, OPTForCausalLM

    model = OPTForCausalLM(
        OPTConfig(
            vocab_size=ROWS,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            word_embed_proj_dim=32,
        )
    )
    with pytest.raises(LeptaError, match="documents_apart: OPTForCausalLM sees from one document"):
        train(model, tmp_path, settings(documents_apart=True))


def test_automatic_precision_on_a_gpu_that_only_emulates_bfloat16(monkeypatch):
    """As a T4, whose capability is 7.5."""
    monkeypatch.setattr("lepta.training.precision.device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert compute_dtype("auto", None) == torch.float16


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_run_that_goes_on_keeps_its_precision(folder, russian, tmp_path, monkeypatch):
    """Though the machine, or what else runs on it, would now have it take another."""
    from lepta.training import precision
    from lepta.training.trainer import _Callback

    def run(place, fastest):
        place.mkdir(exist_ok=True)
        monkeypatch.setattr(precision, "fastest_on_cpu", lambda config: fastest)
        chosen = PretrainSettings(tokens=1000, block=64, batch=4, learning_rate=1e-3, save_every=1)
        texts = [TrainingText(lambda: russian, 1.0)]
        return pretrain_folder(folder, FIRST_NEW, texts, HeldOut(), chosen, 1, place)

    def stop(callback, arguments, state, control, **_):
        if state.global_step == 3:
            raise KeyboardInterrupt

    facts, curve = run(tmp_path / "whole", torch.bfloat16)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_Callback, "on_step_begin", stop)
        patch.setattr(_Callback, "on_step_end", stop)
        run(tmp_path / "stopped", torch.bfloat16)
    assert list((tmp_path / "stopped" / "checkpoints").glob("checkpoint-*"))
    assert run(tmp_path / "stopped", torch.float32) == (facts, curve)
    assert facts["body_dtype"] == "bfloat16"
    written = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert written[0] == written[1]
    assert run(tmp_path / "exact", torch.float32)[0]["body_dtype"] == "float32"


def test_what_could_not_be_written_is_refused_before_training(experts, folder):
    model = load_for_training(experts, settings(trains="full")).requires_grad_(True)
    with pytest.raises(LeptaError, match=r"no tensor .*, which is to be trained"):
        prepare_merge(model, Checkpoint(folder))


def test_matrices_that_low_rank_changes_do_not_reach_are_named(on_russian, experts):
    facts, _, _ = on_russian(experts, trains="embeddings+lora", tokens=300)
    assert "model.layers.*.mlp.experts.down_proj" in facts["unreached"]


@pytest.fixture
def on_held_out(folder, russian, tmp_path):
    """Pre-train on English and measure on Russian, or the other way round; at a rate that makes it better or worse."""
    numbers = itertools.count()

    def run(text, held_out, **values):
        place = tmp_path / str(next(numbers))
        place.mkdir()
        chosen = {"tokens": 2000, "block": 64, "batch": 4, "measure_every": 3} | values
        facts, curve = pretrain_folder(
            folder,
            FIRST_NEW,
            [TrainingText(lambda: text, 1.0)],
            HeldOut(held_out),
            PretrainSettings.model_validate(chosen),
            1,
            place,
        )
        scores = [entry["target_bits_per_byte"] for entry in curve if "target_bits_per_byte" in entry]
        return facts, scores, load_file(place / "model.safetensors")

    return run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_that_makes_held_out_text_worse_keeps_the_start_and_says_so(on_held_out, folder, russian, english, dtype):
    facts, scores, after = on_held_out(english, [russian[0][:300]], learning_rate=1.0, body_dtype=dtype)
    assert facts["kept_step"] == 0 and scores[-1] > scores[0]
    assert facts["held_out_change"] == [scores[0], scores[0]]
    assert facts["warnings"] == [
        f"training made held-out text worse ({scores[0]:.4f} -> {scores[-1]:.4f} bits per byte); "
        "the weights before training are kept"
    ]
    before = load_file(folder / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)  # to the last bit, whatever it was loaded in


def test_last_weights_that_are_worse_are_written_with_a_warning(on_held_out, folder, russian, english):
    facts, scores, after = on_held_out(english, [russian[0][:300]], learning_rate=1.0, keep="last")
    assert "kept_step" not in facts
    assert facts["warnings"] == [
        f"training made held-out text worse ({scores[0]:.4f} -> {scores[-1]:.4f} bits per byte); "
        "these weights are written all the same, since keep is last"
    ]
    before, name = load_file(folder / "model.safetensors"), "model.embed_tokens.weight"
    assert not torch.equal(after[name], before[name])


def test_a_run_that_gains_keeps_its_best_without_a_word(on_held_out, russian):
    facts, scores, _ = on_held_out(russian, [russian[0][:300]], learning_rate=1e-2)
    assert facts["kept_step"] > 0 and min(scores) < scores[0] and "warnings" not in facts
    assert facts["held_out_change"] == [scores[0], min(scores)]


def test_without_held_out_text_the_last_weights_are_written(on_held_out, russian):
    facts, scores, _ = on_held_out(russian, [], learning_rate=1e-2)
    assert not scores and "kept_step" not in facts and "warnings" not in facts
    with pytest.raises(LeptaError, match=r"forget_limit: needs `keep` best, and held-out text of the target language"):
        on_held_out(russian, [], forget_limit=0.1)


@pytest.mark.parametrize(
    ("scores", "kept", "stopped", "says"),
    [
        ([2.0, 1.5], 4, "", ""),
        ([2.0, 1.5], None, "", ""),
        ([2.0, 2.0], None, "", ""),
        ([], None, "", ""),
        ([2.0, 2.0], 0, "", "training made held-out text no better (2.0000 -> 2.0000 bits per byte); the "),
        ([2.0, float("nan")], None, "", "training made held-out text worse (2.0000 -> nan bits per byte); these "),
        ([2.0, 1.9], 0, "en rose", "training was stopped before any weights could be kept (en rose); the weights"),
    ],
)
def test_what_is_said_of_a_run_without_gain(scores, kept, stopped, says):
    curve = [{"step": n, "tokens": n, "bits": score} for n, score in enumerate(scores)]
    found = no_gain(Trained(curve, {}, stopped, kept), "bits")
    assert found.startswith(says) and bool(found) == bool(says)
