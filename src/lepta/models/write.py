"""Write a model folder: the source's weights with other embedding matrices, a tokenizer and a model card.

Tensors that do not change are copied as bytes, file to file; no model is loaded.
"""

import errno
import json
import math
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lepta.core.errors import LeptaError
from lepta.core.progress import step, track
from lepta.core.reading import read_json
from lepta.models.folder import DTYPES, INDEX, SINGLE, Checkpoint, TensorEntry, says_tied
from lepta.models.rows import ComputedRows, blocks, finite
from lepta.models.versions import for_all_versions
from lepta.vocabulary.source import TokenizerSource

CONFIG, GENERATION = "config.json", "generation_config.json"
# Of images too (preprocessor_config.json); processors prefer the older form of their template to the tokenizer's.
CARRIED_FILES = ("LICENSE*", "NOTICE*", "*processor_config.json", "chat_template.json")
# eos_token_id; image_token_index of vision-language models; what must be written
TOKEN_FIELDS = ("_token_id", "_token_ids", "_token_index", "force_words_ids")
PER_LAYER_SIZE = "vocab_size_per_layer_input"  # rows of the per-layer embeddings (Gemma 3n and 4)


@step("writing the model")
def write_model(
    source: Checkpoint,
    matrices: Mapping[str, ComputedRows],
    tokenizer: TokenizerSource,
    folder: Path,
    new_ids: Mapping[int, int] | None = None,
    *,
    untie: bool = False,
    hard_link: bool = False,
    exact: bool = False,
) -> None:
    """Write `source` into an existing empty folder with some tensors replaced and another tokenizer.

    `matrices` names tensors and their new rows, which are computed as they are written, in the dtype of the tensor
    they replace; with `exact` in float32, which the config then asks for. With `untie` the source ties input and output
    embeddings and the result does not: the new head is written beside the input embeddings. `new_ids` (old id -> new
    id) is needed where ids changed: configs then name the new ones.

    The config's vocabulary size follows the new matrices; settings of generation and of processors and licence files
    come along. Files whose tensors do not change are copied whole, or shared with the source (`hard_link`): they then
    take no space, but who edits one edits both.

    LeptaError if a replaced tensor is not in the source, the matrices do not agree in rows, or values are not finite.
    """
    matrices = dict(matrices) | {table: matrices[name] for table, name in source.twins.items() if name in matrices}
    new = [name for name in matrices if name not in source.entries]
    if new and not untie:
        raise LeptaError(f"{source.folder}: no tensor {new[0]} to replace")
    rows = set()  # of the head
    for name in matrices.keys() & {*source.embedding_names, *new}:
        surplus = source.surplus if name == source.input_name else 0
        rows.add(matrices[name].shape[0] - surplus)
    if len(rows) > 1:
        raise LeptaError(f"{source.folder}: input and output embeddings with different numbers of rows {sorted(rows)}")
    _write_weights(source, matrices, new, folder, hard_link, exact)
    [number] = rows or {source.rows - source.surplus}
    _write_configs(source, number, new_ids, untie, folder)
    if exact:
        config = config_in_float32(read_json(folder / CONFIG))
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for pattern in CARRIED_FILES:
        for file in source.folder.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    tokenizer.save(folder)


def _write_weights(
    source: Checkpoint, matrices: Mapping[str, ComputedRows], new: list[str], folder: Path, hard_link: bool, exact: bool
) -> None:
    """Write the weight files of `write_model`, and their index where the source has one."""
    dropped = {source.stored_output} - {source.output_name, *matrices}  # a tied head that is stored all the same
    weight_map: dict[str, str] = {}
    total = 0
    for shard in source.shards():
        stored = [entry for entry in source.entries.values() if entry.file == shard]
        entries = [entry for entry in stored if entry.name not in dropped]
        if source.entries[source.input_name].file == shard:
            entries += [replace(source.entries[source.input_name], name=name) for name in new]
        replaced = {}
        for place, entry in enumerate(entries):
            weight_map[entry.name] = shard.name
            if entry.name in matrices:
                replaced[entry.name] = matrices[entry.name]
                if exact:
                    entries[place] = replace(entry, dtype="F32")
        if replaced or len(entries) < len(stored):
            total += write_shard(folder / shard.name, entries, replaced)
        else:
            total += sum(entry.end - entry.start for entry in entries)
            copy_file(shard, folder / shard.name, hard_link)
    if not (folder / SINGLE).is_file():
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def copy_file(source: Path, target: Path, hard_link: bool = False) -> None:
    """Copy a file; the kernel shares its blocks with the copy where the file system can (btrfs, XFS)."""
    if hard_link:
        target.hardlink_to(source.resolve())
        return
    try:
        with source.open("rb") as data, target.open("wb") as out:
            while os.copy_file_range(data.fileno(), out.fileno(), 1 << 30):
                pass
    except AttributeError:  # Linux alone has it
        shutil.copyfile(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        shutil.copyfile(source, target)  # between file systems that cannot


def _write_configs(source: Checkpoint, rows: int, new_ids: Mapping[int, int] | None, untie: bool, folder: Path) -> None:
    configs = {CONFIG: config_with_rows(source.config, source.rows - source.surplus, rows)}
    configs[CONFIG].pop("auto_map", None)  # it names Python files, and none come along
    if untie or (source.output_name and says_tied(source.config)):
        configs[CONFIG] = config_untied(configs[CONFIG])
    if (source.folder / GENERATION).is_file():
        configs[GENERATION] = read_json(source.folder / GENERATION)
    for name, config in configs.items():
        if new_ids is not None:
            config = TokenIds(new_ids, str(source.folder / name)).fields(config)
        write_config(folder / name, config)


def write_config(file: Path, config: Mapping[str, Any]) -> None:
    """Write a config of a model or of its generation, for transformers 4 and 5."""
    file.write_text(json.dumps(for_all_versions(config), indent=2) + "\n", encoding="utf-8")


def carry_configs(source: Path, folder: Path) -> None:
    """Copy the configs of one folder to another; one that not all versions of transformers read is written anew.

    `auto_map` stays behind: it names Python code, and none comes along.
    """
    for name in (CONFIG, GENERATION):
        if not (source / name).is_file():
            continue
        stored = read_json(source / name)
        config = dict(stored)
        config.pop("auto_map", None)
        if for_all_versions(config) == stored:
            shutil.copyfile(source / name, folder / name)
        else:
            write_config(folder / name, config)


def config_with_rows(config: Mapping[str, Any], old_rows: int, rows: int) -> dict[str, Any]:
    """A copy of a model config with another number of embedding rows; all other fields keep value and type.

    A config inside it follows if it says the old number: vision-language models name their text model in many ways.
    """

    def resized(part: Mapping[str, Any]) -> dict[str, Any]:
        changed = dict(part)
        for name, value in part.items():
            if isinstance(value, dict):
                changed[name] = resized(value)
        if part.get("vocab_size") == old_rows:
            changed["vocab_size"] = rows
        if PER_LAYER_SIZE in part and rows != old_rows:
            changed[PER_LAYER_SIZE] = rows
        return changed

    changed = resized(config)
    if isinstance(config.get("text_config"), dict):
        changed["text_config"]["vocab_size"] = rows
    if "vocab_size" in config or (rows != old_rows and changed == config):
        changed["vocab_size"] = rows
    return changed


def config_untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a model config whose input and output embeddings are two matrices."""
    changed = dict(config) | {"tie_word_embeddings": False}
    if "tie_word_embeddings" in (config.get("text_config") or {}):
        changed["text_config"] = dict(config["text_config"]) | {"tie_word_embeddings": False}
    return changed


def config_in_float32(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a model config that has weights loaded in float32."""
    changed = dict(config)
    for name, part in config.items():
        if name in ("dtype", "torch_dtype"):
            changed[name] = "float32"
        elif isinstance(part, dict):
            changed[name] = config_in_float32(part)
    if "model_type" in config and "torch_dtype" not in config:
        changed["dtype"] = "float32"
    return changed


@dataclass(frozen=True)
class TokenIds:
    """The new ids of tokens that configs name by their old ones; `where` is for messages."""

    new_ids: Mapping[int, int]
    where: str

    def fields(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of a config in which the fields that name tokens (`eos_token_id`, ...) name them by their new ids.

        Only those fields: a number elsewhere that equals an old id is no token, and neither is a negative one. What
        must not be written (`suppress_tokens`, `bad_words_ids`) or is biased (`sequence_bias`) is left out where the
        new vocabulary cannot write it. LeptaError if another field names a token that the new vocabulary does not have.
        """
        changed = {}
        for name, value in config.items():
            try:
                changed[name] = self._field(name, value)
            except (TypeError, ValueError) as error:
                raise LeptaError(f"{self.where}: {name}: expected ids of tokens as transformers writes them") from error
        return changed

    def _field(self, name: str, value: Any) -> Any:
        known = self.new_ids.keys()
        if value is None:
            return None
        match name:
            case "suppress_tokens" | "begin_suppress_tokens":
                return [self.new_ids[token] for token in value if token in known] or None
            case "bad_words_ids":
                return [self._token(name, word) for word in value if known >= set(word)] or None
            case "sequence_bias":
                return [[self._token(name, ids), bias] for ids, bias in value if known >= set(ids)] or None
            case "forced_decoder_ids":
                return [[position, self._token(name, token)] for position, token in value]
        if isinstance(value, dict):
            return self.fields(value)
        return self._token(name, value) if name.endswith(TOKEN_FIELDS) else value

    def _token(self, name: str, value: Any) -> Any:
        if isinstance(value, list):  # words are lists of ids, and one of several words is a list of those
            return [self._token(name, part) for part in value]
        if value is None or (isinstance(value, int) and value < 0):
            return value
        if value not in self.new_ids:
            raise LeptaError(f"{self.where}: {name} is {value}, a token that the new vocabulary does not have")
        return self.new_ids[value]


def write_shard(path: Path, entries: list[TensorEntry], replaced: Mapping[str, ComputedRows]) -> int:
    """Write one safetensors file, its entries copied as bytes, except those in `replaced`; returns bytes of tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for entry in entries:
        shape, length = entry.shape, entry.end - entry.start
        if entry.name in replaced:
            shape = replaced[entry.name].shape
            length = math.prod(shape) * DTYPES[entry.dtype].itemsize
        header[entry.name] = {"dtype": entry.dtype, "shape": shape, "data_offsets": [position, position + length]}
        position += length
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start at a multiple of 8
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(encoded)) + encoded)
        for entry in entries:
            if entry.name not in replaced:
                out.writelines(bytes_of(entry))
                continue
            new = replaced[entry.name]
            for rows in track(new.blocks(), f"writing {entry.name}, blocks of rows", len(list(blocks(new.shape)))):
                block = rows.to("cpu", DTYPES[entry.dtype]).contiguous()
                if not finite(block):
                    raise LeptaError(f"{entry.name}: NaN or infinite values would be written; nothing is kept")
                out.write(block.view(torch.uint8).numpy().data)
    return position


def bytes_of(entry: TensorEntry) -> Iterator[memoryview]:
    """The bytes of a tensor, in blocks."""
    for block in blocks(entry.raw.shape):
        yield entry.raw[block].numpy().data
