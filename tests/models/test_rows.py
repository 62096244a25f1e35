"""Matrices a few rows at a time."""

import pytest
import torch

from lepta.models.rows import ComputedRows, StoredRows, blocks, same_values


@pytest.fixture
def stored(tmp_path):
    """Three rows, and behind them the bytes of another tensor."""
    file = tmp_path / "rows"
    file.write_bytes(torch.arange(10, dtype=torch.float32).numpy().tobytes())
    return StoredRows(file, 0, (3, 2), torch.float32)


def test_stored_rows_are_read_by_range_and_by_index(stored):
    assert stored[1:9].tolist() == [[2, 3], [4, 5]]
    assert stored[torch.tensor([2, 0, 1])].tolist() == [[4, 5], [0, 1], [2, 3]]
    assert stored[torch.tensor([], dtype=torch.int64)].shape == (0, 2)


@pytest.mark.parametrize("index", [[3], [0, 1, 2, 3], [-1, 0]])
def test_rows_outside_a_stored_matrix_are_refused(stored, index):
    with pytest.raises(IndexError, match="of a matrix of 3"):
        stored[torch.tensor(index)]


def test_single_number_is_one_row():
    assert list(blocks(())) == [slice(0, 1)]
    number = ComputedRows.of(torch.tensor(0.5))
    assert number.shape == ()
    assert number.whole().tolist() == [0.5]


def test_same_values_do_not_depend_on_dtypes():
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert same_values(rows, rows.bfloat16())
    assert not same_values(rows, rows + 1)
    assert not same_values(rows, rows[:1])
    assert same_values(rows, rows * torch.tensor([[1], [2]]), first=1)
