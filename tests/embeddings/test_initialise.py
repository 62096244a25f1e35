"""E_new = T E_old."""

import copy
import json

import numpy as np
import pytest
import torch

from lepta.core.errors import LeptaError
from lepta.embeddings.initialise import initialise, initialise_matrix, padded_rows
from lepta.embeddings.transfer import transfer_matrix
from lepta.models.folder import Checkpoint
from lepta.models.load import load_model
from lepta.vocabulary.families import read_vocabulary
from lepta.vocabulary.source import open_tokenizer
from lepta.vocabulary.tokens import Kind

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ROWS = 49_280


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


def random_rows(rows, dtype, width=8):
    return torch.randn((rows, width), generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.fixture(scope="module")
def holed(smollm2):
    """SmolLM2 with three reserved ids that no token has, and a token after them."""
    spec = copy.deepcopy(smollm2.spec)
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": 49_155, "content": "<late>"})
    return read_vocabulary(spec)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unchanged_vocabulary_gives_every_row_bit_for_bit(holed, dtype):
    """Text, partial UTF-8, special tokens, holes and padding alike; negative zero too."""
    matrix = random_rows(ROWS, dtype)
    matrix[holed.split([b" the"])[0][0]] = -0.0
    result = initialise_matrix(transfer_matrix(holed, holed, ROWS, ROWS), matrix).whole()
    assert result.dtype == dtype
    assert torch.equal(bits(result), bits(matrix))
    assert (holed.kinds == Kind.HOLE).any()
    assert (holed.kinds == Kind.SPECIAL).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_new_rows_are_means_rounded_once(old, new, dtype):
    matrix = random_rows(old.size, dtype)
    result = initialise_matrix(transfer_matrix(old, new, old.size, new.size), matrix).whole()
    assert torch.equal(bits(result[: old.size]), bits(matrix))
    splits = old.split([new.bytes_of[i] for i in range(old.size, new.size)])
    exact = torch.stack([matrix[split].double().mean(dim=0) for split in splits])
    difference = (result[old.size :].double() - exact).abs()
    one_rounding = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-15  # the mean itself is rounded to float64
    assert (difference <= one_rounding * 1.0001).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_rows_get_the_mean_of_all_old_rows(old, dtype):
    matrix = random_rows(old.size, dtype)
    result = initialise_matrix(transfer_matrix(old, old, old.size, old.size + 3), matrix).whole()
    mean = matrix.double().mean(dim=0).to(dtype)
    assert torch.equal(result[old.size :], mean.expand(3, -1))


def test_initialise_matrix_leaves_its_input_alone(old, new):
    matrix = random_rows(old.size, torch.float32)
    before = matrix.clone()
    initialise_matrix(transfer_matrix(old, new, old.size, new.size + 1), matrix).whole()
    assert torch.equal(matrix, before)


@pytest.mark.parametrize(
    ("source_rows", "source_size", "new_size", "pad_to", "rows"),
    [
        (49_152, 49_152, 51_152, None, 51_152),  # not padded before, not padded after
        (50_304, 50_257, 60_001, None, 60_032),  # 50,304 is a multiple of 128
        (151_936, 151_669, 160_000, None, 160_000),
        (32_768, 32_000, 40_001, None, 40_192),  # a multiple of far more than 256: padded to 256
        (49_152, 49_152, 51_152, 128, 51_200),
        (49_152, 49_152, 51_200, 128, 51_200),
        (50_304, 50_257, 60_001, 1, 60_001),
        (151_936, 151_669, 151_669, None, 151_936),  # the same size: as many rows, though 151,680 are enough
        (151_936, 151_669, 151_669, 128, 151_680),
        (262_144, 262_145, 262_145, None, 262_145),
        (262_144, 262_145, 270_001, None, 270_001),  # a special token without a row is no padding
    ],
)
def test_padded_rows(source_rows, source_size, new_size, pad_to, rows):
    assert padded_rows(source_rows, source_size, new_size, pad_to) == rows


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_initialise_folder_extends_every_embedding_matrix(tiny_model_folder, extended, old, new, tmp_path, tied):
    source = Checkpoint(tiny_model_folder(tied=tied))
    facts = initialise(source, extended, tmp_path)
    result = Checkpoint(tmp_path)
    assert result.tied == tied
    assert facts["new_rows"] == result.rows == new.size
    assert facts["old_rows"] == old.size
    transfer = transfer_matrix(old, new, old.size, new.size)
    for name in source.embedding_names:
        assert torch.equal(result.load(name), initialise_matrix(transfer, source.load(name)).whole())
    assert open_tokenizer(tmp_path).spec == extended.spec


def test_logits_of_old_tokens_do_not_change(tiny_model_folder, extended, tmp_path):
    """Text without new tokens gives the same logits before and after."""
    from transformers import AutoModelForCausalLM

    source = tiny_model_folder(tied=False)
    initialise(Checkpoint(source), extended, tmp_path, pad_to=64)
    ids = torch.tensor([[1, 504, 2338, 260, 49_000]])
    before, after = (AutoModelForCausalLM.from_pretrained(f).eval()(ids).logits for f in (source, tmp_path))
    assert after.shape[-1] == -(-51_152 // 64) * 64
    np.testing.assert_allclose(after[..., :49_152].detach(), before.detach(), atol=1e-6)


def test_head_equal_to_the_embeddings_is_kept_where_no_flag_ties_them(tiny_model_folder, extended, tmp_path):
    """Llama has no tied head unless its config says so: transformers would draw the one that was left out."""
    from safetensors.torch import load_file, save_file

    source = tiny_model_folder()
    config = json.loads((source / "config.json").read_text())
    del config["tie_word_embeddings"]
    (source / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    initialise(Checkpoint(source), extended, tmp_path)
    ids = torch.tensor([[1, 504, 2338, 260, 49_000]])
    before, after = (load_model(folder, torch.float32)(ids).logits.detach() for folder in (source, tmp_path))
    np.testing.assert_allclose(after[..., :49_152], before, atol=1e-6)


def test_model_with_a_second_table_of_tokens_is_refused(tiny_model_folder, tiny_tokenizer, tiny_extended, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer)
    table = {"model.token_embedder.weight": torch.ones(4000, 8)}
    save_file(load_file(folder / "model.safetensors") | table, folder / "model.safetensors")
    with pytest.raises(LeptaError, match=r"token_embedder\.weight has a row for each token too"):
        initialise(Checkpoint(folder), tiny_extended, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_of_another_model_raises(tiny_model_folder, smollm2, extended, tmp_path):
    folder = tiny_model_folder(rows=49_100)
    with pytest.raises(LeptaError, match="old tokenizer: ids go up to 49151"):
        initialise(Checkpoint(folder), extended, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pad_to", [0, 10**9])
def test_padding_that_no_matrix_has_is_refused(pad_to):
    with pytest.raises(LeptaError, match=f"pad_to {pad_to}: expected"):
        padded_rows(4000, 4000, 4300, pad_to)
