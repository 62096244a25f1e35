"""`lepta distill` on tiny models: what changes, what does not, resuming, and what is refused."""

import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from lepta.cli import app
from lepta.core.errors import LeptaError
from lepta.distillation import distill as module
from lepta.distillation.best import bits_of_original
from lepta.distillation.distill import distill_folder
from lepta.distillation.settings import DistillSettings
from lepta.distillation.targets import learned_rows
from lepta.embeddings.initialise import initialise
from lepta.models.folder import Checkpoint
from lepta.plan.distillation import measurements
from lepta.text.sources import read_documents
from lepta.vocabulary.change import VocabularyChange
from lepta.vocabulary.source import open_tokenizer

HEAD, INPUT = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pair(request, tiny_tokenizer, tiny_extended, tiny_model_folder, tmp_path_factory):
    """A model and the same with 300 Russian tokens."""
    original = tiny_model_folder(rows=4000, tied=request.param, tokenizer=tiny_tokenizer)
    folder = tmp_path_factory.mktemp("initialised")
    initialise(Checkpoint(original), tiny_extended, folder)
    return original, folder


# For what does not depend on whether input and head are one matrix: a head of its own learns more.
untied = pytest.mark.parametrize("pair", [False], indirect=True, ids=["untied"])


def settings(**values):
    return DistillSettings.model_validate(
        {"tokens": 3000, "batch": 4, "head_epochs": 4, "save_every": 3, "passage": 200} | values
    )


def documents():
    return read_documents(["starter:ru/valid"])


def english():
    return read_documents(["starter:en/valid"])


def run(pair, folder, source=None, **values):
    folder.mkdir(exist_ok=True)
    facts, curve = distill_folder(*pair, documents, settings(**values), 1, folder, source)
    return facts, curve


def test_rows_learn_and_nothing_else_changes(pair, tmp_path):
    facts, curve = run(pair, tmp_path / "out")
    old, new = (open_tokenizer(folder).vocabulary() for folder in pair)
    change = VocabularyChange.between(old, new)
    fresh = change.new_ids
    moves = set(learned_rows(old, new, fresh, change.old_id_of, move_targets=True, tied=False).moving.tolist())
    before, after = (load_file(folder / "model.safetensors") for folder in (pair[1], tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        if name not in (INPUT, HEAD):
            assert torch.equal(tensor, before[name]), name
            continue
        changed = set((tensor != before[name]).any(1).nonzero()[:, 0].tolist())
        assert changed <= moves
        assert len(changed & set(fresh.tolist())) > 100
    bits = facts["held_out_bits_per_byte"]
    assert bits["calibrated"] < bits["initialised"]
    of_result = {
        step: value for step, value in bits.items() if HEAD in after or step.startswith(("init", "one matrix"))
    }
    assert facts["kept"] == min(of_result, key=of_result.get)
    assert len(bits) - len(HEAD_ALONE) == measurements(settings(), tied=HEAD not in before)
    assert "warnings" not in facts
    assert curve[-1]["hidden_distance"] < curve[0]["hidden_distance"]
    assert facts["tokens"] >= 3000
    assert facts["learned_rows"] == len(moves)
    assert facts["tokens_absent"] + facts["tokens_below_occurrences"] > 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.tie_word_embeddings == (HEAD not in after)


def test_new_rows_leaves_old_rows_as_they_are(pair, tmp_path):
    run(pair, tmp_path / "out", rows="new-rows")
    before, after = (load_file(folder / "model.safetensors") for folder in (pair[1], tmp_path / "out"))
    assert torch.equal(before[INPUT][:4000], after[INPUT][:4000])


@untied
def test_a_run_that_was_stopped_ends_in_the_same_bytes(pair, tmp_path, monkeypatch):
    run(pair, tmp_path / "whole")
    for place in ("inputs", "head"):
        stopped = tmp_path / place
        with monkeypatch.context() as patch:
            if place == "inputs":
                patch.setattr("lepta.training.trainer._Callback.on_step_end", stop_at(5))
            else:
                patch.setattr(module, "fit", stop_at(0))
            with pytest.raises(KeyboardInterrupt):
                run(pair, stopped)
        run(pair, stopped)
        assert (stopped / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


# Steps that change nothing but the head: held-out passages are not read again.
HEAD_ALONE = ("calibrated", "fitted, 60% to the text", "fitted, 30% to the text")
LORA = {"lora_rank": 4, "lora_rate": 2e-3, "layer": 1}


def test_low_rank_changes_of_lower_layers_bring_hidden_states_nearer(pair, tmp_path):
    _, rows_alone = run(pair, tmp_path / "rows", layer=1)
    facts, curve = run(pair, tmp_path / "out", english, **LORA)
    assert curve[-1]["hidden_distance"] < 0.95 * rows_alone[-1]["hidden_distance"]
    before, after = (load_file(folder / "model.safetensors") for folder in (pair[1], tmp_path / "out"))
    changed = {name for name in before if name not in (INPUT, HEAD) and not torch.equal(after[name], before[name])}
    assert changed == {name for name in before if "layers.0." in name and name.endswith("_proj.weight")}
    read = len(facts["held_out_bits_per_byte"]) - len(HEAD_ALONE) + len(facts["source_bits_per_byte"])
    assert read == measurements(settings(**LORA), tied=HEAD not in before)
    first, last = facts["source_bits_per_byte"]
    assert abs(last - first) < 0.1  # new rows of the head take a little from a random model's English
    original, result = (AutoModelForCausalLM.from_pretrained(folder) for folder in (pair[0], tmp_path / "out"))
    ids = torch.tensor(open_tokenizer(pair[0]).vocabulary().encode(["The cat sat on the mat."]))
    states = [model(input_ids=ids, output_hidden_states=True).hidden_states[1] for model in (original, result)]
    assert not torch.equal(*states)
    assert (states[0] - states[1]).square().sum() < 0.1 * states[0].square().sum()


@untied
def test_low_rank_changes_end_in_the_same_bytes_after_a_stop(pair, tmp_path, monkeypatch):
    run(pair, tmp_path / "whole", english, **LORA)
    torch.manual_seed(77)  # whatever the process has drawn before
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr("lepta.training.trainer._Callback.on_step_end", stop_at(5))
        with pytest.raises(KeyboardInterrupt):
            run(pair, stopped, english, **LORA)
    run(pair, stopped, english, **LORA)
    assert (stopped / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def with_another_body(folder, output):
    """A copy of a model whose body has been trained since."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(1.1)
    model.save_pretrained(output)
    for file in folder.glob("*token*"):
        (output / file.name).write_bytes(file.read_bytes())


@untied
def test_the_head_alone_learns_beside_a_body_that_was_trained(pair, tmp_path):
    with_another_body(pair[1], tmp_path / "trained")
    trained = (pair[0], tmp_path / "trained")
    with pytest.raises(LeptaError, match=r"is not that of .*\(a trained body: `head_only`\)"):
        run(trained, tmp_path / "whole", english)
    facts, curve = run(trained, tmp_path / "out", english, head_only=True)
    assert not curve and list(facts["held_out_bits_per_byte"]) == ["before", HEAD_ALONE[-1]]
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("trained", "out"))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {HEAD}
    bits = facts["held_out_bits_per_byte"]
    assert bits[HEAD_ALONE[-1]] < bits["before"] and facts["kept"] == HEAD_ALONE[-1]


@untied
def test_what_the_original_expects_comes_from_its_own_body(pair, tmp_path, monkeypatch):
    """A student whose body differs from its teacher's: the teacher reads with weights of its own."""
    seen = []

    def collect(distiller, *_):
        ids = torch.tensor([[1, 2, 3]])
        expected = AutoModelForCausalLM.from_pretrained(pair[0]).model(ids).last_hidden_state
        seen.append(torch.equal(distiller.teacher_last_states(ids).float(), expected.float()))
        raise KeyboardInterrupt

    with_another_body(pair[1], tmp_path / "trained")
    monkeypatch.setattr(module, "collect_targets", collect)
    with pytest.raises(KeyboardInterrupt):
        run((pair[0], tmp_path / "trained"), tmp_path / "out", english, head_only=True, body_dtype="float32")
    assert seen == [True]


def test_the_head_alone_is_refused_where_it_is_none(pair, tmp_path):
    tied = HEAD not in load_file(pair[1] / "model.safetensors")
    refused = "its head is its embeddings" if tied else "head_only: needs text of the language that the model knows"
    with pytest.raises(LeptaError, match=refused):
        run(pair, tmp_path / "out", head_only=True)
    with pytest.raises(ValueError, match="`untie`: changes more than the rows of a head"):
        settings(head_only=True, untie=True)


@untied
def test_low_rank_changes_need_text_of_the_source_language(pair, tmp_path):
    with pytest.raises(LeptaError, match=r"lora_rank: .*--source-text"):
        run(pair, tmp_path / "none", **LORA)
    with pytest.raises(LeptaError, match="source language has no passage"):
        run(pair, tmp_path / "short", lambda: ["A few words."], **LORA)
    some = ["A little English text is used several times, because it only has to stay what it is. " * 4]
    facts, _ = run(pair, tmp_path / "some", lambda: some, **LORA)
    assert facts["source_tokens"] >= 450


@untied
def test_text_that_fills_no_batch_is_refused_before_a_model_is_loaded(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_model", None)
    with pytest.raises(LeptaError, match=r"tokens give 1 passage of .* fewer than `distill.batch`, 4"):
        distill_folder(*pair, lambda: ["Короткий русский текст о погоде."], settings(), 1, tmp_path)


def test_tokens_that_fill_no_batch_are_refused_at_once():
    DistillSettings(tokens=50)
    for few in ({"tokens": 49}, {"tokens": 57, "lora_rank": 4}):  # 15 % of 57 are of the source language
        with pytest.raises(ValueError, match=r"`tokens`: .* cannot fill a `batch` of 8 passages"):
            DistillSettings(**few)


@untied
def test_little_source_text_fills_a_batch(pair, tmp_path):
    facts, _ = run(pair, tmp_path / "out", english, batch=20, head_epochs=0, **LORA)
    assert facts["source_tokens"] > 900, "450 tokens are 15 %, and less than a batch"


def test_a_text_too_short_to_measure_on_keeps_the_last_rows(pair, tmp_path):
    text = next(iter(documents()))[:1000]  # of fewer than ten passages none is put aside
    tmp_path.joinpath("out").mkdir()
    facts, _ = distill_folder(*pair, lambda: [text], settings(), 1, tmp_path / "out")
    assert not {"held_out_bits_per_byte", "warnings"} & facts.keys()
    last = "one matrix, pull 0.5" if HEAD not in load_file(tmp_path / "out" / "model.safetensors") else "fitted"
    assert facts["kept"].startswith(last)


@untied
def test_a_head_that_is_fitted_to_the_text_alone_asks_for_no_expectations(pair, tmp_path, monkeypatch):
    both, _ = run(pair, tmp_path / "both")
    monkeypatch.setattr(module, "collect_targets", None)
    alone, _ = run(pair, tmp_path / "alone", text_weight=1)
    steps = [list(facts["held_out_bits_per_byte"]) for facts in (both, alone)]
    assert steps[0][-2:] == ["fitted, 60% to the text", "fitted, 30% to the text"]
    assert steps[1] == [*steps[0][:-2], "fitted, 100% to the text"]


def stop_at(step):
    def stop(*arguments, **_):
        if step == 0 or arguments[2].global_step == step:
            raise KeyboardInterrupt

    return stop


def test_rows_that_got_worse_are_not_kept(pair, tmp_path, monkeypatch):
    def spoil(rows, *_):
        return torch.full_like(rows, 3.0)

    monkeypatch.setattr(module, "calibrate", spoil)
    facts, _ = run(pair, tmp_path / "out", hidden_rate=30.0, head_epochs=0)
    assert facts["kept"] == "initialised"
    assert "made the text worse" in facts["warnings"][0]
    before, after = (load_file(folder / "model.safetensors") for folder in (pair[1], tmp_path / "out"))
    assert torch.equal(before[INPUT], after[INPUT])


@pytest.mark.parametrize("pair", [True], indirect=True, ids=["tied"])
def test_the_warning_for_a_tied_model_compares_what_it_can_have(pair, tmp_path, monkeypatch):
    """Two matrices that are better than the first rows are no result that got worse."""
    purposes = []

    def track(items, purpose, total):
        purposes.append(purpose)
        return items

    monkeypatch.setattr("lepta.distillation.head.track", track)
    monkeypatch.setattr("lepta.distillation.tie.shared_rows", lambda inputs, *_: torch.full_like(inputs, 3.0))
    facts, _ = run(pair, tmp_path / "out")
    bits = facts["held_out_bits_per_byte"]
    assert bits["calibrated"] < bits["initialised"] and facts["kept"] == "initialised"
    tied = min(value for step, value in bits.items() if step.startswith("one matrix"))
    assert f"({bits['initialised']:.3f} -> {tied:.3f} bits per byte" in facts["warnings"][0]
    measured = [purpose for purpose in purposes if purpose.startswith("measuring")]
    steps = [*(step for step in bits if step not in HEAD_ALONE), "original"]
    assert measured == [f"measuring held-out passages ({step}), batches" for step in steps]


def test_untie_gives_a_head_of_its_own(tiny_tokenizer, tiny_extended, tiny_model_folder, tmp_path):
    original, folder = tiny_model_folder(rows=4000, tied=True, tokenizer=tiny_tokenizer), tmp_path / "initialised"
    folder.mkdir()
    initialise(Checkpoint(original), tiny_extended, folder)
    run((original, folder), tmp_path / "out", untie=True)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert not torch.equal(tensors[HEAD], tensors[INPUT])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    result = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(result.lm_head.weight, tensors[HEAD])
    before = AutoModelForCausalLM.from_pretrained(original)
    ids = torch.tensor(open_tokenizer(original).vocabulary().encode(["The cat sat on the mat."]))
    expected, found = before(input_ids=ids).logits, result(input_ids=ids).logits[..., :4000]
    english = expected.isclose(found, atol=1e-5).all(1)[0]
    assert english.sum() >= 3900, "rows of Cyrillic letters alone have moved"


def test_text_that_is_short_for_the_new_tokens_is_told_before():
    settings = DistillSettings(tokens=1000, occurrences=8, source_share=0.5)
    told = settings.too_short_for(200)
    assert told is not None and "1,000 tokens of text are few for 200 new" in told and "more than 1,600 are" in told
    assert settings.too_short_for(125) is None
    assert "500 tokens of text" in str(settings.model_copy(update={"lora_rank": 4}).too_short_for(125))


@untied
def test_another_model_is_refused(pair, tiny_model_folder, tiny_tokenizer, tiny_extended, tmp_path):
    other = tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer, seed=7)
    with pytest.raises(LeptaError, match=r"is not that of .*before its body was trained"):
        run((other, pair[1]), tmp_path / "body")
    wide = tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer, hidden=64)
    with pytest.raises(LeptaError, match="rows have 64 numbers"):
        run((wide, pair[1]), tmp_path / "width")
    with pytest.raises(LeptaError, match="nothing to learn"):
        run((pair[0], pair[0]), tmp_path / "same")
    with pytest.raises(LeptaError, match=r"layer.* 3.*has 2"):
        run(pair, tmp_path / "layer", layer=3)


def test_passages_that_the_model_cannot_read_are_refused(tiny_tokenizer, tiny_extended, tiny_model_folder, tmp_path):
    original = tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer, context=64)
    folder = tmp_path / "initialised"
    folder.mkdir()
    initialise(Checkpoint(original), tiny_extended, folder)
    with pytest.raises(LeptaError, match=r"passage: .* context of 64"):
        run((original, folder), tmp_path / "out")
    assert list((tmp_path / "out").glob("*.safetensors")) == []


def test_weights_that_are_no_numbers_are_refused(pair, tmp_path):
    original = tmp_path / "original"
    initialised = tmp_path / "initialised"
    for source, target in zip(pair, (original, initialised), strict=True):
        target.mkdir()
        for file in source.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        tensors = load_file(target / "model.safetensors")
        tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
    with pytest.raises(LeptaError, match="has NaN or infinite values"):
        run((original, initialised), tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_result_stands_beside_the_original_on_the_same_passages(pair, tmp_path, monkeypatch):
    measured = []

    def remember(distiller, passages):
        measured.extend(passages)
        return bits_of_original(distiller, passages)

    monkeypatch.setattr(module, "bits_of_original", remember)
    facts, _ = run(pair, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(pair[0])
    nats = size = 0
    for passage in measured:
        ids = torch.from_numpy(passage.old_ids)[None]
        with torch.no_grad():
            nats += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        size += passage.size
    bits, original = facts["passages_beside_original"]
    assert bits == facts["held_out_bits_per_byte"][facts["kept"]]
    assert measured and original == pytest.approx(nats / math.log(2) / size, rel=1e-3)


@pytest.mark.parametrize("option", ["--lora-rank=4", "--head-only"])
def test_dry_run_asks_for_text_of_the_source_language_too(option, pair, tmp_path):
    arguments = ["distill", "--original", str(pair[0]), "--model", str(pair[1]), "--text", "starter:ru/valid"]
    arguments += ["--tokens", "1500", option, "--output", str(tmp_path / "out"), "--dry-run"]
    refused = CliRunner().invoke(app, arguments).exception
    assert isinstance(refused, LeptaError) and "needs text of the language that the model knows" in str(refused)


def test_command_writes_a_folder_with_a_manifest(pair, tmp_path):
    arguments = ["distill", "--original", str(pair[0]), "--model", str(pair[1]), "--text", "starter:ru/valid"]
    arguments += ["--tokens", "1500", "--passage", "200", "--output", str(tmp_path / "out"), "--json"]
    found = CliRunner().invoke(app, arguments, catch_exceptions=False)
    facts = json.loads(found.stdout)
    assert facts["tokens"] >= 1500
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["key"]["settings"]["tokens"] == 1500
    assert manifest["key"]["inputs"].keys() == {"model", "original", "train target"}
    assert manifest["facts"]["held_out_bits_per_byte"] == facts["held_out_bits_per_byte"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| passages of the training text that were put aside, bits per byte (lower is better) |" in card
    assert f"Of 300 new tokens, {facts['tokens_absent']} are in no text that their rows were learned from." in card


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,  # GPT-NeoX's own default is 24,576
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 4000,
    "pad_token_id": None,
}
FUSED = ["gpt2", "gpt_neox", "phi3"]  # query, key and value are one matrix; GPT-2 has it turned round


@pytest.mark.parametrize("family", FUSED)
def test_low_rank_changes_of_fused_matrices_up_to_the_last_layer(family, tiny_tokenizer, tiny_extended, tmp_path):
    original, folder = tmp_path / "original", tmp_path / "initialised"
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(original)
    tiny_tokenizer.save(original)
    folder.mkdir()
    initialise(Checkpoint(original), tiny_extended, folder)
    # GPT-2's head is its embeddings: rows that serve both make a random model worse, and the first ones would be kept.
    _, curve = run((original, folder), tmp_path / "out", english, **LORA | {"layer": 2, "untie": True})
    assert curve[-1]["hidden_distance"] < 0.97 * curve[0]["hidden_distance"]
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "out"))
    changed = {name for name in before if before[name].ndim == 2 and not torch.equal(after[name], before[name])}
    fused = {name for name in before if re.search(r"(c_attn|query_key_value|qkv_proj|c_fc|gate_up_proj)\.weight", name)}
    assert len(fused) >= 2 and fused <= changed
