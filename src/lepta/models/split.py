"""Embedding matrices in two parts, rows of old tokens and rows of new ones, so that each can train in its own way.

The parts are parameters of their own: one that is frozen has no gradient and no optimizer state, one with another
learning rate is a group of the optimizer. Nothing is copied when the model runs.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lepta.core.errors import LeptaError


class SplitEmbedding(nn.Module):
    """A lookup in a matrix whose first rows are `old` and whose others are `new`.

    Attributes
    ----------
    old, new : parameters, shapes (first_new, d) and (V - first_new, d)
    scale : float
        Factor of every row, as Gemma has it.
    """

    def __init__(self, weight: torch.Tensor, first_new: int, scale: float = 1.0) -> None:
        super().__init__()
        self.old, self.new = nn.Parameter(weight[:first_new].clone()), nn.Parameter(weight[first_new:].clone())
        self.scale = scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the tokens, shape (*ids.shape, d)."""
        first_new = len(self.old)
        old = F.embedding(ids.clamp(max=first_new - 1), self.old)
        new = F.embedding((ids - first_new).clamp(min=0), self.new)
        rows = torch.where((ids < first_new)[..., None], old, new)
        return rows if self.scale == 1.0 else rows * self.scale

    @property
    def weight(self) -> torch.Tensor:
        """The whole matrix, as a copy."""
        return torch.cat([self.old, self.new])


class SplitHead(nn.Module):
    """A linear head whose first rows are `old` and whose others are `new`; shapes as in `SplitEmbedding`."""

    def __init__(self, old: nn.Parameter, new: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.old, self.new, self.bias = old, new, bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits, shape (..., V)."""
        logits = torch.cat([F.linear(hidden, self.old), F.linear(hidden, self.new)], dim=-1)
        return logits if self.bias is None else logits + self.bias

    weight = SplitEmbedding.weight


def split_rows(model: Any, first_new: int) -> None:
    """Replace input and output embeddings of a model, in place, by ones in two parts.

    Parameters
    ----------
    model : transformers causal LM
        Input and output embeddings may be one matrix; they stay one.
    first_new : int
        Row that the second part begins with.

    Raises
    ------
    LeptaError
        If the model does more in its embeddings than look rows up and scale them.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not 0 < first_new < len(embedding.weight):
        raise LeptaError(
            f"old rows and new rows: {first_new:,} of {len(embedding.weight):,} rows are old; expected some of each"
        )
    tied = head.weight is embedding.weight
    split = SplitEmbedding(embedding.weight.detach(), first_new, float(getattr(embedding, "embed_scale", 1.0)))
    ids = torch.tensor([0, first_new - 1, first_new, len(embedding.weight) - 1], device=embedding.weight.device)
    with torch.no_grad():
        if not torch.allclose(split(ids), embedding(ids)):
            raise LeptaError(
                f"{type(embedding).__name__}: does more than look up rows, so they cannot be trained apart; "
                "use pretrain.trains: embeddings with one learning rate"
            )
    other = split if tied else SplitEmbedding(head.weight.detach(), first_new)
    model.set_input_embeddings(split)
    model.set_output_embeddings(SplitHead(other.old, other.new, head.bias))
    model.tie_weights = lambda *_, **__: None  # they are tied where they were; transformers knows the names only whole


def parts_of(module: nn.Module) -> list[torch.Tensor]:
    """The rows of an embedding or head in order: two parts if it was split, else one."""
    if isinstance(module, SplitEmbedding | SplitHead):
        return [module.old, module.new]
    return [module.weight]  # type: ignore[list-item]  # torch types every attribute of a module as tensor or module
