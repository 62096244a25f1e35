"""Adapted models without their bodies."""

import hashlib
import json

import pytest
import torch

from lepta.core.errors import LeptaError
from lepta.embeddings.initialise import initialise
from lepta.embeddings.patch import PATCH, ROWS, apply_patch, export_patch, tensor_hashes
from lepta.models.folder import Checkpoint
from lepta.models.rows import ComputedRows
from lepta.models.write import write_model
from lepta.vocabulary.source import open_tokenizer

SIZE = 4000
WIDTH = 32


@pytest.fixture(scope="module", params=[(True, "50GB"), (False, "60KB")], ids=["tied", "untied-sharded"])
def models(request, tiny_model_folder, tiny_tokenizer, tiny_extended, tmp_path_factory):
    """A model, and the same with new tokens whose rows were trained (the first 50 rows too)."""
    tied, shard = request.param
    original = Checkpoint(tiny_model_folder(rows=SIZE, tied=tied, tokenizer=tiny_tokenizer, max_shard_size=shard))
    initialised, trained = (tmp_path_factory.mktemp(name) for name in ("initialised", "trained"))
    initialise(original, tiny_extended, initialised)
    model = Checkpoint(initialised)
    matrices = {}
    for name in model.embedding_names:
        rows = model.load(name)
        rows[SIZE:] += 0.5
        rows[:50] -= 0.0  # -0.0 == 0.0 and other bits
        rows[7] = -0.0
        matrices[name] = ComputedRows.of(rows)
    write_model(model, matrices, tiny_extended, trained)
    (trained / "generation_config.json").write_text(json.dumps({"temperature": 0.3, "eos_token_id": [2, 5]}))
    return original, Checkpoint(trained)


@pytest.fixture
def patch(models, tmp_path):
    folder = tmp_path / "patch"
    folder.mkdir()
    export_patch(*models, folder)
    return folder


def test_applied_patch_gives_the_adapted_model(models, patch, tmp_path):
    original, adapted = models
    result = tmp_path / "result"
    result.mkdir()
    apply_patch(patch, original, result)
    assert tensor_hashes(Checkpoint(result)) == tensor_hashes(adapted)
    assert open_tokenizer(result) == open_tokenizer(adapted.folder).__class__(
        **vars(open_tokenizer(adapted.folder)) | {"origin": str(result)}
    )
    for name in ("config.json", "generation_config.json"):
        assert (result / name).read_bytes() == (adapted.folder / name).read_bytes()


def test_patch_carries_only_rows_that_the_original_does_not_have(models, tmp_path):
    original, adapted = models
    facts = export_patch(original, adapted, tmp_path)
    new = adapted.rows - SIZE
    assert set(facts["rows_carried"].values()) == {new + 1}
    carried = (new + 1) * WIDTH * 4 * len(adapted.embedding_names)
    assert (tmp_path / ROWS).stat().st_size < carried + 8 * adapted.rows + 8 * 2 * (new + 1) + 2000


def test_another_model_is_refused_by_its_hash(models, patch, tiny_model_folder, tiny_tokenizer, tmp_path):
    other = Checkpoint(tiny_model_folder(rows=SIZE, tied=models[0].tied, seed=5, tokenizer=tiny_tokenizer))
    with pytest.raises(LeptaError, match=f"{other.folder}: tensor .* is not that of the model that the patch"):
        apply_patch(patch, other, tmp_path / "result")
    assert not (tmp_path / "result").exists()


def test_other_body_is_no_patch(models, tiny_extended, tmp_path):
    original, adapted = models
    name = "model.layers.0.mlp.up_proj.weight"
    moved = {name: ComputedRows.of(adapted.load(name) + 1)}
    for folder in (tmp_path / "moved", tmp_path / "patch"):
        folder.mkdir()
    write_model(adapted, moved, tiny_extended, tmp_path / "moved")
    with pytest.raises(LeptaError, match=f"moved: tensor {name} is not that of .* carries embeddings only"):
        export_patch(original, Checkpoint(tmp_path / "moved"), tmp_path / "patch")
    assert list((tmp_path / "patch").iterdir()) == []


def test_models_in_the_wrong_order_are_no_patch(models, tmp_path):
    original, adapted = models
    with pytest.raises(LeptaError, match="nothing to carry; are original and adapted swapped"):
        export_patch(original, original, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert adapted.rows > original.rows


def test_damaged_patches_are_refused(models, patch, tmp_path):
    original, _ = models
    result = tmp_path / "result"
    result.mkdir()
    whole = (patch / ROWS).read_bytes()
    (patch / ROWS).write_bytes(whole[:-40] + bytes(40))
    with pytest.raises(LeptaError, match=f"{ROWS}: not as {PATCH} says it was exported"):
        apply_patch(patch, original, result)
    (patch / ROWS).write_bytes(whole[:-40])
    with pytest.raises(LeptaError, match=f"{ROWS}: not as {PATCH} says"):
        apply_patch(patch, original, result)
    content = json.loads((patch / PATCH).read_text())
    (patch / PATCH).write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(LeptaError, match="format: input should be 2"):
        apply_patch(patch, original, result)
    (patch / PATCH).unlink()
    with pytest.raises(LeptaError, match=f"no {PATCH} in it"):
        apply_patch(patch, original, result)


def test_hashes_do_not_depend_on_the_files_tensors_lie_in(tiny_model_folder, tiny_tokenizer):
    one, many = (
        Checkpoint(tiny_model_folder(rows=SIZE, tokenizer=tiny_tokenizer, max_shard_size=size))
        for size in ("50GB", "60KB")
    )
    assert len(many.shards()) > len(one.shards()) == 1
    assert tensor_hashes(one) == tensor_hashes(many)


def test_head_of_its_own_comes_with_the_patch(tiny_model_folder, tiny_tokenizer, tiny_extended, tmp_path):
    original = Checkpoint(tiny_model_folder(rows=SIZE, tied=True, tokenizer=tiny_tokenizer))
    for name in ("initialised", "untied", "patch", "result"):
        (tmp_path / name).mkdir()
    initialise(original, tiny_extended, tmp_path / "initialised")
    model = Checkpoint(tmp_path / "initialised")
    head = {"lm_head.weight": ComputedRows.of(torch.randn(model.rows, WIDTH))}
    write_model(model, head, tiny_extended, tmp_path / "untied", untie=True)
    adapted = Checkpoint(tmp_path / "untied")
    export_patch(original, adapted, tmp_path / "patch")
    apply_patch(tmp_path / "patch", original, tmp_path / "result")
    assert tensor_hashes(Checkpoint(tmp_path / "result")) == tensor_hashes(adapted)


def test_bias_of_the_logits_comes_with_the_patch(tiny_tokenizer, tiny_extended, tmp_path):
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = PhiForCausalLM(PhiConfig(vocab_size=SIZE, **shape))
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(tmp_path / "original")
    tiny_tokenizer.save(tmp_path / "original")
    for name in ("adapted", "patch", "result"):
        (tmp_path / name).mkdir()
    original = Checkpoint(tmp_path / "original")
    initialise(original, tiny_extended, tmp_path / "adapted")
    adapted = Checkpoint(tmp_path / "adapted")
    facts = export_patch(original, adapted, tmp_path / "patch")
    assert facts["rows_carried"]["lm_head.bias"] == adapted.rows - SIZE
    apply_patch(tmp_path / "patch", original, tmp_path / "result")
    assert tensor_hashes(Checkpoint(tmp_path / "result")) == tensor_hashes(adapted)


def test_small_files_of_a_patch_are_known_by_their_hashes(models, patch, tmp_path):
    config = json.loads((patch / "config.json").read_text())
    (patch / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.py"}}))
    with pytest.raises(LeptaError, match=r"config\.json: not as patch\.json says"):
        apply_patch(patch, models[0], tmp_path / "result")


def test_patch_never_brings_code_back(models, patch, tmp_path):
    """Whoever writes a patch writes its hashes too."""
    config = json.loads((patch / "config.json").read_text())
    (patch / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.py"}}))
    content = json.loads((patch / PATCH).read_text())
    content["files"]["config.json"] = hashlib.sha256((patch / "config.json").read_bytes()).hexdigest()
    (patch / PATCH).write_text(json.dumps(content))
    result = tmp_path / "result"
    result.mkdir()
    apply_patch(patch, models[0], result)
    assert json.loads((result / "config.json").read_text()) == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": 10**12}, "rows: input should be less than"),
        ({"rows": SIZE}, r"rows is 4,000, expected 4,\d{3} by"),
        ({"rows": "7"}, "rows: "),
        ({"matrices": {"model.embed_tokens.weight": "nothing"}}, "(names nothing|after: not)"),
        ({"matrices": []}, "matrices: "),
        ({"format": 1}, "format: "),
    ],
)
def test_patch_with_other_fields_is_refused(models, patch, tmp_path, change, words):
    content = json.loads((patch / PATCH).read_text())
    (patch / PATCH).write_text(json.dumps(content | change))
    (tmp_path / "result").mkdir()
    with pytest.raises(LeptaError, match=rf"patch\.json: .*{words}"):
        apply_patch(patch, models[0], tmp_path / "result")
