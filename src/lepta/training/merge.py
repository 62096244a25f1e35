"""What training changed, as tensors of the model's own files: parts joined, low-rank changes added."""

import itertools
from functools import partial
from typing import Any

import torch

from lepta.checkpoints.folder import Checkpoint
from lepta.checkpoints.rows import ComputedRows, Rows
from lepta.errors import LeptaError
from lepta.training.split import parts_of
from lepta.training.trainable import ADAPTER


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
    ends = [(source.input_name, model.get_input_embeddings())]
    if source.output_name:
        ends.append((source.output_name, model.get_output_embeddings()))
    for stored, module in ends:
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
    for name, tensor in left.items():
        result[_known(name, source)] = ComputedRows.of(tensor)
    return result


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
            f"{source.folder}: no tensor {name}, which training changed; this architecture stores its weights under "
            "other names than it uses, so only its embeddings can be trained (pretrain.trains: embeddings)"
        )
    return name
