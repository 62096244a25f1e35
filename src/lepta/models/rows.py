"""Matrices with a row for each token, a few rows at a time: read from a checkpoint, or computed as they are written.

The embeddings of an 8B model take 1 GB and those of a 70B model 2 GB, each of them several times in one propagation;
none is ever held whole.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from scipy import sparse

from lepta.core.errors import LeptaError

BLOCK_BYTES = 1 << 26  # of a block in float32; matrix products are as fast as with larger ones
LENGTHS_FROM = 8192  # rows that a mean length is taken from


class Rows(Protocol):
    """What a matrix is to those who read it; a `torch.Tensor` is one too."""

    @property
    def shape(self) -> torch.Size | tuple[int, ...]:
        """Rows and, if the rows are vectors, columns."""

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype."""

    def __getitem__(self, rows: slice | torch.Tensor, /) -> torch.Tensor:
        """Rows of a range (step 1) or of an index."""


@dataclass(frozen=True)
class StoredRows:
    """A matrix in a file, at `start`; rows are read when they are asked for.

    The file is not mapped: pages of a mapped file count as memory of the process.
    """

    file: Path
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __getitem__(self, rows: slice | torch.Tensor, /) -> torch.Tensor:
        """See `Rows`; IndexError for an index outside, as of a tensor: behind a matrix lies the next one."""
        if isinstance(rows, slice):
            first, last, _ = rows.indices(self.shape[0])
            runs = [(first, max(last - first, 0))]
        else:
            runs = self._runs(rows.numpy())
        result = torch.empty((sum(length for _, length in runs), *self.shape[1:]), dtype=self.dtype)
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        buffer = result.view(torch.uint8).numpy().reshape(-1).data if result.numel() else memoryview(b"")
        with self.file.open("rb", buffering=0) as data:
            for first, length in runs:
                view, buffer = buffer[: length * row_bytes], buffer[length * row_bytes :]
                data.seek(self.start + first * row_bytes)
                while view:
                    read = data.readinto(view)
                    if not read:
                        raise LeptaError(f"{self.file}: shorter than its header says; copy or download it again")
                    view = view[read:]
        return result

    def _runs(self, index: np.ndarray) -> list[tuple[int, int]]:
        """First row and length of each run of neighbours in an index: a run takes one read."""
        if not len(index):
            return []
        if index.min() < 0 or index.max() >= self.shape[0]:
            raise IndexError(f"rows {index.min()} to {index.max()} of a matrix of {self.shape[0]}")
        runs = np.split(index, np.flatnonzero(np.diff(index) != 1) + 1)
        return [(int(run[0]), len(run)) for run in runs]


@dataclass(frozen=True)
class ComputedRows:
    """A matrix that comes into being a block of rows at a time: `rows` is called for each block once, in order."""

    shape: tuple[int, ...]
    rows: Callable[[slice], torch.Tensor]

    @staticmethod
    def of(matrix: torch.Tensor) -> "ComputedRows":
        """A matrix that is in memory already."""
        return ComputedRows(tuple(matrix.shape), torch.atleast_1d(matrix).__getitem__)

    def blocks(self) -> Iterator[torch.Tensor]:
        """All rows, in order."""
        return map(self.rows, blocks(self.shape))

    def whole(self) -> torch.Tensor:
        """All rows at once."""
        return torch.cat(list(self.blocks()))


def with_parts(stored: Rows, parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> ComputedRows:
    """A matrix, in float32, with other rows in some places: of each part its ids, ascending, and its rows."""

    def block(rows: slice) -> torch.Tensor:
        result = stored[rows].float()
        for ids, part in parts:
            first, last = torch.searchsorted(ids, torch.tensor([rows.start, rows.stop])).tolist()
            result[ids[first:last] - rows.start] = part[first:last].float()
        return result

    return ComputedRows(tuple(stored.shape), block)


def blocks(shape: tuple[int, ...] | torch.Size) -> Iterator[slice]:
    """Ranges of rows that take about `BLOCK_BYTES` each in float32; a single number is one row."""
    length = max(1, BLOCK_BYTES // (4 * max(1, math.prod(shape[1:]))))
    end = math.prod(shape[:1])
    for start in range(0, end, length):
        yield slice(start, min(start + length, end))


def same_values(one: Rows, other: Rows, first: int | None = None) -> bool:
    """Tell whether two matrices hold the same numbers, whatever their dtypes; in the `first` rows only if given."""
    if tuple(one.shape) != tuple(other.shape):
        return False
    shape = (min(first or one.shape[0], one.shape[0]), *one.shape[1:])
    return all(torch.equal(one[block].float(), other[block].float()) for block in blocks(shape))


def all_finite(matrix: Rows) -> bool:
    """Tell whether a matrix holds neither NaN nor infinite values."""
    return all(finite(matrix[block]) for block in blocks(matrix.shape))


def finite(rows: torch.Tensor) -> bool:
    """Tell whether rows hold neither NaN nor infinite values."""
    low, high = torch.aminmax(rows)  # NaN is passed on; a tenth of the time of isfinite() on bfloat16
    return bool(torch.isfinite(low) and torch.isfinite(high))


def precision(matrix: Rows) -> torch.dtype:
    """What products of a matrix are computed in: float32, unless it is float64 itself."""
    return torch.promote_types(matrix.dtype, torch.float32)


def gather(rows: np.ndarray, matrix: Rows, minus: Rows | None = None) -> torch.Tensor:
    """Rows of a matrix, or of the difference of two, in the precision of its products."""
    index = torch.from_numpy(rows)
    values = matrix[index].to(precision(matrix))
    return values if minus is None else values - minus[index].to(values.dtype)


def mix(weights: sparse.csr_array, matrix: Rows, minus: Rows | None = None) -> torch.Tensor:
    """Multiply sparse float64 rows by a matrix, or by the difference of two, and sum in float64.

    Only rows that have a weight are read.
    """
    used, columns = np.unique(weights.indices, return_inverse=True)
    values = gather(used, matrix, minus)
    compact = sparse.csr_array((weights.data, columns, weights.indptr), shape=(weights.shape[0], len(used)))
    return torch.from_numpy(compact @ values.numpy())


def mean_row(matrix: Rows) -> torch.Tensor:
    """The mean of all rows, shape (d,), float64."""
    total = sum(matrix[rows].to(torch.float64).sum(dim=0) for rows in blocks(matrix.shape))
    return torch.as_tensor(total) / matrix.shape[0]


def mean_length(matrix: Rows) -> float:
    """Mean Euclidean length of rows; of a large matrix, of up to 8,192 rows that lie evenly in it."""
    step = -(-matrix.shape[0] // LENGTHS_FROM)
    rows = matrix[torch.arange(0, matrix.shape[0], step)].float()
    return float(rows.norm(dim=1).mean())
