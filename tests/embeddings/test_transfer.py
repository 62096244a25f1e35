"""The transfer matrix T."""

import copy
from collections import Counter

import numpy as np
import pytest
from scipy import sparse

from lepta.core.errors import LeptaError
from lepta.embeddings.transfer import rows_needed, transfer_matrix
from lepta.vocabulary.families import read_vocabulary
from lepta.vocabulary.tokens import Kind

ROWS = 49_280  # 49,152 padded to a multiple of 128


@pytest.fixture(scope="module")
def holed(smollm2):
    """SmolLM2 with three reserved ids that no token has, and a token after them."""
    spec = copy.deepcopy(smollm2.spec)
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": 49_155, "content": "<late>"})
    return read_vocabulary(spec)


@pytest.fixture(scope="module")
def partial(smollm2):
    """SmolLM2 with new tokens that are no text by themselves, each an end of a chain of merges."""
    spec = copy.deepcopy(smollm2.spec)
    for left, right in [("ĠÐ", "ĠÐ"), ("Ð°", "Ð"), ("Ã", "Ã"), ("ÃÃ", "Ã")]:
        spec["model"]["vocab"][left + right] = len(spec["model"]["vocab"])
        spec["model"]["merges"].append([left, right])
    return read_vocabulary(spec)


def assert_identity(transfer, rows):
    assert transfer.exact.tolist() == list(range(rows))
    assert transfer.matrix.shape == (rows, rows)
    assert (transfer.matrix != _identity(rows)).nnz == 0


def _identity(rows):
    return sparse.eye_array(rows, format="csr")


def test_unchanged_vocabulary_gives_the_identity(old):
    assert_identity(transfer_matrix(old, old, old.size, old.size), old.size)


def test_unchanged_vocabulary_with_holes_and_padding_copies_every_row(holed):
    transfer = transfer_matrix(holed, holed, ROWS, ROWS)
    assert_identity(transfer, ROWS)
    assert (holed.kinds == Kind.HOLE).sum() == 3


def test_two_tokens_with_the_same_bytes_keep_their_own_rows(smollm2):
    spec = copy.deepcopy(smollm2.spec)
    spec["added_tokens"].append(spec["added_tokens"][1] | {"id": 49_152})
    vocabulary = read_vocabulary(spec)
    assert vocabulary.bytes_of[1] == vocabulary.bytes_of[49_152]
    assert transfer_matrix(vocabulary, vocabulary, 49_153, 49_153).exact.tolist() == list(range(49_153))


def test_rows_of_new_tokens_sum_to_one(old, new):
    matrix = transfer_matrix(old, new, old.size, new.size).matrix
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-12)
    assert (matrix.data > 0).all()


def expected_row(old, data):
    split = old.split([data])[0]
    return {token: number / len(split) for token, number in Counter(split).items()}


def row_of(matrix, i):
    part = slice(matrix.indptr[i], matrix.indptr[i + 1])
    return dict(zip(matrix.indices[part].tolist(), matrix.data[part].tolist(), strict=True))


def test_new_tokens_are_the_mean_of_the_old_tokens_that_they_split_into(old, new):
    transfer = transfer_matrix(old, new, old.size, new.size)
    assert (transfer.exact[old.size :] == -1).all()
    repeated = 0
    for i in range(old.size, new.size):
        expected = expected_row(old, new.bytes_of[i])
        assert row_of(transfer.matrix, i) == pytest.approx(expected)
        repeated += len(expected) < len(old.split([new.bytes_of[i]])[0])
    assert repeated > 10  # tokens with the same old token twice are among them, and their weights added up


def test_new_tokens_that_are_no_text_are_mixed_by_their_bytes(old, partial):
    transfer = transfer_matrix(old, partial, old.size, partial.size)
    assert partial.size == old.size + 4
    for i in range(old.size, partial.size):
        with pytest.raises(UnicodeDecodeError):
            partial.bytes_of[i].decode()
        assert row_of(transfer.matrix, i) == pytest.approx(expected_row(old, partial.bytes_of[i]))
    assert list(row_of(transfer.matrix, old.size + 2).values()) == [1.0]  # the same byte twice: one id, all the weight


def test_tokens_that_moved_are_found_by_their_bytes(old, smollm2):
    spec = copy.deepcopy(smollm2.spec)
    vocab = spec["model"]["vocab"]
    vocab["Ġthe"], vocab["Ġof"] = vocab["Ġof"], vocab["Ġthe"]
    moved = read_vocabulary(spec)
    exact = transfer_matrix(old, moved, old.size, old.size).exact
    assert exact[vocab["Ġthe"]] == vocab["Ġof"]
    assert exact[vocab["Ġof"]] == vocab["Ġthe"]
    assert (exact != np.arange(old.size)).sum() == 2


def test_new_special_token_is_mixed_from_its_literal(smollm2, old):
    spec = copy.deepcopy(smollm2.spec)
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": 49_152, "content": "<think>"})
    transfer = transfer_matrix(old, read_vocabulary(spec), old.size, old.size + 1)
    assert transfer.exact[49_152] == -1
    assert row_of(transfer.matrix, 49_152) == pytest.approx(expected_row(old, b"<think>"))


def test_padding_that_the_old_matrix_did_not_have_is_empty(old):
    transfer = transfer_matrix(old, old, old.size, old.size + 5)
    assert np.diff(transfer.matrix.indptr)[-5:].tolist() == [0] * 5
    assert transfer.exact[-5:].tolist() == [-1] * 5
    assert transfer.summary()["empty"] == 5


def test_rows_of_tokens_in_both_vocabularies_are_units(old, new):
    matrix = transfer_matrix(old, new, old.size, new.size).matrix
    assert (matrix[: old.size] != _identity(old.size)).nnz == 0


def test_special_token_that_the_old_matrix_has_no_row_for_is_mixed_from_its_literal(smollm2, old):
    """The layout of Gemma 3 1B."""
    spec = copy.deepcopy(smollm2.spec)
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": 49_152, "content": "<image_soft_token>"})
    beyond = read_vocabulary(spec)
    assert rows_needed(beyond) == old.size == beyond.size - 1
    transfer = transfer_matrix(beyond, beyond, old.size, beyond.size)
    assert transfer.exact.tolist() == [*range(49_152), -1]
    assert transfer.change.moved[49_152] == transfer.change.old_id_of[49_152] == 49_152
    assert row_of(transfer.matrix, 49_152) == pytest.approx(expected_row(old, b"<image_soft_token>"))


def test_summary_counts_rows(old, new):
    summary = transfer_matrix(old, new, old.size, new.size + 8).summary()
    lengths = [len(set(old.split([new.bytes_of[i]])[0])) for i in range(old.size, new.size)]
    assert summary["rows"] == new.size + 8
    assert (summary["exact"], summary["mixed"], summary["empty"]) == (old.size, 2000, 8)
    assert summary["max_fan_in"] == max(lengths)
    assert summary["mean_fan_in"] == pytest.approx(sum(lengths) / len(lengths))


@pytest.mark.parametrize(("old_rows", "new_rows", "which"), [(49_151, 51_152, "old"), (49_152, 51_151, "new")])
def test_more_ids_than_matrix_rows_raises(old, new, old_rows, new_rows, which):
    with pytest.raises(LeptaError, match=rf"{which} tokenizer: ids go up to .* does not belong"):
        transfer_matrix(old, new, old_rows, new_rows)
