"""Learned Embedding Propagation (paper 2.2): carry trained embeddings from the base model into an instruct variant.

    X_result = X_adapted W          X in {input embeddings, output embeddings}

`swap`         W = identity
`overlap`      least squares on tokens in both vocabularies:   X_base[C] W  ~  X_instruct[C]
`conversion`   least squares on all new tokens, through T:      (T X_base) W  ~  (T X_instruct)
`ridge`        overlap drawn towards the identity, as strongly as predicts tokens left out of the fit best; swap and
               overlap are its limits
`procrustes`   the rotation among all W that fits conversion's rows best
`delta`        no map: each new row moves as the old rows that it is a mix of,  X_adapted + T (X_instruct - X_base)
`anchored`     what the variant would start from, and a map of what training changed in that; `delta` is its limit:
               X_result = T X_instruct + (X_adapted - T X_base) W,  W as in ridge
"""

from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy import sparse

from lepta.core.errors import LeptaError
from lepta.core.progress import step
from lepta.embeddings.normal_equations import LeftSide, NormalEquations, RightSide
from lepta.embeddings.settings import AnyMethod, Method
from lepta.embeddings.transfer import Transfer
from lepta.models.rows import ComputedRows, Rows, all_finite, mix, precision

METHODS: tuple[Method, ...] = get_args(Method)
# Which rows a map is fitted on: those of shared tokens, or all of T.
FITTED_ON: dict[Method, Literal["overlap", "conversion"]] = {
    "overlap": "overlap",
    "ridge": "overlap",
    "anchored": "overlap",
    "conversion": "conversion",
    "procrustes": "conversion",
}
ANCHORED: tuple[Method, ...] = ("delta", "anchored")  # a shared token has its own change to the last bit

# Strengths that ridge chooses from, in units of the mean eigenvalue of the normal equations.
STRENGTHS = [0.0, *(10.0**power for power in np.arange(-5, 3.1, 0.5))]
HELD_OUT_SHARE, FEWEST_HELD_OUT, MOST_HELD_OUT = 0.1, 10, 1024
TINY = np.finfo(float).tiny  # instead of a division by 0, where a variant's rows are all 0


@dataclass(frozen=True)
class Propagation:
    """How rows of an adapted base model become rows of the variant, with what is known of the fit.

    `offset` is D = W - I, in float32 (float64 for float64 matrices), or None for W = I. `delta` holds T, the base's and
    the variant's matrix, for the methods that need them. The rest is for the manifest, see `summary`.
    """

    method: Method
    offset: torch.Tensor | None
    delta: tuple[sparse.csr_array, Rows, Rows] | None = None
    rows: int = 0
    rank: int = 0
    condition: float = 1.0
    strength: float = 0.0
    residual_swap: float = 0.0
    residual: float = 0.0
    held_out: dict[str, Any] = field(default_factory=dict)

    def apply(self, adapted: Rows, dtype: torch.dtype | None = None) -> ComputedRows:
        """Propagate the rows of an adapted base model, shape (new rows, d); they keep their dtype if none is given."""
        return ComputedRows(tuple(adapted.shape), partial(self._apply, adapted, dtype or adapted.dtype))

    def _apply(self, adapted: Rows, dtype: torch.dtype, rows: slice) -> torch.Tensor:
        own = adapted[rows]
        if self.delta:
            matrix, base, instruct = self.delta
            wide = own.to(torch.float64)
            moved = wide + mix(matrix[rows], instruct, base)
            if self.offset is not None:
                moved += self._step((wide - mix(matrix[rows], base)).to(precision(adapted)))
            return moved.to(dtype)
        if self.offset is None:
            return own.to(dtype)
        wide = own.to(precision(adapted), copy=True)
        return wide.add_(self._step(wide)).to(dtype)

    def _step(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows times D, in their precision. NumPy's BLAS is a tenth faster here than torch's."""
        assert self.offset is not None
        return torch.from_numpy(rows.numpy() @ self.offset.to(rows.dtype).numpy())

    def summary(self) -> dict[str, Any]:
        """The fit as numbers for a manifest.

        `rows` equations determine `rank` directions of the embedding space, with the `condition` number of the normal
        equations. W was drawn towards the identity by `strength` mean eigenvalues. `residual` and `residual_swap` are
        || U X_base W - U X_instruct || / || U X_instruct || with the fitted W and with W = I; `distance_from_identity`
        is the mean change of a direction, || D || / sqrt(d). `held_out`: see `HeldOut.summary`; of `auto` also `whole`,
        the error of each method over the whole new vocabulary.
        """
        distance = 0.0 if self.offset is None else float(self.offset.norm() / np.sqrt(len(self.offset)))
        return {
            "method": self.method,
            "rows": self.rows,
            "rank": self.rank,
            "condition": self.condition,
            "strength": self.strength,
            "residual_swap": self.residual_swap,
            "residual": self.residual,
            "distance_from_identity": distance,
            "held_out": self.held_out,
        }


class MapFitter:
    """Fits maps from one matrix of a base model to that of any of its variants.

    A tenth of the shared tokens, at most 1,024, is left out of a first fit to see how well it predicts them; rows of T
    that such a token has a part in are left out too. The choice is the same in every run. What depends on the base
    alone is computed once.

    `base` has shape (old rows, d); rows beyond those of T do not count. `stand_ins` (old rows x old rows) says what
    each old token would be mixed of if it were new, which judges `delta` and `anchored`. `weights` says how much each
    new token counts, by default all the same. LeptaError if shapes do not belong together, or values are not finite.
    """

    def __init__(
        self,
        transfer: Transfer,
        base: Rows,
        stand_ins: sparse.csr_array | None = None,
        weights: np.ndarray | None = None,
    ) -> None:
        self.transfer, self.base, self.stand_ins = transfer, base, stand_ins
        _check("base", base, base, transfer)
        shared = np.unique(transfer.exact[transfer.exact >= 0])
        if stand_ins is not None:  # bytes and special tokens have none: they can never be new
            shared = shared[stand_ins.diagonal()[shared] == 0]
        self._shared = len(shared)
        number = min(int(len(shared) * HELD_OUT_SHARE), MOST_HELD_OUT)
        chosen = np.random.default_rng(0).permutation(shared)[:number]
        self.held_out = np.sort(chosen) if number >= FEWEST_HELD_OUT else chosen[:0]

        shared_rows = transfer.exact >= 0
        weights = np.ones(len(transfer.exact)) if weights is None else weights
        self._mixed = float(weights[~shared_rows].sum() / weights.sum())  # share of new tokens that are not shared
        self.token_weights = np.ones(transfer.matrix.shape[1])
        self.token_weights[transfer.exact[shared_rows]] = weights[shared_rows]
        self._sum_up(sparse.csr_array(sparse.diags_array(np.sqrt(weights)) @ transfer.matrix), shared_rows)

    def _sum_up(self, equations: sparse.csr_array, shared_rows: np.ndarray) -> None:
        """Lay out the normal equations without held-out tokens, and with them; so no row is summed up twice."""
        held = np.zeros(equations.shape[1])
        held[self.held_out] = 1
        held_rows = self.transfer.matrix @ held > 0
        shared = equations[np.flatnonzero(shared_rows & ~held_rows)]
        shared_held = equations[np.flatnonzero(shared_rows & held_rows)]
        mixed = equations[np.flatnonzero(~shared_rows & ~held_rows)]
        mixed_held = equations[np.flatnonzero(~shared_rows & held_rows)]
        overlap = NormalEquations(self.base, shared)
        conversion = NormalEquations(self.base, mixed, smaller=overlap)
        self.without_held_out = {"overlap": overlap, "conversion": conversion}
        self.with_held_out = {
            "overlap": NormalEquations(self.base, shared_held, smaller=overlap),
            "conversion": NormalEquations(self.base, shared_held, mixed_held, smaller=conversion),
        }

    @step("fitting the map")
    def fit(self, method: AnyMethod, instruct: Rows) -> Propagation:
        """Fit the step from the base model's embedding space to a variant's, given its matrix.

        `auto` is the method with the least error over the whole new vocabulary (the first if several have it). Held-out
        tokens tell the error of a new token, and of a shared one too; but `delta` and `anchored` know the change of a
        shared token exactly, so their error counts for new tokens only.

        LeptaError if the shapes differ, values are not finite, or too few tokens are shared for the method.
        """
        if method not in (*METHODS, "auto"):
            raise LeptaError(f"method {method!r}: unknown; known are {', '.join(METHODS)}, auto")
        _check("instruct", instruct, self.base, self.transfer)
        if method == "overlap" and not self._shared:
            raise LeptaError(f"method {method!r}: the two vocabularies share no token; use conversion or swap")
        if method in ("ridge", "anchored", "auto") and not len(self.held_out):
            raise LeptaError(
                f"the two vocabularies share {self._shared} tokens, too few to hold some out; use conversion or swap"
            )
        fit = _Fit(self, instruct)
        candidates: tuple[Method, ...] = METHODS if method == "auto" else ("swap", method)
        errors = {name: error for name in candidates if (error := fit.error(name)) is not None}
        if method != "auto":
            return fit.propagation(method, errors)
        whole = dict(errors)
        for name in whole.keys() & ANCHORED:
            whole[name] *= self._mixed**0.5
        found = fit.propagation(min(whole, key=lambda name: whole[name]), errors)
        return replace(found, held_out={**found.held_out, "whole": whole})


class _Fit:
    """One variant's part in a `MapFitter`."""

    def __init__(self, fitter: MapFitter, instruct: Rows) -> None:
        self._fitter, self._instruct = fitter, instruct
        self._sums: dict[NormalEquations, RightSide] = {}
        self._strengths: dict[Method, float] = {}

    @cached_property
    def _held_out(self) -> "HeldOut | None":
        fitter, tokens = self._fitter, self._fitter.held_out
        if not len(tokens):
            return None
        return HeldOut(tokens, fitter.base, self._instruct, fitter.stand_ins, fitter.token_weights[tokens])

    def _strength(self, method: Method) -> float:
        """How strongly W is drawn towards the identity: as predicts held-out tokens best."""
        if method not in ("ridge", "anchored") or not self._held_out:
            return 0.0
        if method not in self._strengths:
            equations = self._fitter.without_held_out["overlap"]
            right = equations.right(self._instruct, self._sums)
            anchored = method == "anchored" and self._held_out.anchored
            self._strengths[method] = self._held_out.strength(equations.left, right, anchored)
        return self._strengths[method]

    def _offset(self, method: Method, equations: NormalEquations) -> np.ndarray | None:
        """D = W - I of a method, from these equations; None for D = 0."""
        right = equations.right(self._instruct, self._sums)
        if not right.change:
            return None
        if method == "procrustes":
            return equations.left.rotation(right.cross)
        return equations.left.solve(right.cross, self._strength(method))

    def error(self, method: Method) -> float | None:
        """Relative error on held-out tokens of a fit without them; None if it cannot be judged."""
        held_out = self._held_out
        if held_out is None or (method in ANCHORED and not held_out.anchored):
            return None
        if method == "swap":
            return held_out.error(None)
        if method == "delta":
            return held_out.error_of_delta()
        equations = self._fitter.without_held_out[FITTED_ON[method]]
        if method == "procrustes":
            return held_out.error(self._offset(method, equations))
        right = equations.right(self._instruct, self._sums)
        return held_out.error_of_solution(equations.left, right, self._strength(method), method == "anchored")

    def propagation(self, method: Method, errors: dict[Method, float]) -> Propagation:
        """Fit a method on all rows."""
        fitter = self._fitter
        held_out = self._held_out.summary(errors, method) if self._held_out and method in errors else {}
        if method == "swap":
            return Propagation("swap", None, held_out=held_out)
        delta = (fitter.transfer.matrix, fitter.base, self._instruct) if method in ANCHORED else None
        if method == "delta":
            return Propagation("delta", None, delta, rows=fitter.transfer.matrix.shape[0], held_out=held_out)
        equations = fitter.with_held_out[FITTED_ON[method]]
        left, right = equations.left, equations.right(self._instruct, self._sums)
        offset, strength = self._offset(method, equations), self._strength(method)
        return Propagation(
            method=method,
            offset=None if offset is None else torch.from_numpy(offset).to(precision(fitter.base)),
            delta=delta,
            rows=left.rows,
            rank=left.rank,
            condition=left.condition,
            strength=strength,
            residual_swap=left.error(right, None),
            residual=left.error(right, offset, None if method == "procrustes" else strength),
            held_out=held_out,
        )


class HeldOut:
    """Tokens (old ids) that a fit has not seen, to judge it by; `weights` says how much each counts."""

    def __init__(
        self, tokens: np.ndarray, base: Rows, instruct: Rows, stand_ins: sparse.csr_array | None, weights: np.ndarray
    ) -> None:
        index, scale = torch.from_numpy(tokens), np.sqrt(weights)[:, None]
        self._x = scale * base[index].to(torch.float64).numpy()
        self._y = scale * instruct[index].to(torch.float64).numpy()
        self._mean = scale * (scale * self._y).sum(axis=0) / weights.sum()
        self.anchored = stand_ins is not None
        if stand_ins is not None:
            self._moved = self._x + scale * mix(stand_ins[tokens], instruct, base).numpy()
            self._changed = self._x - scale * mix(stand_ins[tokens], base).numpy()

    def error(self, offset: np.ndarray | None) -> float:
        """Relative error of W = I + D on these tokens."""
        return self._relative(self._x if offset is None else self._x + self._x @ offset)

    def error_of_solution(self, left: LeftSide, right: RightSide, strength: float, anchored: bool) -> float:
        """The same for D = G^-1 (X' S C), without solving for D: G^-1 x' has fewer columns."""
        start, mapped = self._start_and_mapped(anchored)
        return self._relative(start + left.solve(mapped.T, strength).T @ right.cross)

    def error_of_delta(self) -> float:
        """Relative error of moving each token as the tokens that it is merged from."""
        return self._relative(self._moved)

    def strength(self, left: LeftSide, right: RightSide, anchored: bool) -> float:
        """The strength with which D = (G + strength)^-1 (X' S C) predicts these tokens best."""
        start, mapped = self._start_and_mapped(anchored)
        eigenvalues, basis = left.spectrum
        x, cross = mapped @ basis, basis.T @ right.cross
        return min(
            STRENGTHS,
            key=lambda strength: self._relative(start + (x / (eigenvalues + strength * left.mean_eigenvalue)) @ cross),
        )

    def _start_and_mapped(self, anchored: bool) -> tuple[np.ndarray, np.ndarray]:
        """What a prediction starts from, and what D is applied to.

        `anchored`: a token moves as the tokens that it is merged from, and D maps what it has beyond them.
        """
        return (self._moved, self._changed) if anchored else (self._x, self._x)

    def summary(self, errors: dict[Method, float], method: Method) -> dict[str, Any]:
        """For a manifest: number of tokens, relative error and R2 of the method taken, and errors of all compared."""
        spread = np.linalg.norm(self._y - self._mean) / max(np.linalg.norm(self._y), TINY)
        r2 = 1 - (errors[method] / max(spread, TINY)) ** 2
        return {"tokens": len(self._y), "error": errors[method], "r2": float(r2), "errors": errors}

    def _relative(self, predicted: np.ndarray) -> float:
        return float(np.linalg.norm(predicted - self._y) / max(np.linalg.norm(self._y), TINY))


def _check(name: str, matrix: Rows, base: Rows, transfer: Transfer) -> None:
    rows = transfer.matrix.shape[1]
    if min(base.shape[0], matrix.shape[0]) < rows or matrix.shape[1] != base.shape[1]:
        raise LeptaError(
            f"{name} embeddings {tuple(matrix.shape)}, base embeddings {tuple(base.shape)}, transfer matrix "
            f"{transfer.matrix.shape}: expected the same old vocabulary and width in all three"
        )
    if not all_finite(matrix):
        raise LeptaError(f"{name} embeddings: NaN or infinite values; the checkpoint is damaged")
