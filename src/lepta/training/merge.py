"""What training changed, as tensors of the model's own files: parts joined, low-rank changes added."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lepta.core.errors import LeptaError
from lepta.models.folder import Checkpoint
from lepta.models.load import load_model
from lepta.models.rows import ComputedRows, Rows
from lepta.models.split import parts_of
from lepta.models.write import write_model
from lepta.training.trainable import ADAPTER
from lepta.vocabulary.source import open_tokenizer

PROBE = 64  # tokens that merged and unmerged model are compared on
LARGEST_ERROR = 1e-4  # of a logit in float32, of the size of the largest one if that is above 1
LARGEST_ROUNDING = 0.1  # the same where weights are stored in 16 bits


def changed_tensors(model: Any, weights: dict[str, torch.Tensor], source: Checkpoint) -> dict[str, ComputedRows]:
    """Turn trained weights into the tensors that a model folder is to be written with.

    Low-rank changes are added to the weights of the files, in float32, a few rows at a time: whatever precision the
    body was trained in, the files keep theirs.

    Parameters
    ----------
    model : transformers causal LM
        As `lepta.training.trainable.make_trainable` left it.
    weights : dict
        Parameter name -> tensor, as `trained_weights` gives them.
    source : Checkpoint
        The folder that the model was loaded from.

    Returns
    -------
    dict
        Tensor name -> its rows.

    Raises
    ------
    LeptaError
        If the files know a trained tensor by no name.
    """
    left, result = dict(weights), {}
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    for stored, module in _ends(model, source):
        names = [name_of[id(part)] for part in parts_of(module)]
        trained = [left.pop(name, None) for name in names]
        if any(part is not None for part in trained):
            starts = [0, *itertools.accumulate(len(part) for part in parts_of(module))]
            parts = [(start, part) for start, part in zip(starts, trained, strict=False) if part is not None]
            rows = source.rows_of(stored)
            result[stored] = ComputedRows(rows.shape, partial(_replaced, rows, parts))
    for path, module in model.named_modules():
        if hasattr(module, "lora_A") and ADAPTER in module.lora_A:
            up, down = (left.pop(f"{path}.{factor}.{ADAPTER}.weight") for factor in ("lora_B", "lora_A"))
            name = _known(f"{path}.weight", source)
            rows = source.rows_of(name)
            result[name] = ComputedRows(rows.shape, partial(_added, rows, up * module.scaling[ADAPTER], down))
        if ADAPTER in getattr(module, "lora_embedding_A", {}):
            up, down = (left.pop(f"{path}.lora_embedding_{factor}.{ADAPTER}") for factor in ("A", "B"))
            rows = source.rows_of(source.input_name)
            scaled = up.T * module.scaling[ADAPTER]
            result[source.input_name] = ComputedRows(rows.shape, partial(_added, rows, scaled, down.T))
    for name, tensor in left.items():
        result[_known(name, source)] = ComputedRows.of(tensor)
    return result


@torch.no_grad()
def give_exact_rows(model: Any, source: Checkpoint) -> None:
    """Take the rows that train from the files again: beside a body in 16 bits they were rounded to as many.

    Parameters
    ----------
    model : transformers causal LM
        As `lepta.training.trainable.make_trainable` left it.
    source : Checkpoint
        The folder that it was loaded from.
    """
    if _low_dtype(model) is None:
        return
    for stored, module in _ends(model, source):
        rows, start = source.rows_of(stored), 0
        for part in parts_of(module):
            if part.requires_grad:
                part.copy_(rows[start : start + len(part)])
            start += len(part)


def _ends(model: Any, source: Checkpoint) -> list[tuple[str, Any]]:
    """Names of the matrices with a row for each token, and the modules that hold them: one if they are tied."""
    ends = [(source.input_name, model.get_input_embeddings())]
    if source.output_name:
        ends.append((source.output_name, model.get_output_embeddings()))
    return ends


def check_mergeable(model: Any, source: Checkpoint) -> None:
    """Raise before training what `changed_tensors` would raise after it; nothing is computed or written."""
    trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    changed_tensors(model, trained, source)


def write_merged(model: Any, weights: dict[str, torch.Tensor], source: Path, folder: Path) -> float:
    """Write a model folder with what training changed in its weights, and check it.

    Parameters
    ----------
    model : transformers causal LM
        That was trained.
    weights : dict
        As for `changed_tensors`.
    source : Path
        Folder that it was loaded from.
    folder : Path
        Existing folder for the result.

    Returns
    -------
    float
        See `merged_error`.
    """
    checkpoint = Checkpoint(source)
    write_model(checkpoint, changed_tensors(model, weights, checkpoint), open_tokenizer(source), folder)
    return merged_error(model, folder)


def merged_error(model: Any, folder: Path) -> float:
    """Largest difference between the logits of the model that was trained and of the one that was written.

    In float32 each layer rounds; where that may be all that differs, both are computed again in float64.

    Raises
    ------
    LeptaError
        If it is more than rounding explains.
    """
    checkpoint = Checkpoint(folder)
    low = {entry.dtype for entry in checkpoint.entries.values()} != {"F32"} or _low_dtype(model) is not None
    ids = torch.linspace(0, checkpoint.rows - 1, PROBE).long()[None].to(model.device)
    merged = load_model(folder, torch.float32)
    error, largest = _difference(model, merged, ids)
    if not low and error > LARGEST_ERROR:
        error, largest = _difference(model.double(), merged.double(), ids)
        model.float()
    if error > (LARGEST_ROUNDING if low else LARGEST_ERROR) * max(1.0, largest):
        raise LeptaError(f"{folder}: the merged model's logits differ from the trained one's by {error:.3g}")
    return error


@torch.no_grad()
def _difference(model: Any, merged: Any, ids: torch.Tensor) -> tuple[float, float]:
    """Largest difference of logits, and the largest logit."""
    with torch.autocast(model.device.type, _low_dtype(model), enabled=_low_dtype(model) is not None):
        before = model(input_ids=ids).logits
    after = merged(input_ids=ids).logits
    return float((before - after).abs().max()), float(before.abs().max())


def _low_dtype(model: Any) -> torch.dtype | None:
    return next((p.dtype for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)), None)


def _replaced(stored: Rows, parts: list[tuple[int, torch.Tensor]], rows: slice) -> torch.Tensor:
    """Rows of a file with those of some parts, each beginning at a row, in their places."""
    result = stored[rows].float()
    for start, part in parts:
        first, last = max(rows.start, start), min(rows.stop, start + len(part))
        if first < last:
            result[first - rows.start : last - rows.start] = part[first - start : last - start]
    return result


def _added(rows: Rows, up: torch.Tensor, down: torch.Tensor, part: slice) -> torch.Tensor:
    return rows[part].float() + up[part] @ down


def _known(name: str, source: Checkpoint) -> str:
    if name not in source.entries:
        raise LeptaError(
            f"{source.folder}: no tensor {name}, which is to be trained; this architecture stores it under another "
            "name than it uses. Train what keeps its name: low-rank changes of linear layers, or embeddings alone "
            "(lepta pretrain --trains embeddings)"
        )
    return name
