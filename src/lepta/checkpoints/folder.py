"""A model as a plain Hugging Face folder: which tensor lies where, and which ones are the embeddings."""

import json
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lepta.errors import LeptaError
from lepta.locate import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
# Ends of tensor names, as the families write them: LLaMA, Mistral, Qwen, Gemma, Phi / GPT-2, Falcon / GPT-NeoX.
INPUT_NAMES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
OUTPUT_NAMES = ("lm_head.weight", "embed_out.weight")
MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "LICENSE*", "*.md"]

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: its bytes are [start, end) of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int


class Checkpoint:
    """A model folder, opened without loading it.

    Attributes
    ----------
    folder : Path
    config : dict
        Contents of `config.json`.
    entries : dict
        Tensor name -> `TensorEntry`, in the order of the files.
    input_name : str
        Name of the input embedding matrix.
    output_name : str or None
        Name of the output matrix (LM head); None if it is tied to the input.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise LeptaError(f"{folder}: no such folder; expected a Hugging Face model folder")
        self.config: dict[str, Any] = read_json(self.folder / "config.json")
        self.entries = {entry.name: entry for file in self._shards() for entry in read_header(file)}
        self.input_name = self._embedding(INPUT_NAMES, "input embeddings")
        outputs = [name for name in self.entries if name.endswith(OUTPUT_NAMES)]
        self.output_name = outputs[0] if outputs and not self.tied else None

    @cached_property
    def tied(self) -> bool:
        """Whether one matrix serves as input and output embeddings."""
        has_output = any(name.endswith(OUTPUT_NAMES) for name in self.entries)
        return bool(self.config.get("tie_word_embeddings", not has_output))

    @property
    def embedding_names(self) -> list[str]:
        """Names of the matrices with a row for each token: one if tied, else two."""
        return [self.input_name] if self.output_name is None else [self.input_name, self.output_name]

    @property
    def rows(self) -> int:
        """Rows of the embedding matrices, padding included."""
        return self.entries[self.input_name].shape[0]

    def load(self, name: str) -> torch.Tensor:
        """Load one tensor."""
        with safe_open(self.entries[name].file, framework="pt") as file:
            return file.get_tensor(name)

    def shards(self) -> list[Path]:
        """The weight files, in order."""
        return list(dict.fromkeys(entry.file for entry in self.entries.values()))

    def _shards(self) -> list[Path]:
        index = self.folder / INDEX
        if index.is_file():
            names = sorted(set(read_json(index).get("weight_map", {}).values()))
            files = [self.folder / name for name in names]
            for file in files:
                if file.parent.resolve() != self.folder.resolve():
                    raise LeptaError(f"{index}: names {file}, which is outside the folder")
                if not file.is_file():
                    raise LeptaError(f"{index}: names {file.name}, which is missing; download it again")
            return files
        if (self.folder / SINGLE).is_file():
            return [self.folder / SINGLE]
        if pickles := [file.name for pattern in PICKLES for file in self.folder.glob(pattern)]:
            raise LeptaError(
                f"{self.folder}: weights only as pickle ({pickles[0]}), which can run any code when read; "
                "convert them to safetensors with save_pretrained() where you trust them"
            )
        raise LeptaError(f"{self.folder}: no weights; expected {SINGLE} or {INDEX}")

    def _embedding(self, endings: tuple[str, ...], what: str) -> str:
        names = [name for name in self.entries if name.endswith(endings)]
        if len(names) != 1:
            found = f"found {', '.join(names)}" if names else "found none"
            raise LeptaError(f"{self.folder}: {what}: expected one tensor named ...{' or ...'.join(endings)}, {found}")
        return names[0]


def read_header(file: Path) -> list[TensorEntry]:
    """Read where the tensors of a safetensors file lie.

    Raises
    ------
    LeptaError
        If the file is not whole.
    """
    try:
        with safe_open(file, framework="pt"):
            pass  # the library's own check of the whole header against the file's length
        with file.open("rb") as data:
            (length,) = struct.unpack("<Q", data.read(8))
            header = json.loads(data.read(length))
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise LeptaError(f"{file}: not a whole safetensors file ({error}); copy or download it again") from error
    offset = 8 + length
    tensors = [(name, value) for name, value in header.items() if name != "__metadata__"]
    return [
        TensorEntry(
            name,
            value["dtype"],
            tuple(value["shape"]),
            file,
            offset + value["data_offsets"][0],
            offset + value["data_offsets"][1],
        )
        for name, value in sorted(tensors, key=lambda item: item[1]["data_offsets"])
    ]
