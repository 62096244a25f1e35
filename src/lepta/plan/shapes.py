"""Sizes of a model without its weights: from headers, from config.json, or from a table of known models."""

import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from lepta.core.errors import LeptaError, explained
from lepta.core.reading import conform, is_there, read_json, read_yaml
from lepta.core.settings import as_list
from lepta.core.shipped import shipped_data
from lepta.models.schema import LARGEST, MOST_LAYERS, REMEDY, ModelConfig
from lepta.text.locate import HUB_ID, locate
from lepta.vocabulary.schema import Flag

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}


@dataclass(frozen=True)
class Linear:
    """All linear layers of one name, the last part of it, such as `q_proj`; biases are left out."""

    name: str
    inputs: int
    outputs: int
    number: int

    @property
    def weights(self) -> int:
        """Weights of all of them."""
        return self.inputs * self.outputs * self.number


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder-only language model."""

    name: str
    source: str  # where the sizes are from
    layers: int
    width: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    rows: int  # of the embedding matrices, padding included
    tokens: int  # ids of the tokenizer
    tied: bool  # one matrix serves as input and output embeddings
    body: int  # weights outside the embedding matrices
    linear: tuple[Linear, ...]  # of the body
    context: int  # longest text, in tokens
    dtype: str  # of the files
    tokenizer: str | None = None  # its name in data/plan/vocabularies.yaml, if it was measured

    @property
    def matrices(self) -> int:
        """Number of matrices with a row for each token."""
        return 1 if self.tied else 2

    @property
    def embeddings(self) -> int:
        """Weights of these matrices."""
        return self.matrices * self.rows * self.width

    @property
    def weights(self) -> int:
        """All weights."""
        return self.body + self.embeddings

    @property
    def linear_weights(self) -> int:
        """Weights of the body's linear layers, which are nearly all of it."""
        return sum(layer.weights for layer in self.linear)

    @property
    def attention_width(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key (or value) heads together."""
        return self.kv_heads * self.head_dim

    @property
    def file_bytes(self) -> int:
        """Bytes of one weight in the files."""
        return BYTES.get(self.dtype, 2)


# Fields of config.json -> of the table and of `Shape`.
CONFIG_FIELDS = {
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "intermediate_size": "intermediate",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "vocab_size": "rows",
    "max_position_embeddings": "context",
}
NEEDED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
LAYERS = ("num_layers", "layers_block_type")  # LongCat has two in each layer, Nemotron-H lists the kinds of its layers
GGUF_FIELDS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
}
GGUF_KINDS = {"gemma3": "gemma3_text"}  # of a model that sees images too, GGUF has the part for text alone

Size = Annotated[int, Field(strict=True, ge=1, le=LARGEST)]


class Sizes(BaseModel):
    """The sizes of a language model that a plan needs."""

    layers: Annotated[int, Field(strict=True, ge=1, le=MOST_LAYERS)]
    width: Size
    intermediate: Size
    heads: Size
    kv_heads: Size
    head_dim: Size
    rows: Size
    context: Annotated[int, Field(strict=True, ge=1)]


class OwnSizes(Sizes):
    """A row of a user's own file."""

    ids: list[str]
    model_type: str
    tied: Flag
    tokens: Size | None = None


def shape_of(source: str, models: Path | None = None) -> Shape:
    """Find the sizes of a model as a recipe names it, without loading it and without the network.

    A hub id is looked for in the local hub cache, then in the table of known models, to which the YAML file `models`
    adds rows. LeptaError if the sizes are nowhere to be found, with what to do.
    """
    place = here(source)
    if place is None:
        return _from_table(source, models)
    if place.suffix == ".gguf":
        return _from_gguf(source, place)
    if not place.is_dir():
        raise LeptaError(f"{place}: not a model; expected a Hugging Face folder, a .gguf file or a hub id")
    return _from_folder(source, place)


def here(source: str) -> Path | None:
    """Where a model or tokenizer lies on this machine; None for a hub id that is not in the hub's cache."""
    match = HUB_ID.fullmatch(source)
    if match is None or is_there(source):
        return locate(source, hub_files=[])
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(match["repo"], "config.json", revision=match["revision"])
    return Path(found).parent if isinstance(found, str) else None


@cache
def known_models(models: Path | None = None) -> dict[str, dict[str, Any]]:
    """Table of known models: hub id in lower case -> its row; rows of the user's own file come first."""
    rows = shipped_data("plan/models.yaml")
    if models is not None:
        rows += _own_rows(models)
    known: dict[str, dict[str, Any]] = {}
    for row in rows:
        known |= dict.fromkeys(map(str.lower, row["ids"]), row)
    return known


def _own_rows(models: Path) -> list[dict[str, Any]]:
    rows = as_list(read_yaml(models))
    needed = {*CONFIG_FIELDS.values(), "ids", "model_type", "tied"}
    for row in rows:
        if missing := needed.difference(row if isinstance(row, dict) else ()):
            raise LeptaError(f"{models}: a row lacks {', '.join(sorted(missing))}; expected rows as in models.yaml")
        conform(OwnSizes, row, models, "write rows as docs/plan.md shows")
    return rows


def _from_table(source: str, models: Path | None) -> Shape:
    name, _, revision = source.partition("@")
    row = known_models(models).get(name.lower())
    if row is None:
        fetch = f"hf download {name} config.json"
        if revision:
            fetch += f" --revision {revision}"
        raise LeptaError(
            f"{source}: its sizes are not known here. Fetch the one small file that has them with `{fetch}` and run "
            "again, or give its shape in a file of your own: --models FILE (a list of rows with ids, model_type, "
            "layers, width, intermediate, heads, kv_heads, head_dim, rows, tied, context)"
        )
    config = {theirs: row[ours] for theirs, ours in CONFIG_FIELDS.items()}
    config |= {"model_type": row["model_type"], "tie_word_embeddings": row["tied"], "dtype": row.get("dtype")}
    config |= row.get("config", {})
    shape = _from_config(source, config, f"{source}, its row in the table")
    more = {"tokens": row.get("tokens", shape.rows), "tokenizer": row.get("tokenizer")}
    return replace(shape, source="table of known models", body=shape.body + row.get("tower", 0), **more)


def _from_folder(source: str, folder: Path) -> Shape:
    from lepta.models.folder import Checkpoint
    from lepta.models.language_model import check_architecture
    from lepta.models.weights import count_weights

    config = read_json(folder / "config.json")
    check_architecture(config, folder / "config.json")
    shape = _from_config(source, config, str(folder / "config.json"))
    if not any(folder.glob("*.safetensors")):
        return shape
    Checkpoint(folder).check_replaceable()
    counted = count_weights(folder)
    return replace(
        shape,
        source="headers of its files",
        body=counted.body,
        rows=counted.rows,
        tokens=min(shape.tokens, counted.rows),
        tied=counted.matrices == 1,
    )


def _from_gguf(source: str, file: Path) -> Shape:
    from lepta.models.weights import count_weights
    from lepta.vocabulary.gguf_tokenizer import read_gguf_fields

    fields, counted = read_gguf_fields(file), count_weights(file)
    kind = str(fields.get("general.architecture"))
    config = {ours: fields[f"{kind}.{theirs}"] for theirs, ours in GGUF_FIELDS.items() if f"{kind}.{theirs}" in fields}
    config["model_type"] = GGUF_KINDS.get(kind, kind)
    config["vocab_size"] = counted.rows
    config["tie_word_embeddings"] = counted.matrices == 1
    shape = _from_config(source, config, str(file))
    # A GGUF file is dequantised to float32 before work begins: lepta.models.gguf.
    return replace(shape, source="headers of its file", body=counted.body, dtype="float32")


def _from_config(source: str, config: dict[str, Any], where: str) -> Shape:
    """Sizes of the language model that transformers would build, on the meta device, which has no memory behind it."""
    conform(ModelConfig, config, where, REMEDY)
    inner = config.get("text_config")
    text = dict(config if inner is None else inner)
    own = _own_names(text)
    given = {name for name, value in text.items() if value is not None}
    if given.intersection(LAYERS):
        given.add("num_hidden_layers")
    if missing := [name for name in NEEDED if not given & {name, own.get(name)}]:
        raise LeptaError(f"{where}: no {', '.join(missing)}; expected the config.json of a language model")
    if "tie_word_embeddings" in config:
        text.setdefault("tie_word_embeddings", config["tie_word_embeddings"])
    dtype = str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "bfloat16")
    with explained(where, "transformers knows no such language model", REMEDY):
        built, body, linear, tied = _built(json.dumps({name: text[name] for name in text if name != "dtype"}))
        sizes: dict[str, Any] = {}
        for theirs, ours in CONFIG_FIELDS.items():
            sizes[ours] = getattr(built, theirs, None) or text.get(theirs)
        width, heads = sizes["width"], sizes["heads"]
        usual = {"kv_heads": heads, "head_dim": width // heads, "context": 2048, "intermediate": 4 * width}
        sizes |= {name: value for name, value in usual.items() if not isinstance(sizes[name], int)}
    conform(Sizes, sizes, where, REMEDY)
    more: dict[str, Any] = {"tied": tied, "body": body, "linear": linear, "dtype": dtype}
    return Shape(name=source, source="config.json", tokens=sizes["rows"], **sizes, **more)


def _own_names(config: dict[str, Any]) -> dict[str, str]:
    """What a family calls fields that most call otherwise: GPT-2 has `n_layer` for `num_hidden_layers`."""
    from transformers import CONFIG_MAPPING

    kind = str(config.get("model_type"))
    return dict(CONFIG_MAPPING[kind].attribute_map) if kind in CONFIG_MAPPING else {}


def _special_float(found: dict[str, Any]) -> Any:
    """Infinity and NaN as transformers writes them into config.json, which has no number for them."""
    return float(found["__float__"]) if found.keys() == {"__float__"} else found


@cache
def _built(config: str) -> tuple[Any, int, tuple[Linear, ...], bool]:
    """The whole config of a model, weights outside the embedding matrices, linear layers, and whether it is tied."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from lepta.models.language_model import linear_layers

    whole = AutoConfig.for_model(**json.loads(config, object_hook=_special_float))
    # The text parts of some multimodal models (Qwen2-VL, Qwen3-VL) have no class with a head of their own.
    kind = AutoModelForCausalLM if type(whole) in AutoModelForCausalLM._model_mapping else AutoModel
    if type(whole) not in kind._model_mapping:
        raise LeptaError(
            f"{whole.model_type}: transformers has no class for such a language model alone, so it cannot be planned; "
            "`lepta adapt` without --dry-run runs its recipe"
        )
    with torch.device("meta"):
        model: Any = kind.from_config(whole)
    rows, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    tied, ends = bool(getattr(whole, "tie_word_embeddings", False)), {id(rows)}
    if head is not None:
        tied = head.weight is rows
        ends.add(id(head.weight))
    body = sum(math.prod(p.shape) for p in model.parameters() if id(p) not in ends)
    found: Counter[tuple[str, int, int]] = Counter()
    for path in linear_layers(model):
        outputs, inputs = model.get_submodule(path).weight.shape  # GPT-2 has them turned round
        found[path.rpartition(".")[2], inputs, outputs] += 1
    return whole, body, tuple(Linear(*key, number) for key, number in found.items()), tied
