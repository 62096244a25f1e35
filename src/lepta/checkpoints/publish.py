"""Write a model folder: the source's weights with other embedding matrices, a tokenizer and a model card.

Tensors that do not change are copied as bytes, file to file; no model is loaded.
"""

import json
import math
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lepta.checkpoints.folder import DTYPES, INDEX, Checkpoint, TensorEntry
from lepta.errors import LeptaError
from lepta.locate import read_json
from lepta.vocabulary.source import TokenizerSource

CONFIG, GENERATION = "config.json", "generation_config.json"
CARRIED_FILES = ("LICENSE*", "NOTICE*")
COPY_BLOCK = 1 << 24


def write_model(
    source: Checkpoint,
    matrices: Mapping[str, torch.Tensor],
    tokenizer: TokenizerSource,
    folder: Path,
    new_ids: Mapping[int, int] | None = None,
) -> None:
    """Write `source` into an existing empty folder with some tensors replaced and another tokenizer.

    The config's vocabulary size follows the new matrices; generation settings and licence files come along.

    Parameters
    ----------
    source : Checkpoint
    matrices : mapping
        Tensor name -> new tensor; written in the dtype of the tensor it replaces.
    tokenizer : TokenizerSource
    folder : Path
    new_ids : mapping, optional
        Old id -> new id of the tokens that the new vocabulary has too, if ids changed; configs then name the new ones.

    Raises
    ------
    LeptaError
        If a replaced tensor is not in the source, or the matrices do not agree in rows or hold NaN.
    """
    rows = {tensor.shape[0] for name, tensor in matrices.items() if name in source.embedding_names}
    if unknown := [name for name in matrices if name not in source.entries]:
        raise LeptaError(f"{source.folder}: no tensor {unknown[0]} to replace")
    if len(rows) > 1:
        raise LeptaError(f"{source.folder}: input and output embeddings with different numbers of rows {sorted(rows)}")
    for name, tensor in matrices.items():
        if not torch.isfinite(tensor).all():
            raise LeptaError(f"{name}: NaN or infinite values would be written; nothing was")
    for shard in source.shards():
        entries = [entry for entry in source.entries.values() if entry.file == shard]
        if any(entry.name in matrices for entry in entries):
            write_shard(folder / shard.name, entries, matrices)
        else:
            shutil.copyfile(shard, folder / shard.name)
    if (source.folder / INDEX).is_file():
        _write_index(source, matrices, folder)
    _write_configs(source, rows.pop() if rows else source.rows, new_ids, folder)
    for pattern in CARRIED_FILES:
        for file in source.folder.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    tokenizer.save(folder)


def _write_configs(source: Checkpoint, rows: int, new_ids: Mapping[int, int] | None, folder: Path) -> None:
    configs = {CONFIG: config_with_rows(source.config, rows)}
    if (source.folder / GENERATION).is_file():
        configs[GENERATION] = read_json(source.folder / GENERATION)
    for name, config in configs.items():
        if new_ids is not None:
            config = config_with_token_ids(config, new_ids, str(source.folder / name))
        (folder / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def config_with_rows(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """A copy of a model config with another number of embedding rows; all other fields keep value and type."""
    changed = dict(config)
    if isinstance(config.get("text_config"), dict):
        changed["text_config"] = dict(config["text_config"]) | {"vocab_size": rows}
    if "vocab_size" in config or "text_config" not in config:
        changed["vocab_size"] = rows
    return changed


def config_with_token_ids(config: Mapping[str, Any], new_ids: Mapping[int, int], where: str) -> dict[str, Any]:
    """A copy of a config in which the fields that name tokens (`eos_token_id`, ...) name them by their new ids.

    Only those fields: a number elsewhere that equals an old id is no token.

    Raises
    ------
    LeptaError
        If a field names a token that the new vocabulary does not have.
    """

    def renamed(field: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: renamed(name, part) for name, part in value.items()}
        if not field.endswith(("_token_id", "_token_ids")) or value is None:
            return value
        if isinstance(value, list):
            return [renamed(field, part) for part in value]
        if value not in new_ids:
            raise LeptaError(f"{where}: {field} is {value}, a token that the new vocabulary does not have")
        return new_ids[value]

    return {name: renamed(name, value) for name, value in config.items()}


def write_shard(path: Path, entries: list[TensorEntry], replaced: Mapping[str, torch.Tensor]) -> None:
    """Write one safetensors file: `entries` copied byte for byte, except the tensors in `replaced`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for entry in entries:
        shape = tuple(replaced[entry.name].shape) if entry.name in replaced else entry.shape
        length = entry.end - entry.start
        if entry.name in replaced:
            length = math.prod(shape) * torch.empty(0, dtype=DTYPES[entry.dtype]).element_size()
        header[entry.name] = {"dtype": entry.dtype, "shape": shape, "data_offsets": [position, position + length]}
        position += length
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start at a multiple of 8
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(encoded)) + encoded)
        for entry in entries:
            if entry.name in replaced:
                _write_tensor(out, replaced[entry.name], DTYPES[entry.dtype])
            else:
                _copy_range(entry.file, entry.start, entry.end, out)


def _write_tensor(out: BinaryIO, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    for part in tensor.split(8192):
        out.write(part.detach().to("cpu", dtype).contiguous().view(torch.uint8).numpy().tobytes())


def _copy_range(file: Path, start: int, end: int, out: BinaryIO) -> None:
    with file.open("rb") as data:
        data.seek(start)
        while start < end:
            block = data.read(min(COPY_BLOCK, end - start))
            if not block:
                raise LeptaError(f"{file}: shorter than its header says; copy or download it again")
            out.write(block)
            start += len(block)


def _write_index(source: Checkpoint, matrices: Mapping[str, torch.Tensor], folder: Path) -> None:
    sizes = {name: math.prod(e.shape) * _bytes(e.dtype) for name, e in source.entries.items()}
    sizes |= {name: tensor.numel() * _bytes(source.entries[name].dtype) for name, tensor in matrices.items()}
    weight_map = {name: entry.file.name for name, entry in source.entries.items()}
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _bytes(dtype: str) -> int:
    return torch.empty(0, dtype=DTYPES[dtype]).element_size()


def save_loaded_model(model: Any, tokenizer: TokenizerSource, folder: Path) -> None:
    """Write a model that is in memory (transformers) with its tokenizer into an existing folder."""
    model.save_pretrained(folder)
    tokenizer.save(folder)
