"""Opening a model folder, and refusing damaged ones."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lepta.core.errors import LeptaError
from lepta.models.folder import INDEX, SINGLE, Checkpoint, read_header


@pytest.fixture(scope="module")
def single_folder(tiny_model_folder, tiny_tokenizer):
    return tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer)


@pytest.fixture(scope="module")
def sharded_folder(tiny_model_folder, tiny_tokenizer):
    return tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer, max_shard_size="300KB")


@pytest.fixture
def single(single_folder, tmp_path):
    """A folder with one weight file that a test may spoil."""
    return shutil.copytree(single_folder, tmp_path / "single")


@pytest.fixture
def sharded(sharded_folder, tmp_path):
    """A folder with several weight files that a test may spoil."""
    return shutil.copytree(sharded_folder, tmp_path / "sharded")


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_tensors_are_those_that_safetensors_reads(single):
    checkpoint, expected = Checkpoint(single), load_file(single / SINGLE)
    assert set(checkpoint.entries) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.load(name), tensor)
        assert checkpoint.entries[name].shape == tuple(tensor.shape)
        assert checkpoint.entries[name].dtype == "F32"


def test_entries_point_at_the_bytes_of_the_tensor(single):
    data, expected = (single / SINGLE).read_bytes(), load_file(single / SINGLE)
    for name, entry in Checkpoint(single).entries.items():
        assert data[entry.start : entry.end] == expected[name].numpy().tobytes()


def test_shards_hold_together_what_a_single_file_holds(single, sharded):
    whole, parts = Checkpoint(single), Checkpoint(sharded)
    assert len(parts.shards()) >= 3
    assert set(parts.entries) == set(whole.entries)
    assert all(torch.equal(parts.load(name), whole.load(name)) for name in whole.entries)


def test_untied_model_has_two_embedding_matrices(single):
    checkpoint = Checkpoint(single)
    assert not checkpoint.tied
    assert checkpoint.embedding_names == ["model.embed_tokens.weight", "lm_head.weight"]
    assert checkpoint.rows == 4000


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("gemma", True)])
def test_equal_head_without_a_flag_is_what_transformers_takes_it_for(family, tied, single):
    from transformers import AutoConfig

    config = json.loads((single / "config.json").read_text())
    del config["tie_word_embeddings"]
    (single / "config.json").write_text(json.dumps(config | {"model_type": family, "head_dim": 8}))
    tensors = load_file(single / SINGLE)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, single / SINGLE)
    assert AutoConfig.from_pretrained(single).tie_word_embeddings == tied
    assert Checkpoint(single).tied == tied


@pytest.mark.parametrize(("family", "tied"), [("llava", True), ("qwen3_vl", False)])
def test_a_flag_inside_a_config_counts_where_it_does_for_transformers(family, tied, single):
    from transformers import AutoConfig

    text = {"vocab_size": 4000, "hidden_size": 32, "tie_word_embeddings": True}
    kinds = {"llava": {"model_type": "llama"}, "qwen3_vl": {"rope_parameters": {"rope_type": "default"}}}
    config = {"model_type": family, "text_config": text | kinds[family]}
    (single / "config.json").write_text(json.dumps(config))
    tensors = load_file(single / SINGLE)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, single / SINGLE)
    assert AutoConfig.from_pretrained(single).tie_word_embeddings == tied
    assert Checkpoint(single).tied == tied


def test_of_a_whole_file_and_an_index_the_file_is_read(single, sharded):
    """As transformers does: such an index is left over."""
    for shard in sharded.glob("model*"):
        shutil.copy(shard, single)
    assert Checkpoint(single).shards() == [single / SINGLE]


@pytest.mark.parametrize("name", ["lm_head.qweight", "language_model.lm_head.weight_packed"])
def test_a_quantised_head_is_refused(name, single):
    tensors = load_file(single / SINGLE)
    tensors[name] = tensors.pop("lm_head.weight").to(torch.int32)
    save_file(tensors, single / SINGLE)
    with pytest.raises(LeptaError, match=rf"{name} is of a head that is quantised, .*; take the model before it was"):
        Checkpoint(single).check_replaceable()


def test_folders_with_an_adapter_are_refused(single):
    (single / "adapter_config.json").write_text("{}")
    with pytest.raises(LeptaError, match=rf"^{single}: holds a PEFT adapter .*merge the adapter first"):
        Checkpoint(single)
    for file in (single / "config.json", single / SINGLE):  # as peft itself saves one
        file.unlink()
    with pytest.raises(LeptaError, match="merge the adapter first"):
        Checkpoint(single)


def test_tied_model_has_one(tiny_model_folder, tiny_tokenizer):
    checkpoint = Checkpoint(tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer, tied=True))
    assert checkpoint.tied
    assert checkpoint.embedding_names == ["model.embed_tokens.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tied_model_with_a_stored_output_matrix_is_still_tied(single, dtype):
    edit(single / "config.json", tie_word_embeddings=True)
    tensors = {name: tensor.bfloat16().float() for name, tensor in load_file(single / SINGLE).items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].to(dtype, copy=True)
    save_file(tensors, single / SINGLE)
    assert Checkpoint(single).embedding_names == ["model.embed_tokens.weight"]


def test_stored_head_that_differs_is_a_head_whatever_the_config_says(single):
    """As transformers takes it."""
    edit(single / "config.json", tie_word_embeddings=True)
    checkpoint = Checkpoint(single)
    assert not checkpoint.tied
    assert checkpoint.embedding_names == ["model.embed_tokens.weight", "lm_head.weight"]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("model.layers.2.shared_head.head.weight", 4000),
        ("model.layers.2.embed_tokens.weight", 4000),
        ("mtp.embed_tokens.weight", 4000),
        ("model.embed_tokens_per_layer.weight", 3000),
    ],
)
def test_tables_of_layers_and_of_prediction_are_known(single, name, rows):
    save_file(load_file(single / SINGLE) | {name: torch.ones(rows, 3)}, single / SINGLE)
    checkpoint = Checkpoint(single)
    checkpoint.check_replaceable()
    assert checkpoint.tables == [name] and checkpoint.input_name == "model.embed_tokens.weight"


def test_other_tables_with_a_row_for_each_token_are_refused(single):
    name = "model.token_embedder.weight"
    Checkpoint(single).check_replaceable()
    save_file(load_file(single / SINGLE) | {name: torch.ones(4000, 3)}, single / SINGLE)
    with pytest.raises(LeptaError, match=rf"model\.safetensors: {name} has a row for each token too"):
        Checkpoint(single).check_replaceable()


def test_a_bias_of_tokens_is_that_of_the_head_or_refused(tiny_model_folder, tiny_tokenizer, tmp_path):
    """A tied head is not in the files, its bias is (Phi)."""
    tied = shutil.copytree(tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer, tied=True), tmp_path / "tied")
    tensors = load_file(tied / SINGLE)
    save_file(tensors | {"lm_head.bias": torch.zeros(4000)}, tied / SINGLE)
    assert Checkpoint(tied).vocabulary_names == ["model.embed_tokens.weight", "lm_head.bias"]
    save_file(tensors | {"decoder.bias": torch.zeros(4000)}, tied / SINGLE)
    with pytest.raises(LeptaError, match=r"decoder\.bias has a row for each token too"):
        Checkpoint(tied).check_replaceable()


def test_a_bias_of_a_layer_is_not_that_of_the_head(single):
    tensors = load_file(single / SINGLE)
    tensors["output.weight"] = tensors.pop("lm_head.weight")
    save_file(tensors | {"model.layers.0.attention.output.bias": torch.zeros(32)}, single / SINGLE)
    checkpoint = Checkpoint(single)
    assert checkpoint.output_name == "output.weight"
    assert checkpoint.bias_name is None


def test_tables_that_are_not_of_tokens_are_none_of_them(single):
    others = {
        "model.embed_positions.weight": torch.ones(4000, 3),  # as many positions as tokens
        "vision.embed_patches.weight": torch.ones(7, 3),
        "model.layers.0.mlp.experts.weight": torch.ones(4000, 3),
    }
    save_file(load_file(single / SINGLE) | others, single / SINGLE)
    Checkpoint(single).check_replaceable()


def test_models_that_need_code_from_their_folder_are_refused(single):
    edit(single / "config.json", auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    Checkpoint(single).check_replaceable()  # transformers has a Llama of its own
    edit(single / "config.json", model_type="x")
    with pytest.raises(LeptaError, match=r"config\.json: model_type x .* auto_map asks to run Python code"):
        Checkpoint(single).check_replaceable()


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_truncated_file_raises(single, kept):
    data = (single / SINGLE).read_bytes()
    length = int(kept * len(data)) if isinstance(kept, float) else kept
    (single / SINGLE).write_bytes(data[:length])
    with pytest.raises(LeptaError, match=r"model\.safetensors: not a whole safetensors file.*again"):
        Checkpoint(single)


def test_truncated_shard_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(LeptaError, match=f"{shard.name}: not a whole safetensors file"):
        Checkpoint(sharded)


def test_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(LeptaError, match=rf"index\.json: names {shard.name}, which is missing"):
        Checkpoint(sharded)


@pytest.mark.parametrize("place", ["../x.safetensors", "absolute", "below/../../x.safetensors"])
def test_shard_outside_the_folder_raises(sharded, tmp_path, place):
    """A file really lies there: it must be refused for its place, not for being absent."""
    first = sorted(sharded.glob("*.safetensors"))[0]
    shutil.copyfile(first, tmp_path / "x.safetensors")
    (sharded / "below").mkdir()
    place = str(tmp_path / "x.safetensors") if place == "absolute" else place
    index = json.loads((sharded / INDEX).read_text())
    edit(sharded / INDEX, weight_map={n: place if f == first.name else f for n, f in index["weight_map"].items()})
    with pytest.raises(LeptaError, match="outside the folder"):
        Checkpoint(sharded)


NAMES = ["null", '"' + "x" * 5_000 + '"', "7", '""']


@pytest.mark.parametrize(
    "content",
    ["{}", '{"weight_map": {}}', '{"weight_map": []}', *(f'{{"weight_map": {{"a": {name}}}}}' for name in NAMES)],
)
def test_index_without_weights_raises(sharded, content):
    (sharded / INDEX).write_text(content)
    with pytest.raises(LeptaError, match=r"index\.json: weight_map[.:] ?") as refused:
        Checkpoint(sharded)
    assert len(str(refused.value)) < 1_000


def test_numbers_of_8_bits_are_not_plain_ones(single):
    tensors = load_file(single / SINGLE)
    name = "model.embed_tokens.weight"
    save_file(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, single / SINGLE)
    with pytest.raises(LeptaError, match=f"{name} is F8_E4M3; expected a floating-point type of 16 bits or more"):
        Checkpoint(single).rows_of(name)


def test_raw_bytes_are_those_of_tensors_of_any_type(single):
    extra = {"whole.qweight": torch.arange(6, dtype=torch.int32).reshape(3, 2), "whole.scale": torch.tensor(0.5)}
    save_file(load_file(single / SINGLE) | extra, single / SINGLE)
    checkpoint = Checkpoint(single)
    for name, tensor in extra.items():
        assert checkpoint.raw(name)[:].numpy().tobytes() == tensor.numpy().tobytes()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickle_is_refused(single, name):
    torch.save(load_file(single / SINGLE), single / name)
    (single / SINGLE).unlink()
    with pytest.raises(LeptaError, match=f"pickle .{name}.*safetensors"):
        Checkpoint(single)


def test_folder_without_weights_raises(single):
    (single / SINGLE).unlink()
    with pytest.raises(LeptaError, match=r"no weights; expected model\.safetensors"):
        Checkpoint(single)


def test_a_checkpoint_of_fsdp_names_the_command_that_makes_a_folder_of_it(single):
    (single / SINGLE).unlink()
    (single / "pytorch_model_fsdp_0").mkdir()
    (single / "pytorch_model_fsdp_0" / "__0_0.distcp").touch()
    with pytest.raises(LeptaError, match=rf"FSDP .*accelerate merge-weights {single}/pytorch_model_fsdp_0 {single}$"):
        Checkpoint(single)


def test_absent_folder_raises(tmp_path):
    with pytest.raises(LeptaError, match="absent: no such file or folder"):
        Checkpoint(tmp_path / "absent")


@pytest.mark.parametrize(("content", "words"), [(None, "no such file"), ("{", "not JSON"), ("[]", "JSON object")])
def test_bad_config_raises(single, content, words):
    (single / "config.json").unlink()
    if content is not None:
        (single / "config.json").write_text(content)
    with pytest.raises(LeptaError, match=rf"config\.json.*{words}"):
        Checkpoint(single)


def test_model_without_input_embeddings_raises(single):
    tensors = load_file(single / SINGLE)
    tensors["other.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, single / SINGLE)
    with pytest.raises(LeptaError, match=r"input embeddings: expected one tensor.*found none"):
        Checkpoint(single)


def test_two_candidates_for_input_embeddings_raise(single):
    tensors = load_file(single / SINGLE)
    tensors["vision.embed_tokens.weight"] = torch.ones(3, 4)
    save_file(tensors, single / SINGLE)
    with pytest.raises(LeptaError, match=r"found .*vision\.embed_tokens\.weight"):
        Checkpoint(single)


def test_header_lists_tensors_in_the_order_of_the_file(single):
    entries = list(read_header(single / SINGLE).values())
    assert [entry.start for entry in entries] == sorted(entry.start for entry in entries)
    assert entries[-1].end == (single / SINGLE).stat().st_size
