"""Writing a model folder with other embeddings."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lepta.core.errors import LeptaError
from lepta.core.output import publishing
from lepta.models.folder import INDEX, SINGLE, Checkpoint
from lepta.models.rows import ComputedRows
from lepta.models.versions import for_all_versions
from lepta.models.write import TokenIds, config_with_rows, write_model

ROWS, NEW_ROWS = 4000, 4100
KINDS = ["single", "sharded"]


@pytest.fixture(scope="module")
def sources(tiny_model_folder, tiny_tokenizer):
    """One model in one file and the same in several."""
    sizes = {"single": "50GB", "sharded": "300KB"}
    return {k: tiny_model_folder(rows=ROWS, tokenizer=tiny_tokenizer, max_shard_size=s) for k, s in sizes.items()}


def replacements(checkpoint, rows=NEW_ROWS):
    generator = torch.Generator().manual_seed(9)
    return {name: torch.randn((rows, 32), generator=generator) for name in checkpoint.embedding_names}


def write(source, matrices, *others, **options):
    write_model(source, {name: ComputedRows.of(matrix) for name, matrix in matrices.items()}, *others, **options)


def raw(checkpoint, name):
    entry = checkpoint.entries[name]
    return entry.file.read_bytes()[entry.start : entry.end]


@pytest.mark.parametrize("kind", KINDS)
def test_unchanged_tensors_are_byte_identical(sources, kind, tiny_tokenizer, tmp_path):
    source = Checkpoint(sources[kind])
    write(source, replacements(source), tiny_tokenizer, tmp_path)
    result = Checkpoint(tmp_path)
    assert set(result.entries) == set(source.entries)
    for name in set(source.entries) - set(source.embedding_names):
        assert raw(result, name) == raw(source, name)
        assert result.entries[name].shape == source.entries[name].shape


@pytest.mark.parametrize("kind", KINDS)
def test_replaced_tensors_are_the_given_ones(sources, kind, tiny_tokenizer, tmp_path):
    source = Checkpoint(sources[kind])
    matrices = replacements(source)
    write(source, matrices, tiny_tokenizer, tmp_path)
    for name, matrix in matrices.items():
        assert torch.equal(Checkpoint(tmp_path).load(name), matrix)


def test_shards_keep_their_names_and_untouched_ones_their_bytes(sources, tiny_tokenizer, tmp_path):
    source = Checkpoint(sources["sharded"])
    write(source, replacements(source), tiny_tokenizer, tmp_path)
    touched = {source.entries[name].file for name in source.embedding_names}
    names = {file.name for file in source.shards()}
    assert {file.name for file in tmp_path.glob("*.safetensors")} == names
    untouched = set(source.shards()) - touched
    assert untouched
    assert all((tmp_path / file.name).read_bytes() == file.read_bytes() for file in untouched)


def test_index_is_rewritten(sources, tiny_tokenizer, tmp_path):
    source = Checkpoint(sources["sharded"])
    write(source, replacements(source), tiny_tokenizer, tmp_path)
    before, after = (json.loads((folder / INDEX).read_text()) for folder in (source.folder, tmp_path))
    assert after["weight_map"] == before["weight_map"]
    stored = sum(t.nbytes for file in tmp_path.glob("*.safetensors") for t in load_file(file).values())
    assert after["metadata"]["total_size"] == stored
    assert stored == before["metadata"]["total_size"] + 2 * (NEW_ROWS - ROWS) * 32 * 4


def test_single_file_gets_no_index(sources, tiny_tokenizer, tmp_path):
    source = Checkpoint(sources["single"])
    write(source, replacements(source), tiny_tokenizer, tmp_path)
    assert [file.name for file in tmp_path.glob("*.safetensors*")] == [SINGLE]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dtype_of_the_source_is_kept(tiny_model_folder, tiny_tokenizer, tmp_path, dtype):
    source = Checkpoint(tiny_model_folder(rows=ROWS, tokenizer=tiny_tokenizer, dtype=dtype))
    matrices = replacements(source)
    write(source, matrices, tiny_tokenizer, tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    for name, matrix in matrices.items():
        assert torch.equal(tensors[name], matrix.to(dtype))


def test_tensors_of_odd_length_stay_readable(sources, tiny_tokenizer, tmp_path):
    """A tensor of single bytes moves all that follow it to odd places."""
    folder = shutil.copytree(sources["single"], tmp_path / "odd")
    tensors = load_file(folder / SINGLE) | {"a.mask": torch.arange(13, dtype=torch.uint8)}
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    (tmp_path / "result").mkdir()
    source = Checkpoint(folder)
    write(source, replacements(source, 4001), tiny_tokenizer, tmp_path / "result")
    result = load_file(tmp_path / "result" / SINGLE)
    assert torch.equal(result["a.mask"], tensors["a.mask"])


def test_config_changes_only_the_vocabulary_size(sources, tiny_tokenizer, tmp_path):
    source = Checkpoint(sources["single"])
    write(source, replacements(source), tiny_tokenizer, tmp_path)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source.folder, tmp_path))
    assert before["vocab_size"] == ROWS
    expected = for_all_versions(before | {"vocab_size": NEW_ROWS})
    assert list(after.items()) == list(expected.items())
    assert [type(value) for value in after.values()] == [type(value) for value in expected.values()]


def test_config_keeps_types_and_its_input_stays():
    config = {"vocab_size": 5, "rope_theta": 10000.0, "eos_token_id": [1, 2], "pad_token_id": None, "use_cache": True}
    changed = config_with_rows(config, 5, 9)
    assert json.dumps(changed) == json.dumps(config).replace('"vocab_size": 5', '"vocab_size": 9')
    assert config["vocab_size"] == 5


def test_config_of_a_multimodal_model_changes_in_its_text_part():
    config = {"text_config": {"vocab_size": 5, "hidden_size": 3}, "image_token_id": 2}
    assert config_with_rows(config, 5, 9) == {"text_config": {"vocab_size": 9, "hidden_size": 3}, "image_token_id": 2}
    assert config["text_config"]["vocab_size"] == 5


def test_text_model_of_any_name_in_a_config_follows_and_others_do_not():
    config = {
        "language_config": {"vocab_size": 5, "hidden_size": 3},
        "talker": {"text_config": {"vocab_size": 5}},
        "vq_config": {"vocab_size": 8},
    }
    before = json.dumps(config)
    assert json.dumps(config_with_rows(config, 5, 9)) == before.replace('"vocab_size": 5', '"vocab_size": 9')
    assert config_with_rows(config, 5, 5) == config
    assert json.dumps(config) == before


def test_config_that_does_not_say_its_vocabulary_size_does_then():
    assert config_with_rows({"text_config": {}}, 5, 9) == {"text_config": {"vocab_size": 9}}
    assert config_with_rows({"hidden_size": 5}, 5, 9) == {"hidden_size": 5, "vocab_size": 9}


def test_token_ids_of_a_config_follow_and_nothing_else():
    config = {
        "bos_token_id": 1,
        "eos_token_id": [2, 5],
        "pad_token_id": None,
        "suppress_token_ids": [1],
        "num_hidden_layers": 2,
        "max_length": 5,
        "text_config": {"eos_token_id": 5, "hidden_size": 1},
    }
    before = json.dumps(config)
    changed = TokenIds({1: 0, 2: 7, 5: 1}, "config.json").fields(config)
    assert changed == {
        "bos_token_id": 0,
        "eos_token_id": [7, 1],
        "pad_token_id": None,
        "suppress_token_ids": [0],
        "num_hidden_layers": 2,
        "max_length": 5,
        "text_config": {"eos_token_id": 1, "hidden_size": 1},
    }
    assert json.dumps(config) == before


def test_words_that_must_not_be_written_follow_and_lost_ones_are_left_out():
    config = {"suppress_tokens": [1, 9, 2], "begin_suppress_tokens": [9], "bad_words_ids": [[1, 2], [2, 9], [2]]}
    assert TokenIds({1: 0, 2: 7}, "generation_config.json").fields(config) == {
        "suppress_tokens": [0, 7],
        "begin_suppress_tokens": None,
        "bad_words_ids": [[0, 7], [7]],
    }
    nothing = {"suppress_tokens": None, "bad_words_ids": None}
    assert TokenIds({}, "generation_config.json").fields(nothing) == nothing


def test_words_that_are_biased_or_must_be_written_follow():
    config = {
        "sequence_bias": [[[1, 2], -2.0], [[2, 9], 5.0], [[2], 1.0]],
        "force_words_ids": [[1, 2], [[2], [1, 1]]],
        "forced_decoder_ids": [[1, 2], [2, None]],
    }
    assert TokenIds({1: 0, 2: 7}, "config").fields(config) == {
        "sequence_bias": [[[0, 7], -2.0], [[7], 1.0]],
        "force_words_ids": [[0, 7], [[7], [0, 0]]],
        "forced_decoder_ids": [[1, 7], [2, None]],
    }
    with pytest.raises(LeptaError, match=r"^config: force_words_ids is 9, a token that the new vocabulary"):
        TokenIds({1: 0}, "config").fields({"force_words_ids": [[1, 9]]})
    with pytest.raises(LeptaError, match=r"^config: sequence_bias: expected ids of tokens"):
        TokenIds({1: 0, 2: 7}, "config").fields({"sequence_bias": {"(1, 2)": 1.0}})


def test_negative_ids_are_no_tokens():
    config = {"pad_token_id": -1, "image_token_index": -200, "eos_token_id": [1, -1]}
    changed = TokenIds({1: 5}, "config.json").fields(config)
    assert changed == {"pad_token_id": -1, "image_token_index": -200, "eos_token_id": [5, -1]}


@pytest.mark.parametrize(
    "config", [{"eos_token_id": 9}, {"eos_token_id": [1, 9]}, {"text_config": {"eos_token_id": 9}}]
)
def test_config_that_names_a_lost_token_raises(config):
    with pytest.raises(LeptaError, match=r"config\.json: eos_token_id is 9, a token that the new vocabulary does not"):
        TokenIds({1: 1}, "config.json").fields(config)


def test_written_configs_name_tokens_by_their_new_ids(sources, tiny_tokenizer, tmp_path):
    source = Checkpoint(sources["single"])
    write(source, replacements(source), tiny_tokenizer, tmp_path, {1: 11, 2: 0})
    for name in ("config.json", "generation_config.json"):
        before, after = (json.loads((folder / name).read_text()) for folder in (source.folder, tmp_path))
        assert (before["bos_token_id"], before["eos_token_id"]) == (1, 2)
        expected = before | {"bos_token_id": 11, "eos_token_id": 0}
        assert after == (for_all_versions(expected | {"vocab_size": NEW_ROWS}) if name == "config.json" else expected)


def test_without_new_ids_configs_keep_theirs(sources, tiny_tokenizer, tmp_path):
    source = Checkpoint(sources["single"])
    write(source, replacements(source), tiny_tokenizer, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 2


def test_lost_token_in_a_config_is_named_with_its_file(sources, tiny_tokenizer, tmp_path):
    source = Checkpoint(sources["single"])
    with pytest.raises(LeptaError, match=r"config\.json: eos_token_id is 2"):
        write(source, replacements(source), tiny_tokenizer, tmp_path, {1: 11})


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_the_result(sources, kind, tiny_tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    source = Checkpoint(sources[kind])
    matrices = replacements(source)
    write(source, matrices, tiny_tokenizer, tmp_path)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(model.get_input_embeddings().weight, matrices[source.input_name])
    assert torch.equal(model.get_output_embeddings().weight, matrices[source.output_name])


def test_generation_settings_and_licence_come_along(sources, tiny_tokenizer, tmp_path):
    folder = shutil.copytree(sources["single"], tmp_path / "source")
    (folder / "LICENSE.txt").write_text("a licence")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).write_text('{"patch_size": 14}')
    (folder / "notes.txt").write_text("not carried")
    (tmp_path / "result").mkdir()
    source = Checkpoint(folder)
    write(source, replacements(source), tiny_tokenizer, tmp_path / "result")
    assert (tmp_path / "result" / "LICENSE.txt").read_text() == "a licence"
    for name in ("preprocessor_config.json", "processor_config.json"):
        assert (tmp_path / "result" / name).read_text() == '{"patch_size": 14}'
    settings = [(place / "generation_config.json").read_bytes() for place in (folder, tmp_path / "result")]
    assert settings[0] == settings[1]
    assert not (tmp_path / "result" / "notes.txt").exists()


def test_config_names_no_python_files(sources, tiny_tokenizer, tmp_path):
    folder = shutil.copytree(sources["single"], tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "configuration_x.X"}}))
    (tmp_path / "result").mkdir()
    write(Checkpoint(folder), {}, tiny_tokenizer, tmp_path / "result")
    assert json.loads((tmp_path / "result" / "config.json").read_text()) == for_all_versions(config)


def test_head_of_its_own_is_kept_where_the_config_says_that_it_is_tied(sources, tiny_tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(sources["single"], tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    (tmp_path / "result").mkdir()
    source = Checkpoint(folder)
    matrices = replacements(source)
    write(source, matrices, tiny_tokenizer, tmp_path / "result")
    assert json.loads((tmp_path / "result" / "config.json").read_text())["tie_word_embeddings"] is False
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "result")
    assert torch.equal(model.get_output_embeddings().weight, matrices["lm_head.weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_values_that_are_not_finite_are_refused_and_nothing_is_left(sources, tiny_tokenizer, tmp_path, value):
    source = Checkpoint(sources["single"])
    matrices = {name: matrix.double() for name, matrix in replacements(source).items()}
    matrices["lm_head.weight"][7, 7] = value
    message = r"lm_head\.weight: NaN or infinite"
    with pytest.raises(LeptaError, match=message), publishing(tmp_path / "result") as folder:
        write(source, matrices, tiny_tokenizer, folder)
    assert list(tmp_path.iterdir()) == []


def test_unknown_tensor_and_unequal_rows_are_refused(sources, tiny_tokenizer, tmp_path):
    source = Checkpoint(sources["single"])
    with pytest.raises(LeptaError, match="no tensor absent"):
        write(source, {"absent": torch.ones(2, 2)}, tiny_tokenizer, tmp_path)
    matrices = replacements(source) | {"lm_head.weight": torch.ones(NEW_ROWS + 1, 32)}
    with pytest.raises(LeptaError, match=r"different numbers of rows \[4100, 4101\]"):
        write(source, matrices, tiny_tokenizer, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_head_that_has_fewer_rows_keeps_fewer(sources, tiny_tokenizer, tmp_path):
    """As Mllama's, whose input embeddings have rows for its image token on top."""
    folder, missing = shutil.copytree(sources["single"], tmp_path / "source"), 8
    tensors = load_file(folder / SINGLE)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-missing].clone()
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    source = Checkpoint(folder)
    assert source.surplus == missing
    matrices = replacements(source)
    with pytest.raises(LeptaError, match="different numbers of rows"):
        write(source, matrices, tiny_tokenizer, tmp_path)
    matrices["lm_head.weight"] = matrices["lm_head.weight"][:-missing]
    (tmp_path / "out").mkdir()
    write(source, matrices, tiny_tokenizer, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == NEW_ROWS - missing
