"""A model as a plain Hugging Face folder: which tensor lies where, and which ones are the embeddings."""

import difflib
import itertools
import math
import re
import shutil
import struct
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lepta.core.errors import LeptaError, explained
from lepta.core.reading import conform, parse_json, read_json
from lepta.models.language_model import check_architecture
from lepta.models.precision import config_of
from lepta.models.rows import StoredRows, same_values
from lepta.models.schema import REMEDY, Index, ModelConfig
from lepta.text.locate import locate

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
# Ends of tensor names, as the families write them: LLaMA, Mistral, Qwen, Gemma, Phi, OPT / GPT-2, MPT / Falcon, BLOOM,
# ChatGLM / GPT-NeoX / InternLM2 / Mamba, RWKV.
INPUT_NAMES = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
    "backbone.embeddings.weight",
    "rwkv.embeddings.weight",
)
OUTPUT_NAMES = ("lm_head.weight", "embed_out.weight", "output_layer.weight")
QUANTISED_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_layer)\.(?!bias$)[^.]+$")  # GPTQ: lm_head.qweight
LAST_NAMES = ("output.weight", "head.weight")  # only as the whole name: in the middle of a model they are layers
# Further matrices with a row for each token: embeddings of each layer (Gemma 3n and 4), and embeddings and head of
# multi-token prediction, in a layer after the last (DeepSeek, GLM) or apart.
PER_LAYER = "embed_tokens_per_layer.weight"  # Gemma 3n's has fewer rows than its vocabulary
PREDICTION = re.compile(r"(^|.*\.)(layers\.\d+|mtp[^.]*)\..*")
OTHER_TABLE = re.compile(r"(?!.*pos).*(embed|head)")  # a model may have as many positions as tokens
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

    @property
    def raw(self) -> StoredRows:
        """Its bytes, whatever its type, read some at a time."""
        return StoredRows(self.file, self.start, (self.end - self.start,), torch.uint8)

    @property
    def rows(self) -> StoredRows:
        """Its numbers, read a few rows at a time; a single number is one row."""
        return StoredRows(self.file, self.start, self.shape or (1,), DTYPES[self.dtype])


class Checkpoint:
    """A model folder or a hub id `OWNER/NAME[@REVISION]`, opened without loading it.

    A GGUF file (also `package:NAME/FILE`) is converted to a folder, which is gone when this object is.
    Names of the two matrices are given for architectures whose names are not known here. `config` holds `config.json`,
    `entries` a `TensorEntry` for each tensor, in the order of the files. `input_name` is the input embedding matrix,
    `output_name` the LM head, None if it is tied to the input; `stored_output` is the same whether tied or not: some
    folders store a tied head too.
    """

    def __init__(self, folder: str | Path, input_name: str | None = None, output_name: str | None = None) -> None:
        self.name = str(folder)  # what the user gave
        self.folder = locate(folder, hub_files=MODEL_FILES)
        if self.folder.suffix == ".gguf":
            self.folder = self._converted(self.folder)
        if not self.folder.is_dir():
            raise LeptaError(f"{folder}: a file; expected a Hugging Face model folder or a .gguf file")
        # transformers would load the adapter along with the model; we copy tensors, and would lose it without a word.
        if (self.folder / ADAPTER).is_file():
            raise LeptaError(
                f"{self.folder}: holds a PEFT adapter ({ADAPTER}), expected a whole model; merge the adapter first "
                "(peft: AutoPeftModelForCausalLM.from_pretrained, merge_and_unload, save_pretrained)"
            )
        self.config: dict[str, Any] = read_json(self.folder / "config.json")
        conform(ModelConfig, self.config, self.folder / "config.json", REMEDY)
        self.entries = self._read_entries()
        self.input_name = self._named(input_name) or self._input()
        self.stored_output = self._named(output_name) or self._output()
        self.output_name = None if self.tied else self.stored_output

    def _converted(self, file: Path) -> Path:
        from lepta.models.gguf import import_gguf  # which reads folders

        folder = Path(tempfile.mkdtemp(prefix="lepta-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        import_gguf(file, folder)
        return folder

    @classmethod
    def of(cls, source: "AnyModel") -> "Checkpoint":
        """A checkpoint that is open already, or that of any model source."""
        return source if isinstance(source, Checkpoint) else cls(source)

    def __repr__(self) -> str:
        return f"Checkpoint({self.folder}, {self.rows:,} rows of {self.input_name})"

    @cached_property
    def tied(self) -> bool:
        """Whether one matrix serves as input and output embeddings.

        A head that is stored and differs is a head of its own, whatever the config says; so transformers takes it.
        Where the config says nothing, the family's default in transformers counts, as it does when the model is loaded.
        """
        says, head = says_tied(self.config), self.stored_output
        if head is None:
            return says is not False or self._ties
        if says is False or not same_values(self.rows_of(self.input_name), self.rows_of(head)):
            return False
        return self.config.get("tie_word_embeddings") is True or self._ties

    @property
    def _ties(self) -> bool:
        """What transformers makes of the config: of one inside it LLaVA's counts for the whole, Qwen3-VL's does not."""
        return bool(getattr(config_of(self.folder), "tie_word_embeddings", False))

    @property
    def embedding_names(self) -> list[str]:
        """Names of the matrices with a row for each token: one if tied, else two."""
        return list(filter(None, (self.input_name, self.output_name)))

    @property
    def bias_name(self) -> str | None:
        """Name of the vector that is added to the logits, where a family has one (Phi-1, GPT-J)."""
        if self.stored_output:
            name = self.stored_output.removesuffix("weight") + "bias"
            return name if name in self.entries else None
        ends = tuple(name.removesuffix("weight") + "bias" for name in OUTPUT_NAMES)  # of a tied head: it is not stored
        return next((name for name in self.entries if name.endswith(ends)), None)

    @cached_property
    def tables(self) -> list[str]:
        """Names of further matrices with a row for each token: per-layer embeddings, multi-token prediction."""
        return [name for name in self._other_tables() if name.endswith(PER_LAYER) or PREDICTION.match(name)]

    @property
    def vocabulary_names(self) -> list[str]:
        """Names of all tensors with a row for each token: the matrices, the bias and further tables."""
        return [*self.embedding_names, *filter(None, [self.bias_name]), *self.tables]

    @property
    def rows(self) -> int:
        """Rows of the input embeddings, padding included."""
        return self.entries[self.input_name].shape[0]

    @cached_property
    def twins(self) -> dict[str, str]:
        """Tables that repeat one of the two matrices, as those of DeepSeek's prediction layer do -> its name."""
        names = itertools.product(self.tables, self.embedding_names)
        return {table: name for table, name in names if same_values(self.rows_of(table), self.rows_of(name))}

    @property
    def surplus(self) -> int:
        """Rows that the input embeddings have more than the head: Mllama has 8, for the image token."""
        return self.rows - self.entries[self.output_name or self.input_name].shape[0]

    @property
    def weights(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(entry.shape) for entry in self.entries.values())

    @property
    def width(self) -> int:
        """Columns of the embedding matrices."""
        return self.entries[self.input_name].shape[1]

    def rows_of(self, name: str) -> StoredRows:
        """One tensor, read a few rows at a time."""
        entry = self.entries[name]
        if not self.is_floating(name):
            raise LeptaError(
                f"{entry.file}: {name} is {entry.dtype}; expected a floating-point type of 16 bits or more, nothing "
                "quantised"
            )
        return entry.rows

    def raw(self, name: str) -> StoredRows:
        """The bytes of one tensor of any type, read some at a time."""
        return self.entries[name].raw

    def is_floating(self, name: str) -> bool:
        """Tell whether a tensor holds plain floating-point numbers; those of 8 bits mean nothing without a scale."""
        dtype = DTYPES.get(self.entries[name].dtype)
        return dtype is not None and dtype.is_floating_point and dtype.itemsize > 1

    def check_replaceable(self) -> None:
        """Refuse a model that cannot get another vocabulary, before any work is done.

        LeptaError if unknown tensors have a row for each token too, the head is quantised, ids of tokens mean more to
        the model's code than rows, transformers has no such language model, or the model runs by Python code in its
        folder.
        """
        for name in self.entries:
            if self.stored_output is None and QUANTISED_HEAD.search(name):
                raise LeptaError(
                    f"{self.entries[name].file}: {name} is of a head that is quantised, so its rows cannot be "
                    "replaced; expected lm_head.weight in 16 or 32 bits; take the model before it was quantised"
                )
        for name in self._other_tables():
            if name not in self.tables:
                raise LeptaError(
                    f"{self.entries[name].file}: {name} has a row for each token too, and would keep those of the old "
                    "vocabulary; expected input embeddings, a head, per-layer embeddings or multi-token prediction. "
                    "Save the model without such tensors if it works without them, or take another model"
                )
        check_architecture(self.config, self.folder / "config.json")

    def _other_tables(self) -> Iterator[str]:
        """Names of matrices, and biases, that have a row for each token, apart from input embeddings and head."""
        for name, entry in self.entries.items():
            if name in (self.input_name, self.stored_output, self.bias_name):
                continue
            table = len(entry.shape) == 2 and OTHER_TABLE.match(name)
            bias = len(entry.shape) == 1 and name.endswith("bias")  # ModernBERT's decoder.bias
            if name.endswith(PER_LAYER) or (entry.shape[:1] == (self.rows,) and (table or bias)):
                yield name

    def load(self, name: str) -> torch.Tensor:
        """Load one tensor."""
        with safe_open(self.entries[name].file, framework="pt") as file:
            return file.get_tensor(name)

    def shards(self) -> list[Path]:
        """The weight files, in order."""
        return list(dict.fromkeys(entry.file for entry in self.entries.values()))

    def _read_entries(self) -> dict[str, TensorEntry]:
        """Where all tensors lie, in the order of the files; of a file and an index transformers reads the file."""
        index = self.folder / INDEX
        if (self.folder / SINGLE).is_file() or not index.is_file():
            return read_header(self._single_file())
        weight_map = conform(Index, read_json(index), index, REMEDY).weight_map
        entries: dict[str, TensorEntry] = {}
        for file in map(self.folder.joinpath, sorted(set(weight_map.values()))):
            if file.parent.resolve() != self.folder.resolve():
                raise LeptaError(f"{index}: names {file}, which is outside the folder")
            if not file.is_file():
                raise LeptaError(f"{index}: names {file.name}, which is missing; download it again")
            entries |= read_header(file)
        for name, file_name in weight_map.items():
            if name not in entries or entries[name].file.name != file_name:
                raise LeptaError(
                    f"{index}: names {name} in {file_name}, which does not hold it; download the folder again"
                )
        return entries

    def _single_file(self) -> Path:
        if (self.folder / SINGLE).is_file():
            return self.folder / SINGLE
        if pickles := list(itertools.chain.from_iterable(map(self.folder.glob, PICKLES))):
            raise LeptaError(
                f"{self.folder}: weights only as pickle ({pickles[0].name}), which can run any code when read; "
                "convert them to safetensors with save_pretrained() where you trust them"
            )
        if sharded := next(self.folder.glob("*/*.distcp"), None):
            raise LeptaError(
                f"{self.folder}: weights only as a checkpoint of FSDP ({sharded.parent.name}); expected {SINGLE}; "
                f"make one with accelerate merge-weights {sharded.parent} {self.folder}"
            )
        raise LeptaError(f"{self.folder}: no weights; expected {SINGLE} or {INDEX}")

    def _named(self, name: str | None) -> str | None:
        if name is not None and name not in self.entries:
            near = difflib.get_close_matches(name, self.entries, n=1)
            raise LeptaError(f"{self.folder}: no tensor {name}" + (f"; did you mean {near[0]}?" if near else ""))
        return name

    def _input(self) -> str:
        names = [name for name in self.entries if name.endswith(INPUT_NAMES) and not PREDICTION.match(name)]
        if len(names) != 1:
            matrices = [entry for entry in self.entries.values() if len(entry.shape) == 2]
            tallest = [entry.name for entry in sorted(matrices, key=lambda entry: -entry.shape[0])[:3]]
            raise LeptaError(
                f"{self.folder}: input embeddings: expected one tensor named ...{' or ...'.join(INPUT_NAMES)}, found "
                f"{', '.join(names) or 'none'}; name it with --input-embeddings (matrices with most rows: "
                f"{', '.join(tallest)})"
            )
        return names[0]

    def _output(self) -> str | None:
        heads = [name for name in self.entries if name.endswith(OUTPUT_NAMES) or name in LAST_NAMES]
        names = [name for name in heads if not PREDICTION.match(name)]
        if len(names) > 1:
            raise LeptaError(f"{self.folder}: head: found {', '.join(names)}; name it with --output-embeddings")
        return next(iter(names), None)


AnyModel = Checkpoint | str | Path  # open already, or any model source


def says_tied(config: dict[str, Any]) -> bool | None:
    """Whether a config says that one matrix serves as input and output embeddings; None if it says nothing."""
    text = config.get("text_config")
    for part in (config, text):
        if isinstance(part, dict) and "tie_word_embeddings" in part:
            return bool(part["tie_word_embeddings"])
    return None


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Read where the tensors of a safetensors file lie, in their order; LeptaError if the file is not whole."""
    with explained(file, "not a whole safetensors file", REMEDY):
        with safe_open(file, framework="pt"):
            pass  # the library's own check of the whole header against the file's length
        with file.open("rb") as data:
            (length,) = struct.unpack("<Q", data.read(8))
            header = parse_json(data.read(length), file)
    offset = 8 + length
    header.pop("__metadata__", None)
    entries = {}
    for name, value in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = value["data_offsets"]
        entries[name] = TensorEntry(name, value["dtype"], tuple(value["shape"]), file, offset + start, offset + end)
    return entries
