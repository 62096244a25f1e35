"""LEP on folders: base, adapted base and an instruct variant in; the variant with the new vocabulary out."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lepta.checkpoints.folder import Checkpoint
from lepta.checkpoints.publish import write_model
from lepta.embeddings.propagate import Method, choose_map, fit_map
from lepta.embeddings.transfer import Transfer, stand_in_rows, transfer_matrix
from lepta.errors import LeptaError
from lepta.vocabulary.source import open_tokenizer
from lepta.vocabulary.tokens import Kind, Vocabulary


def propagate(
    base: Checkpoint, adapted: Checkpoint, instruct: Checkpoint, method: Method | Literal["auto"], folder: Path
) -> dict[str, Any]:
    """Write an instruct variant with the vocabulary and embeddings of the adapted base model.

    Special tokens keep the variant's own rows, bit for bit; its chat template and generation settings come along.

    Parameters
    ----------
    base, adapted : Checkpoint
        The foundation model before and after vocabulary change and continued pre-training.
    instruct : Checkpoint
        An instruct variant of `base`, with the original vocabulary.
    method : str
        See `lepta.embeddings.propagate`; `auto` takes, for each matrix, the one that predicts held-out tokens best.
    folder : Path
        Existing empty folder for the result.

    Returns
    -------
    dict
        Facts: T and the fit of each matrix.

    Raises
    ------
    LeptaError
        If the three models do not belong together.
    """
    tokenizer, instruct_tokenizer = open_tokenizer(adapted.folder), open_tokenizer(instruct.folder)
    old, new = open_tokenizer(base.folder).vocabulary(), tokenizer.vocabulary()
    _check_family(base, adapted, instruct, old, instruct_tokenizer.vocabulary())
    transfer = transfer_matrix(old, new, base.rows, adapted.rows)
    stand_ins = stand_in_rows(old, base.rows) if method == "auto" else None
    special = torch.from_numpy(_shared_specials(new, transfer))
    matrices, fits = {}, {}
    for b, a, i in zip(base.embedding_names, adapted.embedding_names, instruct.embedding_names, strict=True):
        own, before = instruct.load(i), base.load(b)
        errors: dict[Method, float] = {}
        if method == "auto":
            fitted, errors = choose_map(transfer, before, own, stand_ins)
        else:
            fitted = fit_map(method, transfer, before, own)
        rows = fitted.apply(adapted.load(a))
        rows[special] = own[torch.from_numpy(transfer.exact)[special]].to(rows.dtype)
        matrices[i], fits[i] = rows, fitted.summary() | ({"held_out_errors": errors} if errors else {})
    owned = {"tokenizer_class", "added_tokens_decoder"} & set(tokenizer.config)  # they belong to the new vocabulary
    tokenizer = replace(
        tokenizer,
        config=tokenizer.config | instruct_tokenizer.config | {key: tokenizer.config[key] for key in owned},
        chat_template=instruct_tokenizer.chat_template or tokenizer.chat_template,
    )
    write_model(instruct, matrices, tokenizer, folder, transfer.new_ids)
    return {"transfer": transfer.summary(), "special_rows_kept": len(special), "maps": fits}


def _shared_specials(new: Vocabulary, transfer: Transfer) -> np.ndarray:
    """Ids of special tokens that the old vocabulary has too."""
    ids = np.flatnonzero(new.kinds == Kind.SPECIAL)
    return ids[transfer.exact[ids] >= 0]


def _check_family(
    base: Checkpoint, adapted: Checkpoint, instruct: Checkpoint, old: Vocabulary, instruct_vocabulary: Vocabulary
) -> None:
    """Refuse models that are not a base, its adaptation and its variant."""
    b, a, i = (checkpoint.entries[checkpoint.input_name].shape for checkpoint in (base, adapted, instruct))
    if not b[1] == a[1] == i[1]:
        raise LeptaError(
            f"embedding widths differ: base {b[1]} ({base.folder}), adapted {a[1]} ({adapted.folder}), "
            f"instruct {i[1]} ({instruct.folder}); expected three models of one architecture and size"
        )
    if b[0] != i[0]:
        raise LeptaError(
            f"{instruct.folder}: {i[0]} embedding rows, but the base {base.folder} has {b[0]}; "
            "expected a variant with the base model's own vocabulary"
        )
    if instruct_vocabulary.bytes_of != old.bytes_of:
        ids = range(max(old.size, instruct_vocabulary.size))
        first = next(n for n in ids if _token(old, n) != _token(instruct_vocabulary, n))
        raise LeptaError(
            f"{instruct.folder}: id {first} is {_token(instruct_vocabulary, first)!r}, but {_token(old, first)!r} in "
            f"the base {base.folder}; expected a variant with the base model's own vocabulary"
        )
    tied = {checkpoint.tied for checkpoint in (base, adapted, instruct)}
    if len(tied) > 1:
        raise LeptaError("some of base, adapted and instruct tie input and output embeddings and some do not")


def _token(vocabulary: Vocabulary, token_id: int) -> bytes | None:
    return vocabulary.bytes_of[token_id] if token_id < vocabulary.size else None
