"""Initialisation (paper 2.1.2): E_new = T E_old, for input and output embeddings alike."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lepta.checkpoints.folder import Checkpoint
from lepta.checkpoints.publish import write_model
from lepta.embeddings.transfer import Transfer, transfer_matrix
from lepta.vocabulary.source import TokenizerSource, open_tokenizer


def initialise_matrix(transfer: Transfer, old: torch.Tensor) -> torch.Tensor:
    """Compute the rows of a new vocabulary from those of the old one.

    Rows of tokens in both vocabularies are copied bit for bit. The others are averaged in float64.
    Padding rows that the old matrix did not have get the mean of all old rows: a mean logit is at most log(1 / V), so
    padding can hardly be sampled.

    Parameters
    ----------
    transfer : Transfer
        T, shape (new rows, old rows).
    old : tensor, shape (old rows, d)
        Any floating dtype.

    Returns
    -------
    tensor, shape (new rows, d)
        In the dtype of `old`.
    """
    new = torch.empty((transfer.matrix.shape[0], old.shape[1]), dtype=old.dtype)
    same = torch.from_numpy(transfer.exact >= 0)
    new[same] = old[torch.from_numpy(transfer.exact[transfer.exact >= 0])]
    fan_in = np.diff(transfer.matrix.indptr)
    mixed = np.flatnonzero((transfer.exact < 0) & (fan_in > 0))
    for rows in np.array_split(mixed, max(1, len(mixed) // 8192)):
        part = transfer.matrix[rows]
        used, columns = np.unique(part.indices, return_inverse=True)
        part = type(part)((part.data, columns, part.indptr), shape=(len(rows), len(used)))
        sources = old[torch.from_numpy(used)].to(torch.float64).numpy()
        new[torch.from_numpy(rows)] = torch.from_numpy(part @ sources).to(old.dtype)
    empty = np.flatnonzero(fan_in == 0)
    if len(empty):
        new[torch.from_numpy(empty)] = old.to(torch.float64).mean(dim=0).to(old.dtype)
    return new


def padded_rows(source_rows: int, source_size: int, new_size: int, pad_to: int | None) -> int:
    """Rows of the new matrices: padded to `pad_to`, or as the source was padded, or not at all.

    The source's padding is taken to be the largest power of two, at most 256, that its rows are a multiple of; a source
    without padding rows stays without.
    """
    if pad_to is None:
        pad_to = 1 if source_rows == source_size else min(source_rows & -source_rows, 256)
    return -(-new_size // pad_to) * pad_to


def initialise(
    checkpoint: Checkpoint, tokenizer: TokenizerSource, folder: Path, pad_to: int | None = None
) -> dict[str, Any]:
    """Write a model with the vocabulary of another tokenizer, initialised by T.

    Parameters
    ----------
    checkpoint : Checkpoint
        The model to start from, with its own tokenizer in its folder.
    tokenizer : TokenizerSource
        The new tokenizer.
    folder : Path
        Existing empty folder for the new model.
    pad_to : int, optional
        See `padded_rows`.

    Returns
    -------
    dict
        Facts about T.
    """
    old, new = open_tokenizer(checkpoint.folder).vocabulary(), tokenizer.vocabulary()
    rows = padded_rows(checkpoint.rows, old.size, new.size, pad_to)
    transfer = transfer_matrix(old, new, checkpoint.rows, rows)
    matrices = {name: initialise_matrix(transfer, checkpoint.load(name)) for name in checkpoint.embedding_names}
    write_model(checkpoint, matrices, tokenizer, folder, transfer.new_ids)
    return {"old_rows": checkpoint.rows, "new_rows": rows, "transfer": transfer.summary()}
