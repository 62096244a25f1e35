"""Continued pre-training (paper 2.1.3): the embeddings of the new vocabulary learn, the body stays frozen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from lepta.training.trainer import train

Trains = Literal["new-rows", "embeddings"]


def pretrain(
    model: Any,
    blocks: list[list[int]],
    pad_id: int,
    work: Path,
    *,
    trains: Trains,
    old_rows: int,
    batch: int,
    learning_rate: float,
    warmup_steps: int,
    weight_decay: float,
    seed: int,
    save_every: int,
    measure: Callable[[], dict] | None = None,
    measure_every: int = 1,
) -> list[dict[str, float]]:
    """Train the input and output embeddings of a model on blocks of text.

    Parameters
    ----------
    model : transformers causal LM, float32
        Trained in place.
    blocks : list of token id lists
    trains : {"new-rows", "embeddings"}
        `new-rows`: only rows from `old_rows` on, the others keep every bit. `embeddings`: all rows, as in the paper.
    old_rows : int
        Rows that the model had before its vocabulary changed.
    work, batch, learning_rate, warmup_steps, weight_decay, seed, save_every, measure, measure_every
        See `lepta.training.trainer.train`; for `new-rows` the weight decay does not apply, since AdamW would shrink
        the rows that have no gradient too.

    Returns
    -------
    list of dict
        The training curve.
    """
    model.requires_grad_(False)
    matrices = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    for weight in matrices.values():
        weight.requires_grad_(True)
        if trains == "new-rows":
            weight.register_hook(lambda gradient: _without_old_rows(gradient, old_rows))
    return train(
        model,
        [{"input_ids": block, "labels": block} for block in blocks],
        pad_id,
        work,
        "continued pre-training",
        batch=batch,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay if trains == "embeddings" else 0.0,
        seed=seed,
        save_every=save_every,
        measure=measure,
        measure_every=measure_every,
    )


def _without_old_rows(gradient: torch.Tensor, old_rows: int) -> torch.Tensor:
    """A row whose gradient is always zero is never moved by AdamW without weight decay."""
    gradient = gradient.clone()
    gradient[:old_rows] = 0
    return gradient
