"""Continued pre-training (paper 2.1.3): the embeddings of the new vocabulary learn, the body stays frozen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lepta.checkpoints.folder import Checkpoint
from lepta.checkpoints.load import load_model, load_tokenizer
from lepta.checkpoints.publish import write_model
from lepta.checkpoints.rows import ComputedRows
from lepta.evaluation.bits import score_text
from lepta.pipeline import CHECKPOINTS
from lepta.recipe import PretrainSettings, Trains
from lepta.training.blocks import training_blocks
from lepta.training.trainer import train
from lepta.vocabulary.source import open_tokenizer


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


def pretrain_folder(
    initialised: Path,
    old_rows: int,
    target: list[str],
    source: list[str],
    valid: list[str],
    language: str,
    settings: PretrainSettings,
    seed: int,
    folder: Path,
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Pre-train a model folder on text and write the result, embeddings trained, body as it was.

    Parameters
    ----------
    initialised : Path
        Model with the new vocabulary.
    old_rows : int
        Rows before the vocabulary changed.
    target, source : documents to train on
    valid : texts of the target language to measure on
    language : str
        Name of the target language in the curve.
    folder : Path
        Existing folder for the result; checkpoints found in it are resumed from.

    Returns
    -------
    facts : dict
    curve : list of dict
    """
    checkpoint, tokenizer = Checkpoint(initialised), load_tokenizer(initialised)
    model = load_model(initialised, torch.float32)
    blocks = training_blocks(tokenizer, target, source, settings.tokens, settings.block, settings.source_share, seed)

    def measure() -> dict[str, float]:
        score = score_text(model, tokenizer, valid, f"held-out {language}")
        return {f"{language}_bits_per_byte": score.bits_per_byte}

    curve = pretrain(
        model,
        blocks,
        tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        folder / CHECKPOINTS,
        trains=settings.trains,
        old_rows=old_rows,
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        seed=seed,
        save_every=settings.save_every,
        measure=measure if valid else None,
        measure_every=settings.measure_every,
    )
    trained = {checkpoint.input_name: ComputedRows.of(model.get_input_embeddings().weight.detach())}
    if checkpoint.output_name:
        trained[checkpoint.output_name] = ComputedRows.of(model.get_output_embeddings().weight.detach())
    write_model(checkpoint, trained, open_tokenizer(initialised), folder)
    return {"tokens": sum(map(len, blocks)), "blocks": len(blocks)}, curve
