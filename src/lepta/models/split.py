"""Embedding matrices in two parts, rows of old tokens and rows of new ones, so that each can train in its own way.

The parts are parameters of their own: one that is frozen has no gradient and no optimizer state, one with another
learning rate is a group of the optimizer. Nothing is copied when the model runs, unless new rows stand among old ones:
then logits are put into the order of the ids.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lepta.core.errors import LeptaError

NewRows = int | Sequence[int]  # the first one, if all after it are new too, or each of them
IGNORED = -100  # transformers' label of what is not to be predicted: the loss leaves it out


class SplitEmbedding(nn.Module):
    """A lookup in a matrix in two parts, `old`, (V - n, d), and `new`, (n, d); `scale` multiplies each row (Gemma)."""

    place: torch.Tensor | None  # (V,), int64: row of each id in both parts together; None where all new ones come last

    def __init__(self, weight: torch.Tensor, is_new: torch.Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.old, self.new = nn.Parameter(weight[~is_new].clone()), nn.Parameter(weight[is_new].clone())
        self.register_buffer("place", _place(is_new), persistent=False)
        self.scale = scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the tokens, shape (*ids.shape, d)."""
        first_new, ids = len(self.old), among_parts(self, ids)
        old = F.embedding(ids.clamp(max=first_new - 1), self.old)
        new = F.embedding((ids - first_new).clamp(min=0), self.new)
        rows = torch.where((ids < first_new)[..., None], old, new)
        return rows if self.scale == 1.0 else rows * self.scale

    @property
    def weight(self) -> torch.Tensor:
        """The whole matrix, as a copy."""
        rows = torch.cat([self.old, self.new])
        return rows if self.place is None else rows[self.place]


class SplitHead(nn.Module):
    """A linear head in two parts; as `SplitEmbedding`, whose rows it has."""

    place: torch.Tensor | None

    def __init__(self, rows: SplitEmbedding, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.old, self.new, self.bias = rows.old, rows.new, bias
        self.register_buffer("place", rows.place, persistent=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits, shape (..., V)."""
        logits = torch.cat([F.linear(hidden, self.old), F.linear(hidden, self.new)], dim=-1)
        logits = logits if self.place is None else logits[..., self.place]
        return logits if self.bias is None else logits + self.bias

    weight = SplitEmbedding.weight


def split_rows(model: Any, new_rows: NewRows) -> None:
    """Replace input and output embeddings of a model, in place, by ones in two parts; one matrix stays one.

    LeptaError if the model does more in its embeddings than look rows up and scale them.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows, device = len(embedding.weight), embedding.weight.device
    is_new = torch.zeros(rows, dtype=torch.bool, device=device)
    is_new[slice(new_rows, None) if isinstance(new_rows, int) else torch.as_tensor(new_rows, device=device)] = True
    if is_new.all() or not is_new.any():
        raise LeptaError(
            f"old rows and new rows: {int((~is_new).sum()):,} of {rows:,} rows are old; expected some of each"
        )
    tied = head.weight is embedding.weight
    split = SplitEmbedding(embedding.weight.detach(), is_new, float(getattr(embedding, "embed_scale", 1.0)))
    old, new = torch.nonzero(~is_new)[:, 0], torch.nonzero(is_new)[:, 0]
    ids = torch.stack([old[0], old[-1], new[0], new[-1]])
    with torch.no_grad():
        if not torch.allclose(split(ids), embedding(ids)):
            raise LeptaError(
                f"{type(embedding).__name__}: does more than look up rows, so they cannot be trained apart; "
                "use pretrain.trains: embeddings with one learning rate"
            )
    model.set_input_embeddings(split)
    # Mllama's embeddings have rows on top that its head does not.
    rows_of_head = split
    if not tied:
        rows_of_head = SplitEmbedding(head.weight.detach(), is_new[: len(head.weight)])
    model.set_output_embeddings(SplitHead(rows_of_head, head.bias))
    model.tie_weights = lambda *_, **__: None  # they are tied where they were; transformers knows the names only whole


def _place(is_new: torch.Tensor) -> torch.Tensor | None:
    """Of each row, its place when all old rows come before all new ones; None if they do already."""
    order = torch.argsort(is_new.to(torch.uint8), stable=True)
    place = torch.argsort(order)
    return None if torch.equal(place, torch.arange(len(place), device=place.device)) else place


def among_parts(module: Any, ids: torch.Tensor) -> torch.Tensor:
    """Ids, or labels, as rows of `parts_of` together."""
    place = getattr(module, "place", None)
    return ids if place is None else torch.where(ids == IGNORED, ids, place[ids.clamp(min=0)])


def bias_of(head: Any) -> torch.Tensor | None:
    """The bias of a head, if it has one, in the order of `parts_of`."""
    place = getattr(head, "place", None)
    if head.bias is None or place is None:
        return head.bias
    return head.bias[torch.argsort(place)]


def rows_of_parts(module: Any) -> list[torch.Tensor]:
    """Of each of `parts_of`, the ids that its rows are of, ascending."""
    sizes = list(map(len, parts_of(module)))
    ids = torch.arange(sum(sizes))
    if (place := getattr(module, "place", None)) is not None:
        ids = torch.argsort(place).cpu()
    return list(torch.split(ids, sizes))


def parts_of(module: nn.Module) -> list[torch.Tensor]:
    """The rows of an embedding or head: old and new ones if it was split, else all in one."""
    if isinstance(module, SplitEmbedding | SplitHead):
        return [module.old, module.new]
    return [module.weight]  # type: ignore[list-item]  # torch types every attribute of a module as tensor or module
