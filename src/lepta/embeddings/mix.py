"""Sparse rows times the rows of large matrices, reading only what they touch."""

import numpy as np
import torch
from scipy import sparse

from lepta.models.rows import Rows, blocks

LENGTHS_FROM = 8192  # rows that a mean length is taken from


def precision(matrix: Rows) -> torch.dtype:
    """What products of a matrix are computed in: float32, unless it is float64 itself."""
    return torch.float64 if matrix.dtype == torch.float64 else torch.float32


def gather(rows: np.ndarray | slice, matrix: Rows, minus: Rows | None = None) -> torch.Tensor:
    """Rows of a matrix, or of the difference of two, in the precision of its products."""
    index = rows if isinstance(rows, slice) else torch.from_numpy(rows)
    values = matrix[index].to(precision(matrix))
    return values if minus is None else values - minus[index].to(values.dtype)


def mix(weights: sparse.csr_array, matrix: Rows, minus: Rows | None = None) -> torch.Tensor:
    """Multiply sparse rows by a matrix, or by the difference of two, summing in float64.

    Parameters
    ----------
    weights : scipy CSR array, float64, shape (n, rows of the matrix)
    matrix, minus : Rows, shape (rows, d)

    Returns
    -------
    tensor, shape (n, d), float64
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
