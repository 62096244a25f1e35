"""When pre-training changed more than the embeddings: what it changed in the body, added to a variant's body.

    result = instruct + scale (adapted - base)          for each tensor outside the embeddings

The idea is that of chat vectors (arXiv 2310.04799). The method's authors, who train LoRA along with the embeddings in
later releases, found a scale between 0.5 and 2 to matter.
"""

from functools import partial

import torch

from lepta.core.errors import LeptaError
from lepta.core.progress import step
from lepta.models.folder import Checkpoint
from lepta.models.rows import ComputedRows, Rows, same_values

SAMPLE_ROWS = 64  # of each tensor; training of a tensor changes all its rows
SAMPLE_BYTES = 1 << 16  # of each quantised one; few of its numbers change


@step("comparing the bodies")
def body_changes(
    base: Checkpoint, adapted: Checkpoint, instruct: Checkpoint, scale: float | None
) -> dict[str, ComputedRows]:
    """The tensors of a variant's body that change, with their new rows; none if only embeddings were trained.

    A `scale` of 0 leaves the variant's body as it is. LeptaError if the body was trained and there is no scale, what
    changed is quantised, or the three bodies have different tensors.
    """
    outside = {*base.vocabulary_names, base.stored_output}
    names = [name for name in base.entries if name not in outside]
    _same_tensors(base, adapted, names)
    floating = [name for name in names if base.is_floating(name) and adapted.is_floating(name)]
    if scale == 0:
        return {}
    for name in sorted(set(names) - set(floating)):
        if not same_values(base.raw(name), adapted.raw(name), None if scale else SAMPLE_BYTES):
            raise LeptaError(
                f"{adapted.name}: {name} ({adapted.entries[name].dtype}) differs from that of the base "
                f"{base.name}; a change of quantised numbers cannot be added to those of a variant. Leave such "
                "changes behind with `body_delta` 0, or give models that are not quantised"
            )
    if scale is None:
        for name in floating:
            if _differs(base, adapted, name, SAMPLE_ROWS):
                raise LeptaError(
                    f"{adapted.name}: not only the embeddings differ from the base {base.name}, {name} does too; "
                    "carry such changes into the variant with `body_delta` 1.0, or leave them behind with "
                    "`body_delta` 0"
                )
        return {}
    changed = [name for name in floating if _differs(base, adapted, name)]
    _same_tensors(base, instruct, changed)
    moved = {}
    for name in changed:
        rows = partial(_moved, base.rows_of(name), adapted.rows_of(name), instruct.rows_of(name), scale)
        moved[name] = ComputedRows(instruct.entries[name].shape, rows)
    return moved


def _same_tensors(base: Checkpoint, other: Checkpoint, names: list[str]) -> None:
    for name in names:
        if name not in other.entries or other.entries[name].shape != base.entries[name].shape:
            raise LeptaError(
                f"{other.name}: no tensor {name} of shape {list(base.entries[name].shape)}, as in the base "
                f"{base.name}; expected models of one architecture and size"
            )


def _differs(base: Checkpoint, adapted: Checkpoint, name: str, first: int | None = None) -> bool:
    return not same_values(base.rows_of(name), adapted.rows_of(name), first)


def _moved(base: Rows, adapted: Rows, instruct: Rows, scale: float, rows: slice) -> torch.Tensor:
    change = adapted[rows].to(torch.float32) - base[rows].to(torch.float32)
    own = instruct[rows]
    return (own.to(torch.float32) + scale * change).to(own.dtype)
