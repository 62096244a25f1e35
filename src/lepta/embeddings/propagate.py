"""Learned Embedding Propagation (paper 2.2): carry trained embeddings from the base model into an instruct variant.

    X_result = X_adapted W          X in {input embeddings, output embeddings}

`swap`         W = identity
`overlap`      least squares on tokens in both vocabularies:   X_base[C] W  ~  X_instruct[C]
`conversion`   least squares on all new tokens, through T:      (T X_base) W  ~  (T X_instruct)

Both least-squares problems are  min || U X_base W - U X_instruct ||  for a sparse U (T, or T restricted to shared
tokens), whose normal equations need U only as S = U'U, an (old x old) sparse matrix. We solve for D = W - I:

    (X_base' S X_base) D = X_base' S (X_instruct - X_base)

A variant equal to the base then gives D = 0 exactly, and where the rows leave a direction undetermined, W leaves it
unchanged instead of erasing it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from scipy import linalg, sparse

from lepta.embeddings.transfer import Transfer
from lepta.errors import LeptaError

Method = Literal["swap", "overlap", "conversion"]
METHODS: tuple[Method, ...] = get_args(Method)

BLOCK = 16_384  # rows at a time: 0.5 GB of float64 at width 4,096
RANK_TOLERANCE = 1e-10  # eigenvalues of the normal equations below this share of the largest count as zero


@dataclass(frozen=True)
class LinearMap:
    """A d x d map between two embedding spaces, with what is known of its fit.

    Attributes
    ----------
    offset : float64 array, shape (d, d), or None
        D = W - I; None stands for W = I.
    rows : int
        Rows that the fit had.
    rank : int
        Rank of the normal equations.
    condition : float
        Largest over smallest kept eigenvalue of the normal equations.
    residual_swap, residual : float
        Relative error || U X_base W - U X_instruct || / || U X_instruct || with W = I and with the fitted W.
    """

    method: Method
    offset: np.ndarray | None
    rows: int = 0
    rank: int = 0
    condition: float = 1.0
    residual_swap: float = 0.0
    residual: float = 0.0

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """Map embedding rows, shape (n, d), any floating dtype; computed in blocks of float64."""
        if self.offset is None:
            return rows.clone()
        offset = torch.from_numpy(self.offset)
        blocks = [block + block @ offset for block in (part.to(torch.float64) for part in rows.split(BLOCK))]
        return torch.cat([block.to(rows.dtype) for block in blocks])

    def summary(self) -> dict[str, float | int | str]:
        """The fit as numbers for a manifest; `distance` is the mean change of a direction, || D || / sqrt(d)."""
        distance = 0.0 if self.offset is None else float(np.linalg.norm(self.offset) / np.sqrt(len(self.offset)))
        return {
            "method": self.method,
            "rows": self.rows,
            "rank": self.rank,
            "condition": self.condition,
            "residual_swap": self.residual_swap,
            "residual": self.residual,
            "distance_from_identity": distance,
        }


def fit_map(method: Method, transfer: Transfer, base: torch.Tensor, instruct: torch.Tensor) -> LinearMap:
    """Fit W from the base model's embedding space to the instruct variant's.

    Parameters
    ----------
    method : {"swap", "overlap", "conversion"}
    transfer : Transfer
        T from the old vocabulary (of `base` and `instruct`) to the new one.
    base, instruct : tensors, shape (old rows, d)
        The same matrix (input or output embeddings) of both models, any floating dtype.

    Raises
    ------
    LeptaError
        If the shapes differ, values are not finite, or no token is shared and the method needs some.
    """
    if method not in METHODS:
        raise LeptaError(f"method {method!r}: unknown; known are {', '.join(METHODS)}")
    if base.shape != instruct.shape or base.shape[0] != transfer.matrix.shape[1]:
        raise LeptaError(
            f"base embeddings {tuple(base.shape)}, instruct embeddings {tuple(instruct.shape)}, transfer matrix "
            f"{transfer.matrix.shape}: expected the same old vocabulary and width in all three"
        )
    for name, matrix in (("base", base), ("instruct", instruct)):
        if not torch.isfinite(matrix).all():
            raise LeptaError(f"{name} embeddings: NaN or infinite values; the checkpoint is damaged")
    if method == "swap":
        return LinearMap("swap", None)
    rows = transfer.overlap if method == "overlap" else transfer.matrix
    number = int((np.diff(rows.indptr) > 0).sum())
    if not number:
        raise LeptaError(f"method {method!r}: the two vocabularies share no token; use conversion or swap")
    return _least_squares(method, sparse.csr_array(rows.T @ rows), number, base, instruct)


def _least_squares(
    method: Method, weights: sparse.csr_array, number: int, base: torch.Tensor, instruct: torch.Tensor
) -> LinearMap:
    """Solve the normal equations for D = W - I, with S = `weights`."""
    width = base.shape[1]
    gram, cross = np.zeros((width, width)), np.zeros((width, width))
    target_norm = change_norm = 0.0
    for rows in _blocks(base.shape[0]):
        x, change = _float64(base[rows]), _float64(instruct[rows]) - _float64(base[rows])
        weighted_x, weighted_change = _weighted(weights[rows], base, None), _weighted(weights[rows], instruct, base)
        gram += x.T @ weighted_x
        cross += x.T @ weighted_change
        change_norm += float(np.sum(change * weighted_change))
        target_norm += float(np.sum((x + change) * (weighted_x + weighted_change)))
    gram = (gram + gram.T) / 2
    eigenvalues, eigenvectors = linalg.eigh(gram)
    kept = eigenvalues > max(RANK_TOLERANCE * eigenvalues[-1], 0.0)
    basis = eigenvectors[:, kept]
    offset = basis @ ((basis.T @ cross) / eigenvalues[kept][:, None])
    # || U(X_b D - C) ||^2 = <D, G D> - 2 <D, X_b'SC> + <C, SC>, with C = X_instruct - X_base
    squared = float(np.sum(offset * (gram @ offset)) - 2 * np.sum(offset * cross) + change_norm)
    scale = max(target_norm, np.finfo(float).tiny)
    return LinearMap(
        method=method,
        offset=offset,
        rows=number,
        rank=int(kept.sum()),
        condition=float(eigenvalues[-1] / eigenvalues[kept][0]) if kept.any() else 1.0,
        residual_swap=float(np.sqrt(change_norm / scale)),
        residual=float(np.sqrt(max(squared, 0.0) / scale)),
    )


def _blocks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, BLOCK):
        yield slice(start, min(start + BLOCK, rows))


def _float64(rows: torch.Tensor) -> np.ndarray:
    return rows.to(torch.float64).numpy()


def _weighted(weights: sparse.csr_array, matrix: torch.Tensor, minus: torch.Tensor | None) -> np.ndarray:
    """A block of rows of S times a matrix (or a difference of two), reading only the rows that the block touches."""
    used, columns = np.unique(weights.indices, return_inverse=True)
    index = torch.from_numpy(used)
    values = _float64(matrix[index]) if minus is None else _float64(matrix[index]) - _float64(minus[index])
    compact = sparse.csr_array((weights.data, columns, weights.indptr), shape=(weights.shape[0], len(used)))
    return compact @ values
