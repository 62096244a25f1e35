"""LEP on folders."""

import copy
from dataclasses import replace

import pytest
import torch

from lepta.checkpoints.folder import Checkpoint
from lepta.embeddings.initialise import initialise
from lepta.embeddings.propagate import METHODS, fit_map
from lepta.embeddings.transfer import transfer_matrix
from lepta.embeddings.variant import propagate
from lepta.errors import LeptaError
from lepta.vocabulary.source import open_tokenizer

ROWS, SPECIALS = 4000, 17


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def family(request, tiny_model_folder, tiny_tokenizer, tiny_extended, tmp_path_factory):
    """Base, adapted base and instruct variant, all with different embeddings."""
    base = tiny_model_folder(rows=ROWS, tied=request.param, seed=0, tokenizer=tiny_tokenizer)
    initialised = tmp_path_factory.mktemp("initialised")
    initialise(
        Checkpoint(tiny_model_folder(rows=ROWS, tied=request.param, seed=1, tokenizer=tiny_tokenizer)),
        tiny_extended,
        initialised,
    )
    instruct = tiny_model_folder(rows=ROWS, tied=request.param, seed=2, tokenizer=tiny_tokenizer)
    return tuple(map(Checkpoint, (base, initialised, instruct)))


@pytest.mark.parametrize("method", METHODS)
def test_special_rows_keep_the_values_of_the_variant_bit_for_bit(family, method, tmp_path):
    base, adapted, instruct = family
    facts = propagate(base, adapted, instruct, method, tmp_path)
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
    propagate(base, adapted, instruct, method, tmp_path)
    result, transfer = (
        Checkpoint(tmp_path),
        transfer_matrix(tiny_tokenizer.vocabulary(), tiny_extended.vocabulary(), base.rows, adapted.rows),
    )
    for name in result.embedding_names:
        expected = fit_map(method, transfer, base.load(name), instruct.load(name)).apply(adapted.load(name))
        assert torch.equal(result.load(name)[SPECIALS:], expected[SPECIALS:])


@pytest.mark.parametrize("method", METHODS)
def test_base_as_its_own_variant_gives_the_adapted_rows_except_specials(family, method, tmp_path):
    base, adapted, _ = family
    propagate(base, adapted, base, method, tmp_path)
    result = Checkpoint(tmp_path)
    for name in result.embedding_names:
        assert torch.equal(result.load(name)[SPECIALS:], adapted.load(name)[SPECIALS:])


def test_body_is_that_of_the_variant(family, tmp_path):
    base, adapted, instruct = family
    propagate(base, adapted, instruct, "conversion", tmp_path)
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
    propagate(*map(Checkpoint, (base, adapted, instruct)), "swap", result)
    tokenizer = open_tokenizer(result)
    assert tokenizer.spec == tiny_extended.spec
    assert tokenizer.config["eos_token"] == "<|endoftext|>"
    assert tokenizer.chat_template == "{{ messages[0] }}"


def test_result_loads_in_transformers(family, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, adapted, instruct = family
    propagate(base, adapted, instruct, "overlap", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)("Привет, мир", return_tensors="pt")["input_ids"]
    assert model(ids).logits.shape == (1, ids.shape[1], adapted.rows)
    assert torch.isfinite(model(ids).logits).all()


def test_other_width_raises_naming_all_folders(family, tiny_model_folder, tiny_tokenizer, tmp_path):
    base, adapted, instruct = family
    wide = tiny_model_folder(rows=ROWS, tied=instruct.tied, hidden=64, tokenizer=tiny_tokenizer)
    with pytest.raises(LeptaError, match=f"widths differ.*instruct 64 .*{wide.name}"):
        propagate(base, adapted, Checkpoint(wide), "swap", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_number_of_rows_raises_naming_the_folder(family, tiny_model_folder, tiny_tokenizer, tmp_path):
    base, adapted, instruct = family
    padded = tiny_model_folder(rows=4096, tied=instruct.tied, tokenizer=tiny_tokenizer)
    with pytest.raises(LeptaError, match=f"{padded.name}: 4096 embedding rows"):
        propagate(base, adapted, Checkpoint(padded), "conversion", tmp_path)


def test_other_vocabulary_raises_naming_folder_and_first_id(family, tiny_model_folder, tiny_tokenizer, tmp_path):
    base, adapted, instruct = family
    spec = copy.deepcopy(tiny_tokenizer.spec)
    vocab = spec["model"]["vocab"]
    first = min(vocab["Ġthe"], vocab["Ġof"])
    vocab["Ġthe"], vocab["Ġof"] = vocab["Ġof"], vocab["Ġthe"]
    other = tiny_model_folder(rows=ROWS, tied=instruct.tied, tokenizer=replace(tiny_tokenizer, spec=spec))
    with pytest.raises(LeptaError, match=f"{other.name}: id {first} is .*own vocabulary"):
        propagate(base, adapted, Checkpoint(other), "conversion", tmp_path)


def test_tied_and_untied_do_not_mix(family, tiny_model_folder, tiny_tokenizer, tmp_path):
    base, adapted, instruct = family
    other = tiny_model_folder(rows=ROWS, tied=not instruct.tied, tokenizer=tiny_tokenizer)
    with pytest.raises(LeptaError, match="tie input and output"):
        propagate(base, adapted, Checkpoint(other), "conversion", tmp_path)
