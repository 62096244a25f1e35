"""Least squares between two large matrices, through normal equations that are summed up a block of rows at a time.

    min || U X W - U Y ||        X = X_base, Y = X_instruct, U sparse: which old rows each equation mixes

needs U only as S = U'U. We solve for the change D = W - I, with C = Y - X:

    (X' S X + strength I) D = X' S C

so a variant equal to the base gives D = 0 exactly, and where the rows leave a direction undetermined, W leaves it
unchanged instead of erasing it. The left side depends on the base alone and serves all its variants.

Products are float32 (float64 for float64 matrices), sums of blocks float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import linalg, sparse

from lepta.core.progress import track
from lepta.models.rows import Rows, blocks, gather, mix

RANK_TOLERANCE = 1e-10  # eigenvalues of the left side below this share of the largest count as zero


@dataclass(frozen=True)
class RightSide:
    """What a variant adds: `cross` = X' S C (d x d, float64), `change` = || U C ||^2 and `target` = || U Y ||^2."""

    cross: np.ndarray
    change: float
    target: float

    def __add__(self, other: "RightSide") -> "RightSide":
        return RightSide(self.cross + other.cross, self.change + other.change, self.target + other.target)


class NormalEquations:
    """Normal equations for some rows U of a least-squares problem, which extend those of `smaller`.

    `rows` are sparse matrices with a column for each row of the base; they are summed up one after the other. An empty
    row is no equation.
    """

    def __init__(self, base: Rows, *rows: sparse.csr_array, smaller: "NormalEquations | None" = None) -> None:
        self._parts = [_Part(some, base) for some in rows]
        self._smaller = smaller

    @cached_property
    def left(self) -> "LeftSide":
        """The base model's side, for all variants."""
        gram, number = self._parts[0].gram(), self._parts[0].number
        for part in self._parts[1:]:
            gram += part.gram()
            number += part.number
        if self._smaller:
            gram += self._smaller.left.gram
            number += self._smaller.left.rows
        return LeftSide(gram, number)

    def right(self, instruct: Rows, known: "dict[NormalEquations, RightSide]") -> RightSide:
        """A variant's side; `known` keeps what has been summed up for this variant."""
        if self not in known:
            sides = [part.right_side(instruct) for part in self._parts]
            if self._smaller:
                sides.append(self._smaller.right(instruct, known))
            known[self] = sum(sides[1:], start=sides[0])
        return known[self]


class _Part:
    """The sums over one set of rows U."""

    def __init__(self, rows: sparse.csr_array, base: Rows) -> None:
        self.number = int((np.diff(rows.indptr) > 0).sum())
        self._base, self._width = base, base.shape[1]
        self._touched = np.unique(rows.indices).astype(np.int64)
        weights = sparse.csr_array(rows.T @ rows)
        self._weights = weights[self._touched]
        # Unit rows, the usual case, make S diagonal, and without weights the identity: plain products are enough then.
        self._diagonal = weights.diagonal()[self._touched] if weights.nnz == len(self._touched) else None
        self._scaled = self._diagonal is not None and bool((self._diagonal != 1).any())

    def gram(self) -> np.ndarray:
        """X' S X, shape (d, d), float64."""
        gram = np.zeros((self._width, self._width))
        for block in self._blocks("base model, blocks of rows"):
            x = gather(self._touched[block], self._base).numpy()
            if self._diagonal is None:
                gram += x.T @ self._weighted(block, x.dtype, self._base)
                continue
            if self._scaled:
                x *= np.sqrt(self._diagonal[block]).astype(x.dtype)[:, None]
            gram += x.T @ x  # symmetric: NumPy computes one half
        return gram

    def right_side(self, instruct: Rows) -> RightSide:
        """The variant's side; `instruct` has the shape of the base matrix."""
        cross = np.zeros((self._width, self._width))
        change = target = 0.0
        for block in self._blocks("variant, blocks of rows"):
            rows = self._touched[block]
            x, y = gather(rows, self._base).numpy(), gather(rows, instruct).numpy()
            c = y - x
            if self._diagonal is None:
                weighted_c = self._weighted(block, x.dtype, instruct, self._base)
                weighted_y = weighted_c + self._weighted(block, x.dtype, self._base)
            elif self._scaled:
                scale = self._diagonal[block].astype(x.dtype)[:, None]
                weighted_c, weighted_y = c * scale, y * scale
            else:
                weighted_c, weighted_y = c, y
            cross += x.T @ weighted_c
            change += _inner(c, weighted_c)
            target += _inner(y, weighted_y)
        return RightSide(cross, max(change, 0.0), target)

    def _blocks(self, what: str) -> Iterator[slice]:
        ranges = list(blocks((len(self._touched), self._width)))
        return track(ranges, f"summing up the {what}", len(ranges))

    def _weighted(self, block: slice, dtype: np.dtype, matrix: Rows, minus: Rows | None = None) -> np.ndarray:
        return mix(self._weights[block], matrix, minus).numpy().astype(dtype)


def _inner(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of products, each row in its own precision, rows in float64."""
    return float(np.einsum("ij,ij->i", a, b).sum(dtype=np.float64))


class LeftSide:
    """The base model's side of `rows` equations, G = X' S X, and what solves them."""

    def __init__(self, gram: np.ndarray, rows: int) -> None:
        self.gram, self.rows = gram, rows
        self.mean_eigenvalue = float(np.trace(gram)) / len(gram)

    @cached_property
    def spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues that count, ascending, and their vectors in columns."""
        eigenvalues, eigenvectors = linalg.eigh(self.gram)
        kept = eigenvalues > max(RANK_TOLERANCE * eigenvalues[-1], 0.0)
        return eigenvalues[kept], eigenvectors[:, kept]

    @cached_property
    def cholesky(self) -> tuple[np.ndarray, float] | None:
        """Lower factor and reciprocal condition number (an estimate, 1-norm); None if rank is missing."""
        try:
            factor = linalg.cholesky(self.gram, lower=True)
        except linalg.LinAlgError:
            return None
        reciprocal, _ = linalg.lapack.dpocon(factor, linalg.lapack.dlange("1", self.gram.T), uplo="L")
        return (factor, float(reciprocal)) if reciprocal > RANK_TOLERANCE else None

    @property
    def rank(self) -> int:
        """Number of directions that the rows determine."""
        return len(self.gram) if self.cholesky else len(self.spectrum[0])

    @property
    def condition(self) -> float:
        """Condition number over those directions; 1 if there are none."""
        if self.cholesky:
            return 1 / self.cholesky[1]
        eigenvalues, _ = self.spectrum
        return float(eigenvalues[-1] / eigenvalues[0]) if len(eigenvalues) else 1.0

    def solve(self, cross: np.ndarray, strength: float = 0.0) -> np.ndarray:
        """D for a right side, drawn towards 0 by `strength` mean eigenvalues; 0 where the rows leave it open.

        Any number of columns: D = G^-1 (X' S C), so x D = (G^-1 x')' (X' S C) for a few rows x.
        """
        if strength and self.mean_eigenvalue:
            shifted = self.gram + strength * self.mean_eigenvalue * np.eye(len(self.gram))
            return linalg.solve(shifted, cross, assume_a="pos", overwrite_a=True)
        if self.cholesky:
            return linalg.cho_solve((self.cholesky[0], True), cross)
        eigenvalues, basis = self.spectrum
        return basis @ ((basis.T @ cross) / eigenvalues[:, None])

    def rotation(self, cross: np.ndarray) -> np.ndarray:
        """D of the rotation W that fits best: W = U V' where X' S Y = U s V'."""
        left, _, right = linalg.svd(self.gram + cross)
        return left @ right - np.eye(len(self.gram))

    def error(self, right: RightSide, offset: np.ndarray | None, strength: float | None = None) -> float:
        """Relative error of W = I + D on these rows: || U (X D - C) ||^2 = <D, X'SX D> - 2 <D, X'SC> + || U C ||^2.

        With `strength`, D is a solution for that strength, and <D, X'SX D> follows from <D, X'SC>.
        """
        squared = right.change
        if offset is not None:
            common = float(np.sum(offset * right.cross))
            if strength is None:
                own = float(np.sum(offset * (self.gram @ offset)))
            else:
                own = common - strength * self.mean_eigenvalue * float(np.sum(offset * offset))
            squared += own - 2 * common
        return float(np.sqrt(max(squared, 0.0) / max(right.target, np.finfo(float).tiny)))
