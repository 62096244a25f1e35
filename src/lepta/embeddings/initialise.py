"""Initialisation (paper 2.1.2): E_new = T E_old, for input and output embeddings alike."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lepta.core.errors import LeptaError
from lepta.embeddings.transfer import Transfer, transfer_matrix
from lepta.models.folder import AnyModel, Checkpoint
from lepta.models.load import check_whole
from lepta.models.rows import ComputedRows, Rows, mean_row, mix
from lepta.models.write import write_model
from lepta.vocabulary.loading import check_loading, load_exact
from lepta.vocabulary.settings import LARGEST_PADDING
from lepta.vocabulary.source import AnyTokenizer, open_tokenizer


def initialise_matrix(transfer: Transfer, old: Rows) -> ComputedRows:
    """Compute the rows of a new vocabulary from those of the old one.

    `old` has shape (old rows, d) or, for a bias, (old rows,), in any floating dtype, which the result keeps. Rows of
    tokens in both vocabularies are copied bit for bit. The others are averaged in float64.
    """
    mean = cache(lambda: mean_row(old).to(old.dtype))

    def rows(block: slice) -> torch.Tensor:
        exact, weights = transfer.exact[block], transfer.matrix[block]
        fan_in = np.diff(weights.indptr)
        new = torch.empty((len(exact), *old.shape[1:]), dtype=old.dtype)
        same, mixed, empty = exact >= 0, (exact < 0) & (fan_in > 0), fan_in == 0
        new[torch.from_numpy(same)] = old[torch.from_numpy(exact[same])]
        new[torch.from_numpy(mixed)] = mix(weights[np.flatnonzero(mixed)], old).to(old.dtype)
        if empty.any():  # padding: a mean logit is at most log(1 / V), so such a token can hardly be sampled
            new[torch.from_numpy(empty)] = mean()
        return new

    return ComputedRows((transfer.matrix.shape[0], *old.shape[1:]), rows)


def padded_rows(source_rows: int, source_size: int, new_size: int, pad_to: int | None) -> int:
    """Rows of the new matrices: padded to `pad_to`, or as the source was padded, or not at all.

    The source's padding is taken to be the largest power of two, at most 256, that its rows are a multiple of; a source
    without padding rows stays without, and a vocabulary of the same size has as many rows. LeptaError if no padding is
    as large as `pad_to`.
    """
    if pad_to is not None and not 1 <= pad_to <= LARGEST_PADDING:
        raise LeptaError(f"pad_to {pad_to}: expected a multiple of 1 to {LARGEST_PADDING:,} rows, such as 64")
    if pad_to is None and new_size == source_size <= source_rows:
        return source_rows
    if pad_to is None:
        pad_to = 1 if source_rows <= source_size else min(source_rows & -source_rows, 256)
    return -(-new_size // pad_to) * pad_to


def initialise(
    checkpoint: AnyModel, tokenizer: AnyTokenizer, folder: str | Path, pad_to: int | None = None
) -> dict[str, Any]:
    """Write a model with the vocabulary of another tokenizer, initialised by T.

    The model to start from has its own tokenizer in its folder; `folder` is an existing empty one for the new model;
    for `pad_to` see `padded_rows`. Gives facts about T. LeptaError if the model has its vocabulary in more than its
    embeddings (see `Checkpoint.check_replaceable`), its tensors are not those that its config asks for, or not finite,
    its tokenizer is another model's, or transformers reads the old or the new tokenizer otherwise than its file says.
    """
    checkpoint, tokenizer, folder = Checkpoint.of(checkpoint), open_tokenizer(tokenizer), Path(folder)
    checkpoint.check_replaceable()
    check_whole(checkpoint)
    load_exact(checkpoint.folder)
    check_loading(tokenizer, checkpoint.folder)
    old, new = open_tokenizer(checkpoint.folder).vocabulary(), tokenizer.vocabulary()
    rows = padded_rows(checkpoint.rows - checkpoint.surplus, old.size, new.size, pad_to) + checkpoint.surplus
    transfer_between = cache(partial(transfer_matrix, old, new))
    transfer = transfer_between(checkpoint.rows, rows)
    matrices = {}
    for name in checkpoint.vocabulary_names:
        matrix = checkpoint.rows_of(name)
        without = checkpoint.surplus if name in (checkpoint.output_name, checkpoint.bias_name) else 0
        matrices[name] = initialise_matrix(transfer_between(matrix.shape[0], rows - without), matrix)
    write_model(checkpoint, matrices, tokenizer, folder, transfer.change.moved)
    return {"old_rows": checkpoint.rows, "new_rows": rows, "transfer": transfer.summary()}
