"""Learned Embedding Propagation (paper 2.2): carry trained embeddings from the base model into an instruct variant.

    X_result = X_adapted W          X in {input embeddings, output embeddings}

`swap`         W = identity
`overlap`      least squares on tokens in both vocabularies:   X_base[C] W  ~  X_instruct[C]
`conversion`   least squares on all new tokens, through T:      (T X_base) W  ~  (T X_instruct)
`ridge`        overlap drawn towards the identity, as strongly as predicts tokens left out of the fit best; swap and
               overlap are its limits
`procrustes`   the rotation among all W that fits conversion's rows best
`delta`        no map: each new row moves as the old rows that it is a mix of,  X_adapted + T (X_instruct - X_base)

The least-squares problems are  min || U X_base W - U X_instruct ||  for a sparse U (T, or T restricted to shared
tokens), whose normal equations need U only as S = U'U, an (old x old) sparse matrix. We solve for D = W - I:

    (X_base' S X_base + strength I) D = X_base' S (X_instruct - X_base)

A variant equal to the base then gives D = 0 exactly, and where the rows leave a direction undetermined, W leaves it
unchanged instead of erasing it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy import linalg, sparse

from lepta.embeddings.transfer import Transfer
from lepta.errors import LeptaError

Method = Literal["swap", "overlap", "conversion", "ridge", "procrustes", "delta"]
METHODS: tuple[Method, ...] = get_args(Method)

BLOCK = 16_384  # rows at a time: 0.5 GB of float64 at width 4,096
RANK_TOLERANCE = 1e-10  # eigenvalues of the normal equations below this share of the largest count as zero
# Strengths that ridge chooses from, in units of the mean eigenvalue of the normal equations.
STRENGTHS = [0.0, *(10.0**power for power in np.arange(-5, 3.1, 0.5))]
HELD_OUT_SHARE, FEWEST_HELD_OUT = 0.1, 10


@dataclass(frozen=True)
class Propagation:
    """How rows of an adapted base model become rows of the variant, with what is known of the fit.

    Attributes
    ----------
    method : str
    offset : float64 array, shape (d, d), or None
        D = W - I; None stands for W = I.
    delta : tuple or None
        T, the base and the variant's matrix, for method `delta`.
    rows : int
        Rows that the fit had.
    rank : int
        Rank of the normal equations.
    condition : float
        Largest over smallest kept eigenvalue of the normal equations.
    strength : float
        How strongly W was drawn towards the identity, in units of the mean eigenvalue.
    residual_swap, residual : float
        Relative error || U X_base W - U X_instruct || / || U X_instruct || with W = I and with the fitted W.
    """

    method: Method
    offset: np.ndarray | None
    delta: tuple[sparse.csr_array, torch.Tensor, torch.Tensor] | None = None
    rows: int = 0
    rank: int = 0
    condition: float = 1.0
    strength: float = 0.0
    residual_swap: float = 0.0
    residual: float = 0.0

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """Propagate embedding rows, shape (new rows, d), any floating dtype; computed in blocks of float64."""
        if self.delta:
            matrix, base, instruct = self.delta
            parts = []
            for block in _blocks(len(rows)):
                change = torch.from_numpy(_weighted(matrix[block], instruct, base))
                parts.append((rows[block].to(torch.float64) + change).to(rows.dtype))
            return torch.cat(parts)
        if self.offset is None:
            return rows.clone()
        offset = torch.from_numpy(self.offset)
        blocks = [block + block @ offset for block in (part.to(torch.float64) for part in rows.split(BLOCK))]
        return torch.cat([block.to(rows.dtype) for block in blocks])

    def summary(self) -> dict[str, Any]:
        """The fit as numbers for a manifest; `distance` is the mean change of a direction, || D || / sqrt(d)."""
        distance = 0.0 if self.offset is None else float(np.linalg.norm(self.offset) / np.sqrt(len(self.offset)))
        return {
            "method": self.method,
            "rows": self.rows,
            "rank": self.rank,
            "condition": self.condition,
            "strength": self.strength,
            "residual_swap": self.residual_swap,
            "residual": self.residual,
            "distance_from_identity": distance,
        }


def fit_map(method: Method, transfer: Transfer, base: torch.Tensor, instruct: torch.Tensor) -> Propagation:
    """Fit the step from the base model's embedding space to the instruct variant's.

    Parameters
    ----------
    method : {"swap", "overlap", "conversion", "ridge", "procrustes", "delta"}
    transfer : Transfer
        T from the old vocabulary (of `base` and `instruct`) to the new one.
    base, instruct : tensors, shape (old rows, d)
        The same matrix (input or output embeddings) of both models, any floating dtype.

    Raises
    ------
    LeptaError
        If the shapes differ, values are not finite, or too few tokens are shared for the method.
    """
    _check(method, transfer, base, instruct)
    if method == "swap":
        return Propagation("swap", None)
    if method == "delta":
        return Propagation("delta", None, (transfer.matrix, base, instruct), rows=transfer.matrix.shape[0])
    if method == "ridge":
        return _fitted(
            "ridge", moments_of(transfer.overlap, base, instruct), HeldOut(transfer, base, instruct).strength
        )
    return _fitted(method, moments_of(transfer.overlap if method == "overlap" else transfer.matrix, base, instruct))


def _check(method: Method, transfer: Transfer, base: torch.Tensor, instruct: torch.Tensor) -> None:
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
    if method == "overlap" and not (transfer.exact >= 0).any():
        raise LeptaError(f"method {method!r}: the two vocabularies share no token; use conversion or swap")


@dataclass(frozen=True)
class Moments:
    """All that least squares needs to know of its rows U, with X = X_base and C = X_instruct - X_base.

    Attributes
    ----------
    gram : float64 array, shape (d, d)
        X' U'U X.
    cross : float64 array, shape (d, d)
        X' U'U C.
    change, target : float
        || U C ||^2 and || U X_instruct ||^2.
    rows : int
        Rows of U that are not empty.
    """

    gram: np.ndarray
    cross: np.ndarray
    change: float
    target: float
    rows: int

    @cached_property
    def spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues of `gram` that count, ascending, and their vectors in columns."""
        eigenvalues, eigenvectors = linalg.eigh(self.gram)
        kept = eigenvalues > max(RANK_TOLERANCE * eigenvalues[-1], 0.0)
        return eigenvalues[kept], eigenvectors[:, kept]

    def solve(self, strength: float = 0.0) -> np.ndarray:
        """D of least squares, drawn towards 0 by `strength` mean eigenvalues; 0 where the rows leave it open."""
        eigenvalues, basis = self.spectrum
        if not len(eigenvalues):
            return np.zeros_like(self.gram)
        return basis @ ((basis.T @ self.cross) / (eigenvalues + strength * eigenvalues.mean())[:, None])

    def rotation(self) -> np.ndarray:
        """D of the rotation W that fits best: W = U V' where X'S(X + C) = U s V'."""
        left, _, right = linalg.svd(self.gram + self.cross)
        return left @ right - np.eye(len(self.gram))

    def error(self, offset: np.ndarray | None) -> float:
        """Relative error of W = I + D on these rows: || U (X D - C) ||^2 = <D, G D> - 2 <D, X'SC> + || U C ||^2."""
        squared = self.change
        if offset is not None:
            squared += float(np.sum(offset * (self.gram @ offset)) - 2 * np.sum(offset * self.cross))
        return float(np.sqrt(max(squared, 0.0) / max(self.target, np.finfo(float).tiny)))


def moments_of(rows: sparse.csr_array, base: torch.Tensor, instruct: torch.Tensor) -> Moments:
    """Sum up the rows U in blocks of float64, reading S = U'U block by block.

    Parameters
    ----------
    rows : scipy CSR array, shape (any, old rows)
        U; empty rows do not count.
    base, instruct : tensors, shape (old rows, d)
    """
    weights = sparse.csr_array(rows.T @ rows)
    width = base.shape[1]
    gram, cross = np.zeros((width, width)), np.zeros((width, width))
    target = changed = 0.0
    for block in _blocks(base.shape[0]):
        x, change = _float64(base[block]), _float64(instruct[block]) - _float64(base[block])
        weighted_x, weighted_change = _weighted(weights[block], base), _weighted(weights[block], instruct, base)
        gram += x.T @ weighted_x
        cross += x.T @ weighted_change
        changed += float(np.sum(change * weighted_change))
        target += float(np.sum((x + change) * (weighted_x + weighted_change)))
    number = int((np.diff(rows.indptr) > 0).sum())
    return Moments((gram + gram.T) / 2, cross, max(changed, 0.0), target, number)


def _fitted(method: Method, moments: Moments, strength: float = 0.0) -> Propagation:
    eigenvalues, _ = moments.spectrum
    offset = moments.rotation() if method == "procrustes" and moments.change else moments.solve(strength)
    return Propagation(
        method=method,
        offset=offset,
        rows=moments.rows,
        rank=len(eigenvalues),
        condition=float(eigenvalues[-1] / eigenvalues[0]) if len(eigenvalues) else 1.0,
        strength=strength,
        residual_swap=moments.error(None),
        residual=moments.error(offset),
    )


class HeldOut:
    """Tokens in both vocabularies that are left out of the fit, to see how well a method predicts them.

    Rows of T that a held-out token has a part in are left out too. The choice is the same in every run.

    Parameters
    ----------
    transfer : Transfer
    base, instruct : tensors, shape (old rows, d)
    stand_ins : scipy CSR array, shape (old rows, old rows), optional
        What each old token would be mixed of if it were new; needed to judge `delta`.

    Raises
    ------
    LeptaError
        If too few tokens are shared.
    """

    def __init__(
        self,
        transfer: Transfer,
        base: torch.Tensor,
        instruct: torch.Tensor,
        stand_ins: sparse.csr_array | None = None,
    ) -> None:
        shared = np.unique(transfer.exact[transfer.exact >= 0])
        if stand_ins is not None:  # bytes and special tokens have none: they can never be new
            shared = shared[stand_ins.diagonal()[shared] == 0]
        number = int(len(shared) * HELD_OUT_SHARE)
        if number < FEWEST_HELD_OUT:
            raise LeptaError(
                f"the two vocabularies share {len(shared)} tokens, too few to hold some out; use conversion or swap"
            )
        self.tokens = np.sort(np.random.default_rng(0).permutation(shared)[:number])
        self._matrices, self._stand_ins = (base, instruct), stand_ins
        width = base.shape[0]
        unit = sparse.csr_array((np.ones(number), (np.arange(number), self.tokens)), shape=(number, width))
        self.moments = moments_of(unit, base, instruct)
        held = np.zeros(width)
        held[self.tokens] = 1
        free = sparse.diags_array((transfer.matrix @ held == 0).astype(np.float64))
        self._conversion = moments_of(sparse.csr_array(free @ transfer.matrix), base, instruct)
        self._overlap = moments_of(sparse.csr_array(free @ transfer.overlap), base, instruct)

    @cached_property
    def strength(self) -> float:
        """The strength with which ridge predicts the held-out tokens best."""
        return min(STRENGTHS, key=lambda strength: self.moments.error(self._overlap.solve(strength)))

    def errors(self) -> dict[Method, float]:
        """Relative error of each method on the held-out tokens; `delta` only if it can be judged."""
        errors: dict[Method, float] = {
            "swap": self.moments.error(None),
            "overlap": self.moments.error(self._overlap.solve()),
            "conversion": self.moments.error(self._conversion.solve()),
            "ridge": self.moments.error(self._overlap.solve(self.strength)),
            "procrustes": self.moments.error(self._conversion.rotation()),
        }
        if self._stand_ins is not None:
            base, instruct = self._matrices
            index = torch.from_numpy(self.tokens)
            moved = _float64(base[index]) + _weighted(self._stand_ins[self.tokens], instruct, base)
            target = _float64(instruct[index])
            errors["delta"] = float(np.linalg.norm(moved - target) / max(np.linalg.norm(target), np.finfo(float).tiny))
        return errors


def choose_map(
    transfer: Transfer, base: torch.Tensor, instruct: torch.Tensor, stand_ins: sparse.csr_array | None = None
) -> tuple[Propagation, dict[Method, float]]:
    """Fit the method that predicts held-out tokens best (the first in the list of methods if several do).

    Returns
    -------
    Propagation
        Fitted on all rows.
    dict
        Method -> relative error on the held-out tokens.
    """
    _check("conversion", transfer, base, instruct)
    held_out = HeldOut(transfer, base, instruct, stand_ins)
    errors = held_out.errors()
    best = min(errors, key=lambda method: errors[method])
    if best == "ridge":
        return _fitted("ridge", moments_of(transfer.overlap, base, instruct), held_out.strength), errors
    return fit_map(best, transfer, base, instruct), errors


def _blocks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, BLOCK):
        yield slice(start, min(start + BLOCK, rows))


def _float64(rows: torch.Tensor) -> np.ndarray:
    return rows.to(torch.float64).numpy()


def _weighted(weights: sparse.csr_array, matrix: torch.Tensor, minus: torch.Tensor | None = None) -> np.ndarray:
    """A block of sparse rows times a matrix (or a difference of two), reading only the rows that the block touches."""
    used, columns = np.unique(weights.indices, return_inverse=True)
    index = torch.from_numpy(used)
    values = _float64(matrix[index]) if minus is None else _float64(matrix[index]) - _float64(minus[index])
    compact = sparse.csr_array((weights.data, columns, weights.indptr), shape=(weights.shape[0], len(used)))
    return compact @ values
