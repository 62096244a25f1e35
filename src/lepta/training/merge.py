"""What training changed, as tensors of the model's own files: parts joined, low-rank changes added."""

import math
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lepta.core.errors import LeptaError
from lepta.models.folder import Checkpoint
from lepta.models.language_model import as_stored, stored_name
from lepta.models.load import complete_model
from lepta.models.precision import low_dtype
from lepta.models.rows import ComputedRows, Rows, blocks, with_parts
from lepta.models.split import parts_of, rows_of_parts
from lepta.models.write import write_model
from lepta.training.trainable import ADAPTER, inject, training_parameters
from lepta.vocabulary.source import open_tokenizer

PROBE = 64  # tokens that merged and unmerged model are compared on
LARGEST_ERROR = 1e-4  # of logits, root mean square by the size of the logits, in float32
MOST_LOST = 0.5  # of what training changed, by rounding
LARGEST_ROUNDING = 0.25  # of logits where weights are stored in 16 bits; a whole model of 135 M parameters has 0.07


def changed_tensors(model: Any, weights: dict[str, torch.Tensor], source: Checkpoint) -> dict[str, ComputedRows]:
    """Turn trained weights, as `trained_weights` gives them, into tensors of the folder that the model was loaded from.

    Low-rank changes are added to the weights of the files, in float32, a few rows at a time: whatever precision the
    body was trained in, the files keep theirs. LeptaError if the files have no tensor of a trained parameter's name.
    """
    left = dict(weights)
    result = _changed_rows(model, left, source)
    for path, module in model.named_modules():
        if ADAPTER in getattr(module, "lora_A", {}):
            up, down = left.pop(f"{path}.lora_B.{ADAPTER}.weight"), left.pop(f"{path}.lora_A.{ADAPTER}.weight")
            if getattr(module, "fan_in_fan_out", False):  # its matrix is turned round, as all of GPT-2's are
                up, down = down.T, up.T
            name = _known(model, stored_name(model, f"{path}.weight"), source)
        elif ADAPTER in getattr(module, "lora_embedding_A", {}):
            # An embedding is a linear layer of one-hot rows, so peft's factors are transposed.
            up = left.pop(f"{path}.lora_embedding_A.{ADAPTER}").T
            down = left.pop(f"{path}.lora_embedding_B.{ADAPTER}").T
            name = source.input_name
        else:
            continue
        rows = source.rows_of(name)
        if rows.shape != (len(up), down.shape[1]):
            raise LeptaError(
                f"{source.folder}: {name} is not {path} alone, so a low-rank change of it cannot be written; leave it "
                "out of lora.targets, or train the rows alone (`trains` new-rows)"
            )
        result[name] = ComputedRows(rows.shape, partial(_added, rows, up * module.scaling[ADAPTER], down))
    for name, tensor in as_stored(model, left).items():
        result[_known(model, name, source)] = ComputedRows.of(tensor)
    return result


def _changed_rows(model: Any, left: dict[str, torch.Tensor], source: Checkpoint) -> dict[str, ComputedRows]:
    """Embeddings and head, if any part of them was trained; their parameters are taken out of `left`."""
    trained: defaultdict[str, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    for stored, ids, part in _parts_of_ends(model, source):
        if (rows := left.pop(name_of[id(part)], None)) is not None:
            trained[stored].append((ids, rows))
    return {stored: with_parts(source.rows_of(stored), parts) for stored, parts in trained.items()}


@torch.no_grad()
def prepare_merge(model: Any, source: Checkpoint) -> None:
    """Raise before training what `changed_tensors` would raise after it, and give rows that train their exact values.

    Beside a body in 16 bits they were rounded to as many when the model was loaded.
    """
    changed_tensors(model, training_parameters(model), source)
    if low_dtype(model) is None:
        return
    for stored, ids, part in _parts_of_ends(model, source):
        if part.requires_grad:
            part.copy_(source.rows_of(stored)[ids])


def _parts_of_ends(model: Any, source: Checkpoint) -> Iterator[tuple[str, torch.Tensor, Any]]:
    """Parameters of embeddings and head (one matrix if they are tied): matrix of the files, its rows, parameter."""
    ends = [(source.input_name, model.get_input_embeddings())]
    if source.output_name:
        ends.append((source.output_name, model.get_output_embeddings()))
    for stored, module in ends:
        for ids, part in zip(rows_of_parts(module), parts_of(module), strict=True):
            yield stored, ids, part


class Unlike(LeptaError):
    """The model that was written is not the one that was trained."""


def write_trained(
    model: Any, weights: dict[str, torch.Tensor], source: Path, folder: Path, exact: bool = False
) -> list[str]:
    """Write the folder `source` with what training changed; all else is copied byte for byte.

    Where rounding to the files' dtype would lose most of the change, or with `exact`, what changed is written in
    float32; gives a warning that says so.
    """
    checkpoint = Checkpoint(source)
    changed = changed_tensors(model, weights, checkpoint)
    lost = lost_by_rounding(changed, checkpoint)
    exact = exact or lost > MOST_LOST
    write_model(checkpoint, changed, open_tokenizer(source), folder, exact=exact)
    if not exact:
        return []
    return [
        f"in the 16 bits of {source.name} rounding would lose {lost:.0%} of what training changed, so that is written "
        "in float32; more steps or a higher learning rate change more than rounding takes away"
    ]


@torch.no_grad()
def lost_by_rounding(changed: dict[str, ComputedRows], source: Checkpoint) -> float:
    """How long the error of rounding to the files' dtypes is, by the length of what training changed; 0 if neither."""
    errors = changes = 0.0
    for name, rows in changed.items():
        stored = source.rows_of(name)
        for block in blocks(rows.shape):
            new, old = rows.rows(block).float(), stored[block].float()
            errors += float((new.to(stored.dtype).float() - new).square().sum())
            changes += float((new - old).square().sum())
    return math.sqrt(errors / (changes or 1.0))


def write_merged(model: Any, weights: dict[str, torch.Tensor], source: Path, folder: Path) -> dict[str, Any]:
    """As `write_trained`, and check the result; gives `merged_error`, and `warnings` if there are any.

    A result in 16 bits that is not the model that was trained is written in float32 instead: no run is lost.
    """
    warnings = write_trained(model, weights, source, folder)
    try:
        error = merged_error(model, weights, source, folder)
    except Unlike:
        if warnings or not _rounded(folder):
            raise
        warnings = write_trained(model, weights, source, folder, exact=True)
        error = merged_error(model, weights, source, folder)
    return {"merged_error": error} | ({"warnings": warnings} if warnings else {})


@torch.no_grad()
def merged_error(model: Any, weights: dict[str, torch.Tensor], source: Path, folder: Path) -> float:
    """How far the logits of the folder that was written are from those of what was trained, by the size of the logits.

    Both are computed in float32 on the CPU, from the files: what the body was rounded to while it trained counts
    for nothing. `Unlike` if the error is more than rounding to the files' dtype explains.
    """
    error, limit = _difference(model, weights, source, folder, torch.float32), LARGEST_ROUNDING
    if not _rounded(folder):
        limit = LARGEST_ERROR
        if not error <= limit:  # each layer rounds in float32; where that may be all that differs, float64 tells
            error = _difference(model, weights, source, folder, torch.float64)
    if not error <= limit:  # NaN is no agreement either
        raise Unlike(f"{folder}: the merged model's logits differ from the trained one's by {error:.3g} of their size")
    return error


def _difference(model: Any, weights: dict[str, torch.Tensor], source: Path, folder: Path, dtype: torch.dtype) -> float:
    """Root mean square of the difference of both models' logits, by that of the trained one's.

    One model after the other is in memory.
    """
    ids = torch.linspace(0, Checkpoint(folder).rows - 1, PROBE).long()[None]
    trained = _on_exact_weights(model, weights, source, dtype)(input_ids=ids).logits
    merged = complete_model(folder, dtype=dtype).eval()(input_ids=ids).logits
    return float((trained - merged).norm() / trained.norm())


def _on_exact_weights(model: Any, weights: dict[str, torch.Tensor], source: Path, dtype: torch.dtype) -> Any:
    """What was trained, on the weights of the files it started from."""
    exact = complete_model(source, dtype=dtype)
    if adapters := getattr(model, "peft_config", None):
        inject(adapters[ADAPTER], exact)
    parameters = dict(exact.named_parameters())
    for name, tensor in weights.items():
        parameters[name].copy_(tensor)
    return exact.eval()


def _rounded(folder: Path) -> bool:
    """Whether a folder's files have weights in a dtype other than float32."""
    return any(entry.dtype != "F32" for entry in Checkpoint(folder).entries.values())


def _added(rows: Rows, up: torch.Tensor, down: torch.Tensor, part: slice) -> torch.Tensor:
    return rows[part].float() + up[part] @ down


def _known(model: Any, name: str, source: Checkpoint) -> str:
    """The name of a tensor in the files, which may be those of the model without its head (GPT-2, BLOOM)."""
    if name not in source.entries:
        name = name.removeprefix(f"{model.base_model_prefix}.")
    if name not in source.entries:
        raise LeptaError(
            f"{source.folder}: no tensor {name}, which is to be trained; this architecture stores it under another "
            "name than it uses. Train what keeps its name: low-rank changes of linear layers, or embeddings alone "
            "(lepta pretrain --trains embeddings)"
        )
    return name
