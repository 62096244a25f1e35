"""LEP on folders."""

import copy
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lepta.core.errors import LeptaError
from lepta.embeddings.initialise import initialise
from lepta.embeddings.maps import ANCHORED, METHODS, MapFitter
from lepta.embeddings.propagate import count_tokens, propagate
from lepta.embeddings.transfer import stand_in_rows, transfer_matrix
from lepta.models.folder import Checkpoint
from lepta.models.rows import ComputedRows
from lepta.models.write import write_model
from lepta.vocabulary.source import open_tokenizer
from lepta.vocabulary.tokenizer_json import add_special_tokens, around
from lepta.vocabulary.tokens import Kind

ROWS, SPECIALS = 4000, 17


def retrained(base, other, folder):
    """The base model with the embeddings of another one."""
    base, other = Checkpoint(base), Checkpoint(other)
    matrices = {name: ComputedRows.of(other.load(name)) for name in base.embedding_names}
    write_model(base, matrices, open_tokenizer(base.folder), folder)
    return Checkpoint(folder)


@pytest.fixture(scope="module")
def make_family(tiny_model_folder, tiny_tokenizer, tiny_extended, tmp_path_factory):
    """Make base, adapted base and instruct variant, all with different embeddings."""

    def make(tied, instruct_tied=None, adapted_tied=None, **options):
        def model(seed, tied=tied):
            return tiny_model_folder(rows=ROWS, tied=tied, seed=seed, tokenizer=tiny_tokenizer, **options)

        base, trained, initialised = model(0), tmp_path_factory.mktemp("trained"), tmp_path_factory.mktemp("init")
        trained = retrained(base, model(1), trained)
        if adapted_tied is False and tied:
            matrices = {"lm_head.weight": ComputedRows.of(Checkpoint(model(3)).load("model.embed_tokens.weight"))}
            untied = tmp_path_factory.mktemp("untied")
            write_model(trained, matrices, tiny_tokenizer, untied, untie=True)
            trained = Checkpoint(untied)
        initialise(trained, tiny_extended, initialised)
        instruct = model(2, tied if instruct_tied is None else instruct_tied)
        return tuple(map(Checkpoint, (base, initialised, instruct)))

    return make


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def family(request, make_family):
    """Base, adapted base and instruct variant, all tied or all untied."""
    return make_family(request.param)


@pytest.mark.parametrize("method", METHODS)
def test_special_rows_keep_the_values_of_the_variant_bit_for_bit(family, method, tmp_path):
    base, adapted, instruct = family
    (facts,) = propagate(base, adapted, [(instruct, tmp_path)], method)
    result = Checkpoint(tmp_path)
    assert facts["special_rows_kept"] == SPECIALS
    assert result.rows == adapted.rows
    assert len(result.embedding_names) == (1 if instruct.tied else 2)
    for name in result.embedding_names:
        assert torch.equal(result.load(name)[:SPECIALS], instruct.load(name)[:SPECIALS])
        assert not torch.equal(result.load(name)[:SPECIALS], adapted.load(name)[:SPECIALS])


@pytest.mark.parametrize("method", METHODS)
def test_other_rows_are_the_mapped_adapted_rows(family, method, tmp_path, tiny_tokenizer, tiny_extended):
    base, adapted, instruct = family
    propagate(base, adapted, [(instruct, tmp_path)], method)
    result, transfer = (
        Checkpoint(tmp_path),
        transfer_matrix(tiny_tokenizer.vocabulary(), tiny_extended.vocabulary(), base.rows, adapted.rows),
    )
    stand_ins = stand_in_rows(tiny_tokenizer.vocabulary(), base.rows) if method in ANCHORED else None
    for name in result.embedding_names:
        fitted = MapFitter(transfer, base.load(name), stand_ins).fit(method, instruct.load(name))
        expected = fitted.apply(adapted.load(name)).whole()
        assert torch.equal(result.load(name)[SPECIALS:], expected[SPECIALS:])


@pytest.mark.parametrize("method", METHODS)
def test_base_as_its_own_variant_gives_the_adapted_rows_except_specials(family, method, tmp_path):
    base, adapted, _ = family
    propagate(base, adapted, [(base, tmp_path)], method)
    result = Checkpoint(tmp_path)
    for name in result.embedding_names:
        assert torch.equal(result.load(name)[SPECIALS:], adapted.load(name)[SPECIALS:])


@pytest.mark.parametrize(("factor", "cure"), [(1.5, None), (2.5, "fewer tokens"), (0.4, "less weight decay")])
def test_rows_of_lengths_that_the_variants_body_does_not_know_are_said(family, factor, cure, tmp_path):
    base, adapted, instruct = family
    grown, result = tmp_path / "grown", tmp_path / "result"
    grown.mkdir()
    result.mkdir()
    matrices = {name: ComputedRows.of(adapted.load(name) * factor) for name in adapted.embedding_names}
    write_model(adapted, matrices, open_tokenizer(adapted.folder), grown)
    (facts,) = propagate(base, Checkpoint(grown), [(instruct, result)], "swap")
    for name in instruct.embedding_names:
        lengths = facts["maps"][name]["row_length"]
        for side, model in (("adapted", Checkpoint(grown)), ("instruct", instruct)):
            assert lengths[side] == pytest.approx(float(model.load(name).norm(dim=1).mean()), rel=1e-5)
    warned = [name for name in instruct.embedding_names if cure]
    assert len(facts["warnings"]) == len(warned)
    for name, warning in zip(warned, facts["warnings"], strict=True):
        assert warning.startswith(f"{name}: ")
        assert cure in warning


def test_body_is_that_of_the_variant(family, tmp_path):
    base, adapted, instruct = family
    propagate(base, adapted, [(instruct, tmp_path)], "conversion")
    result = Checkpoint(tmp_path)
    body = [name for name in instruct.entries if name not in instruct.embedding_names]
    assert set(result.entries) == set(instruct.entries)
    assert len(body) > 10
    assert all(torch.equal(result.load(name), instruct.load(name)) for name in body)


def test_tokenizer_is_new_with_the_template_and_roles_of_the_variant(
    tiny_model_folder, tiny_tokenizer, tiny_extended, tmp_path
):
    other = replace(
        tiny_tokenizer, config=tiny_tokenizer.config | {"eos_token": "<|endoftext|>"}, chat_template="{{ messages[0] }}"
    )
    base = tiny_model_folder(rows=ROWS, tied=True, tokenizer=tiny_tokenizer)
    instruct = tiny_model_folder(rows=ROWS, tied=True, tokenizer=other, seed=2)
    adapted, result = tmp_path / "adapted", tmp_path / "result"
    adapted.mkdir()
    result.mkdir()
    initialise(Checkpoint(base), tiny_extended, adapted)
    propagate(Checkpoint(base), Checkpoint(adapted), [(Checkpoint(instruct), result)], "swap")
    tokenizer = open_tokenizer(result)
    assert tokenizer.spec == tiny_extended.spec
    assert tokenizer.config["eos_token"] == "<|endoftext|>"
    assert tokenizer.chat_template == "{{ messages[0] }}"


@pytest.mark.parametrize("bos", [None, "<|endoftext|>"])
def test_texts_start_as_they_do_in_the_variant(tiny_model_folder, tiny_tokenizer, tiny_extended, tmp_path, bos):
    """Whether a special token is put before texts is a setting of each model, like its chat template."""

    def starting(tokenizer, token):
        first = around({token: tokenizer.spec["model"]["vocab"][token]} if token else {}, {})
        return replace(tokenizer, spec=tokenizer.spec | {"post_processor": first})

    base = tiny_model_folder(rows=ROWS, tokenizer=starting(tiny_tokenizer, "<|im_start|>"))
    instruct = tiny_model_folder(rows=ROWS, tokenizer=starting(tiny_tokenizer, bos), seed=2)
    adapted, result = tmp_path / "adapted", tmp_path / "result"
    adapted.mkdir()
    result.mkdir()
    initialise(Checkpoint(base), starting(tiny_extended, "<|im_start|>"), adapted)
    propagate(Checkpoint(base), Checkpoint(adapted), [(Checkpoint(instruct), result)], "swap")
    before, after = (open_tokenizer(folder).vocabulary().tokenizer for folder in (instruct, result))
    assert after.encode("the cat").ids == before.encode("the cat").ids
    assert (after.encode("the cat").tokens[0] == bos) == (bos is not None)


def test_result_loads_in_transformers(family, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, adapted, instruct = family
    propagate(base, adapted, [(instruct, tmp_path)], "overlap")
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)("Привет, мир", return_tensors="pt")["input_ids"]
    assert model(ids).logits.shape == (1, ids.shape[1], adapted.rows)
    assert torch.isfinite(model(ids).logits).all()


def test_other_width_raises_naming_all_folders(family, tiny_model_folder, tiny_tokenizer, tmp_path):
    base, adapted, instruct = family
    wide = tiny_model_folder(rows=ROWS, tied=instruct.tied, hidden=64, tokenizer=tiny_tokenizer)
    with pytest.raises(LeptaError, match=f"widths differ.*instruct 64 .*{wide.name}"):
        propagate(base, adapted, [(Checkpoint(wide), tmp_path)], "swap")
    assert list(tmp_path.iterdir()) == []


def test_fewer_rows_than_tokens_raise_naming_the_folder(family, tiny_model_folder, tiny_tokenizer, tmp_path):
    base, adapted, _ = family
    short = Checkpoint(tiny_model_folder(rows=3990, tied=base.tied, tokenizer=tiny_tokenizer))
    with pytest.raises(LeptaError, match=f"{short.folder.name}: 3990 embedding rows, but .* needs 4000"):
        propagate(base, adapted, [(short, tmp_path)], "conversion")


@pytest.mark.parametrize("method", METHODS)
def test_variant_without_the_padding_of_its_base_is_taken_whatever_others_there_are(
    family, method, tiny_model_folder, tiny_tokenizer, tiny_extended, tmp_path
):
    _, _, trimmed = family
    options = {"rows": 4096, "tied": trimmed.tied, "tokenizer": tiny_tokenizer}
    base, padded = (Checkpoint(tiny_model_folder(seed=seed, **options)) for seed in (0, 3))
    folders = [tmp_path / name for name in ("adapted", "a", "b", "alone-a", "alone-b")]
    for folder in folders:
        folder.mkdir()
    initialise(base, tiny_extended, folders[0])
    adapted = Checkpoint(folders[0])
    together = propagate(base, adapted, [(trimmed, folders[1]), (padded, folders[2])], method)
    alone = [propagate(base, adapted, [pair], method)[0] for pair in ((trimmed, folders[3]), (padded, folders[4]))]
    assert together == alone
    for one, other in zip(folders[1:3], folders[3:], strict=True):
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    result = Checkpoint(folders[1])
    assert result.rows == adapted.rows
    for name in result.embedding_names:
        assert torch.equal(result.load(name)[:SPECIALS], trimmed.load(name)[:SPECIALS])
        assert result.load(name).isfinite().all()


def test_other_vocabulary_raises_naming_folder_and_first_id(family, tiny_model_folder, tiny_tokenizer, tmp_path):
    base, adapted, instruct = family
    spec = copy.deepcopy(tiny_tokenizer.spec)
    vocab = spec["model"]["vocab"]
    first = min(vocab["Ġthe"], vocab["Ġof"])
    vocab["Ġthe"], vocab["Ġof"] = vocab["Ġof"], vocab["Ġthe"]
    other = tiny_model_folder(rows=ROWS, tied=instruct.tied, tokenizer=replace(tiny_tokenizer, spec=spec))
    with pytest.raises(LeptaError, match=f"{other.name}: id {first} is .*own vocabulary"):
        propagate(base, adapted, [(Checkpoint(other), tmp_path)], "conversion")


def loaded(folder):
    """The model as transformers loads it, with nothing missing and nothing left over."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def expected_rows(method, family, names, tiny_tokenizer, tiny_extended):
    base, adapted, _ = family
    transfer = transfer_matrix(tiny_tokenizer.vocabulary(), tiny_extended.vocabulary(), base.rows, adapted.rows)
    b, a, i = (model.load(name) for model, name in zip(family, names, strict=True))
    return MapFitter(transfer, b).fit(method, i).apply(a).whole()


def test_tied_base_and_untied_variant_give_an_untied_result(make_family, tiny_tokenizer, tiny_extended, tmp_path):
    family = make_family(tied=True, instruct_tied=False)
    (facts,) = propagate(*family[:2], [(family[2], tmp_path)], "conversion")
    assert set(facts["maps"]) == {"model.embed_tokens.weight", "lm_head.weight"}
    model, embed = loaded(tmp_path), "model.embed_tokens.weight"
    for weight, name in ((model.get_input_embeddings(), embed), (model.get_output_embeddings(), "lm_head.weight")):
        expected = expected_rows("conversion", family, (embed, embed, name), tiny_tokenizer, tiny_extended)
        assert torch.equal(weight.weight[SPECIALS:], expected[SPECIALS:])


def test_adapted_model_with_a_head_of_its_own_unties_the_variant(make_family, tiny_tokenizer, tiny_extended, tmp_path):
    family = make_family(tied=True, adapted_tied=False)
    assert [model.tied for model in family] == [True, False, True]
    propagate(*family[:2], [(family[2], tmp_path)], "conversion")
    model, embed = loaded(tmp_path), "model.embed_tokens.weight"
    assert model.config.tie_word_embeddings is False
    for weight, name in ((model.get_input_embeddings(), embed), (model.get_output_embeddings(), "lm_head.weight")):
        expected = expected_rows("conversion", family, (embed, name, embed), tiny_tokenizer, tiny_extended)
        assert torch.equal(weight.weight[SPECIALS:], expected[SPECIALS:])


def test_tied_variant_of_an_untied_base_raises(make_family, tmp_path):
    base, adapted, instruct = make_family(tied=False, instruct_tied=True)
    with pytest.raises(LeptaError, match=f"{instruct.folder}: ties input and output"):
        propagate(base, adapted, [(instruct, tmp_path)], "conversion")


def test_many_variants_in_one_call_are_the_same_as_one_by_one(make_family, tmp_path):
    base, adapted, first = make_family(tied=False)
    second = make_family(tied=False, dtype=torch.bfloat16)[2]
    folders = [tmp_path / name for name in ("a", "b", "alone-a", "alone-b")]
    for folder in folders:
        folder.mkdir()
    together = propagate(base, adapted, [(first, folders[0]), (second, folders[1])], "conversion")
    alone = [
        propagate(base, adapted, [(v, f)], "conversion")[0] for v, f in zip((first, second), folders[2:], strict=True)
    ]
    assert together == alone
    assert Checkpoint(folders[1]).entries["lm_head.weight"].dtype == "BF16"
    for one, other in zip(folders[:2], folders[2:], strict=True):
        for file in one.iterdir():
            assert file.read_bytes() == (other / file.name).read_bytes(), file


def grown(instruct, tokenizer, tiny_model_folder, tokens, rows):
    """A variant that was given chat tokens of its own behind the base model's, in new rows."""
    own = with_tokens(tokenizer, tokens)
    own = replace(own, config=own.config | {"eos_token": tokens[0]})
    folder = tiny_model_folder(rows=rows, tied=instruct.tied, seed=2, tokenizer=own)
    for name in ("config.json", "generation_config.json"):
        edit(folder / name, eos_token_id=[2, ROWS])
    return Checkpoint(folder)


def with_tokens(tokenizer, tokens, first=ROWS):
    """A tokenizer with more special tokens."""
    added = [
        {"id": first + n, "content": token, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for n, token in enumerate(tokens)
    ]
    return replace(tokenizer, spec=add_special_tokens(tokenizer.spec, added))


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


IMAGE = "<image_soft_token>"
CHAT = ["<|end_of_turn|>", "<|pad_0|>"]


def test_chat_tokens_that_only_the_variant_has_come_along(
    family, tiny_model_folder, tiny_tokenizer, tiny_extended, tmp_path
):
    from transformers import AutoTokenizer

    base, adapted, instruct = family
    variant = grown(instruct, tiny_tokenizer, tiny_model_folder, CHAT, ROWS + 5)
    (facts,) = propagate(base, adapted, [(variant, tmp_path)], "conversion")
    result, size = Checkpoint(tmp_path), tiny_extended.vocabulary().size
    assert facts["added_tokens"] == len(CHAT)
    assert facts["special_rows_kept"] == SPECIALS + len(CHAT)
    assert result.rows == size + len(CHAT)
    for name in result.embedding_names:
        assert torch.equal(result.load(name)[size:], variant.load(name)[ROWS : ROWS + len(CHAT)])
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / name).read_text())["eos_token_id"] == [2, size]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("Привет<|pad_0|><|end_of_turn|>")["input_ids"][-2:] == [size + 1, size]
    assert tokenizer.eos_token_id == size
    assert loaded(tmp_path).get_input_embeddings().weight.shape[0] == result.rows


def test_chat_token_that_the_variant_has_no_row_for_gets_the_mean_row(
    family, tiny_model_folder, tiny_tokenizer, tiny_extended, tmp_path
):
    """Added to its tokenizer alone: behind its matrix lies the next tensor of the file."""
    base, adapted, instruct = family
    variant = grown(instruct, tiny_tokenizer, tiny_model_folder, CHAT, ROWS + 1)
    (facts,) = propagate(base, adapted, [(variant, tmp_path)], "conversion")
    result, size = Checkpoint(tmp_path), tiny_extended.vocabulary().size
    assert facts["added_tokens"] == len(CHAT)
    assert facts["special_rows_kept"] == SPECIALS + 1
    for name in result.embedding_names:
        rows = variant.load(name)
        assert torch.equal(result.load(name)[size], rows[ROWS])
        torch.testing.assert_close(result.load(name)[size + 1], rows.mean(dim=0))


def test_special_token_that_no_model_of_the_family_has_a_row_for(
    tiny_model_folder, tiny_tokenizer, tiny_extended, tmp_path
):
    """The layout of Gemma 3 1B: an image token that only the tokenizer knows."""
    options = {"rows": ROWS, "tokenizer": with_tokens(tiny_tokenizer, [IMAGE]), "tied": True}
    base, instruct = (Checkpoint(tiny_model_folder(seed=seed, **options)) for seed in range(2))
    edit(instruct.folder / "config.json", image_token_id=ROWS)
    adapted, result = tmp_path / "adapted", tmp_path / "result"
    adapted.mkdir()
    result.mkdir()
    place = tiny_extended.vocabulary().size
    initialise(base, with_tokens(tiny_extended, [IMAGE], place), adapted)
    (facts,) = propagate(base, Checkpoint(adapted), [(Checkpoint(instruct.folder), result)], "swap")
    assert facts["special_rows_kept"] == SPECIALS
    assert json.loads((result / "config.json").read_text())["image_token_id"] == place
    before, after = (Checkpoint(folder).load("model.embed_tokens.weight") for folder in (adapted, result))
    assert torch.equal(after[SPECIALS:], before[SPECIALS:])
    assert torch.equal(after[:SPECIALS], instruct.load("model.embed_tokens.weight")[:SPECIALS])


def test_ordinary_tokens_that_only_the_variant_has_raise(family, tiny_model_folder, tiny_tokenizer, tmp_path):
    base, adapted, instruct = family
    spec = copy.deepcopy(tiny_tokenizer.spec)
    spec["model"]["vocab"]["ĠĠzz"] = ROWS
    other = tiny_model_folder(rows=ROWS + 1, tied=instruct.tied, tokenizer=replace(tiny_tokenizer, spec=spec))
    with pytest.raises(LeptaError, match=f"id {ROWS} is .*only special tokens may come on top"):
        propagate(base, adapted, [(Checkpoint(other), tmp_path)], "swap")


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_changes_of_the_body_are_added_to_the_variant(make_family, tiny_model_folder, tiny_tokenizer, tmp_path, scale):
    base, adapted, instruct = make_family(tied=True)
    name, (changed, result) = "model.layers.1.mlp.up_proj.weight", (tmp_path / "changed", tmp_path / "result")
    changed.mkdir()
    result.mkdir()
    trained = {name: ComputedRows.of(adapted.load(name) + 0.25)}
    write_model(adapted, trained, open_tokenizer(adapted.folder), changed)
    adapted = Checkpoint(changed)
    with pytest.raises(LeptaError, match=rf"changed: not only the embeddings differ.*{name} does too.*`body_delta`"):
        propagate(base, adapted, [(instruct, result)], "swap")
    assert list(result.iterdir()) == []
    (facts,) = propagate(base, adapted, [(instruct, result)], "swap", body_deltas=[scale])
    assert facts["body_tensors_changed"] == 1
    torch.testing.assert_close(Checkpoint(result).load(name), instruct.load(name) + 0.25 * scale)
    others = set(base.entries) - {name, *base.embedding_names}
    assert all(torch.equal(Checkpoint(result).load(other), instruct.load(other)) for other in others)


@pytest.mark.parametrize("method", ["swap", "delta"])
def test_the_change_of_the_embeddings_is_carried_over_so_many_times(make_family, tmp_path, method):
    base, adapted, instruct = make_family(tied=True)
    name = base.input_name
    written = []
    for scale in (0.0, 0.5, 1.0):
        folder = tmp_path / str(scale)
        folder.mkdir()
        propagate(base, adapted, [(instruct, folder)], method, delta_scales=[scale])
        written.append(Checkpoint(folder).load(name))
    torch.testing.assert_close(written[1], (written[0] + written[2]) / 2)
    old, new = (open_tokenizer(model.folder).vocabulary() for model in (base, adapted))
    matrix = transfer_matrix(old, new, base.rows, adapted.rows).matrix
    start = base if method == "swap" else instruct  # nothing of training: what either would start from
    moved = torch.from_numpy(matrix @ start.load(name).double().numpy()).float()
    rows = torch.from_numpy(np.flatnonzero(new.kinds == Kind.TEXT))
    torch.testing.assert_close(written[0][rows], moved[rows], rtol=1e-4, atol=1e-6)
    whole = tmp_path / "whole"
    whole.mkdir()
    propagate(base, adapted, [(instruct, whole)], method)
    assert torch.equal(Checkpoint(whole).load(name), written[2])


def with_tensors(checkpoint, tensors, folder):
    """A copy of a model with more tensors in its only file."""
    shutil.copytree(checkpoint.folder, folder)
    save_file(load_file(folder / "model.safetensors") | tensors, folder / "model.safetensors", {"format": "pt"})
    return Checkpoint(folder)


SCALE = "model.layers.0.mlp.up_proj.weight_scale"


@pytest.mark.parametrize(("change", "scale"), [(0.0, None), (0.25, 1.0)])
def test_tensors_of_a_single_number_are_compared_and_moved(make_family, tmp_path, change, scale):
    """Scales of FP8 weights are such."""
    models = [
        with_tensors(model, {SCALE: torch.tensor(value)}, tmp_path / name)
        for model, name, value in zip(make_family(tied=True), "bai", (0.5, 0.5 + change, 2.0), strict=True)
    ]
    result = tmp_path / "result"
    result.mkdir()
    propagate(*models[:2], [(models[2], result)], "swap", body_deltas=[scale])
    moved = Checkpoint(result).load(SCALE)
    assert moved.shape == ()
    assert moved.item() == 2.0 + change


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn], ids=str)
def test_changes_of_a_quantised_body_are_refused_or_left_behind(make_family, tmp_path, dtype):
    name = "model.layers.0.mlp.up_proj.qweight"
    base, adapted, instruct = (
        with_tensors(model, {name: torch.full((8, 8), value).to(dtype)}, tmp_path / part)
        for model, part, value in zip(make_family(tied=True), "bai", (1, 2, 3), strict=True)
    )
    result = tmp_path / "result"
    result.mkdir()
    for scale in (None, 1.0):
        with pytest.raises(LeptaError, match=rf"a: {name} \(.*differs from .* quantised .* `body_delta` 0"):
            propagate(base, adapted, [(instruct, result)], "swap", body_deltas=[scale])
    assert list(result.iterdir()) == []
    propagate(base, adapted, [(instruct, result)], "swap", body_deltas=[0.0])
    assert torch.equal(Checkpoint(result).load(name).float(), torch.full((8, 8), 3.0))


def test_quantised_body_that_did_not_change_is_the_variants_own(make_family, tmp_path):
    name = "model.layers.0.mlp.up_proj.qweight"
    base, adapted, instruct = (
        with_tensors(model, {name: torch.full((8, 8), value, dtype=torch.int32)}, tmp_path / part)
        for model, part, value in zip(make_family(tied=True), "bai", (1, 1, 3), strict=True)
    )
    for scale, folder in ((None, tmp_path / "as-it-is"), (1.0, tmp_path / "moved")):
        folder.mkdir()
        (facts,) = propagate(base, adapted, [(instruct, folder)], "swap", body_deltas=[scale])
        assert facts["body_tensors_changed"] == 0
        assert Checkpoint(folder).load(name).unique().tolist() == [3]


def test_adapted_model_that_is_damaged_is_named_before_anything_is_fitted(family, tmp_path, monkeypatch):
    base, adapted, instruct = family
    name, folder, result = adapted.embedding_names[-1], tmp_path / "damaged", tmp_path / "result"
    result.mkdir()
    rows = adapted.load(name)
    rows[-1, 0] = float("nan")
    damaged = with_tensors(adapted, {name: rows}, folder)
    monkeypatch.setattr("lepta.embeddings.propagate.MapFitter", None)
    with pytest.raises(LeptaError, match=f"{folder}: {name}: NaN or infinite values"):
        propagate(base, damaged, [(instruct, result)], "conversion")


@pytest.mark.parametrize("method", METHODS)
def test_variant_in_a_wider_dtype_is_not_rounded_to_that_of_the_adapted_model(make_family, method, tmp_path):
    base, adapted, _ = make_family(tied=False, dtype=torch.bfloat16)
    instruct = make_family(tied=False)[2]
    propagate(base, adapted, [(instruct, tmp_path)], method)
    result = Checkpoint(tmp_path)
    for name in instruct.embedding_names:
        rows, own = result.load(name), instruct.load(name)
        assert rows.dtype == torch.float32
        assert torch.equal(rows[:SPECIALS], own[:SPECIALS])
        assert torch.equal(rows[SPECIALS:], rows[SPECIALS:].bfloat16().float()) == (method == "swap")


def test_variant_with_a_second_table_of_tokens_is_refused(family, tmp_path):
    base, adapted, instruct = family
    name, result = "model.layers.2.shared_head.head.weight", tmp_path / "result"
    result.mkdir()
    variant = with_tensors(instruct, {name: torch.ones(ROWS, 4)}, tmp_path / "variant")
    with pytest.raises(LeptaError, match=rf"no tensor {re.escape(name)}, which .* has with a row for each token"):
        propagate(base, adapted, [(variant, result)], "swap")
    assert list(result.iterdir()) == []


def test_counts_of_tokens_change_the_fit(family, tiny_extended, tmp_path):
    base, adapted, instruct = family
    counts = count_tokens(tiny_extended.vocabulary(), ["the cat and the dog"] * 1000)
    assert sorted(counts)[-1] >= 1000
    assert len(tiny_extended.vocabulary().encode(["the cat and the dog"])[0]) * 1000 == counts.sum()
    folders = [tmp_path / "plain", tmp_path / "weighed"]
    for folder in folders:
        folder.mkdir()
    (plain,) = propagate(base, adapted, [(instruct, folders[0])], "overlap")
    (weighed,) = propagate(base, adapted, [(instruct, folders[1])], "overlap", token_counts=counts)
    assert plain["maps"] != weighed["maps"]


def test_logit_bias_moves_with_the_tokens_it_is_for(tiny_tokenizer, tiny_extended, tmp_path_factory):
    from transformers import PhiConfig, PhiForCausalLM

    def phi(seed):
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("phi")
        config = PhiConfig(
            vocab_size=ROWS, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
        )
        model = PhiForCausalLM(config)
        torch.nn.init.normal_(model.lm_head.bias)
        model.save_pretrained(folder)
        tiny_tokenizer.save(folder)
        return folder

    base, initialised, result = phi(0), tmp_path_factory.mktemp("init"), tmp_path_factory.mktemp("result")
    initialise(Checkpoint(base), tiny_extended, initialised)
    adapted, instruct = Checkpoint(initialised), Checkpoint(phi(0))
    transfer = transfer_matrix(tiny_tokenizer.vocabulary(), tiny_extended.vocabulary(), ROWS, adapted.rows)
    old = Checkpoint(base).load("lm_head.bias")
    torch.testing.assert_close(
        adapted.load("lm_head.bias"), torch.from_numpy(transfer.matrix @ old.numpy()).float(), rtol=1e-5, atol=1e-6
    )
    propagate(Checkpoint(base), adapted, [(instruct, result)], "conversion")
    assert torch.equal(Checkpoint(result).load("lm_head.bias"), adapted.load("lm_head.bias"))
    loaded(result)


@pytest.mark.parametrize("hard_link", [False, True])
def test_unchanged_files_are_copies_unless_links_are_asked_for(make_family, tmp_path, hard_link):
    base, adapted, instruct = make_family(tied=True, max_shard_size="60KB")
    assert len(instruct.shards()) > 2
    propagate(base, adapted, [(instruct, tmp_path)], "swap", hard_link=hard_link)
    embedding = instruct.entries[instruct.input_name].file
    for shard in instruct.shards():
        copy = tmp_path / shard.name
        assert copy.samefile(shard) == (hard_link and shard != embedding)
        assert (copy.read_bytes() == shard.read_bytes()) == (shard != embedding)
