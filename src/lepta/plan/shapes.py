"""Sizes of a model without its weights: from headers, from config.json, or from a table of known models."""

import copy
import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from lepta.core.errors import LeptaError, explained
from lepta.core.reading import conform, is_there, read_json, read_yaml
from lepta.models.schema import REMEDY, ModelConfig
from lepta.text.locate import HUB_ID, locate

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


@dataclass(frozen=True)
class Family:
    """What a layer has besides the matrices of attention and MLP that all families have."""

    norms: int = 2
    qkv_bias: bool = False
    head_norms: bool = False
    merged: bool = False  # one matrix for query, key and value, and one for gate and up
    tied: bool = False  # where config.json does not say


# transformers could build any of these without memory, but the import of a model class takes it 3 s, as long as the
# whole plan. So the families of the table have a formula, which a test compares with what transformers builds.
FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(head_norms=True),
    "gemma2": Family(norms=4, tied=True),
    "phi3": Family(merged=True),
}
CONFIG_FIELDS = {  # of config.json -> of the table and of `Shape`
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "intermediate_size": "intermediate",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "vocab_size": "rows",
    "max_position_embeddings": "context",
}
GGUF_FIELDS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
}


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
    shipped = resources.files("lepta").joinpath("data/plan/models.yaml").read_text(encoding="utf-8")
    rows = yaml.safe_load(shipped)
    if models is not None:
        rows += _own_rows(models)
    known: dict[str, dict[str, Any]] = {}
    for row in rows:
        known |= dict.fromkeys(map(str.lower, row["ids"]), row)
    return known


def _own_rows(models: Path) -> list[dict[str, Any]]:
    own = read_yaml(models)
    rows = own if isinstance(own, list) else [own]
    needed = {*CONFIG_FIELDS.values(), "ids", "model_type", "tied"}
    for row in rows:
        missing = needed - set(row if isinstance(row, dict) else ())
        if missing:
            raise LeptaError(f"{models}: a row lacks {', '.join(sorted(missing))}; expected rows as in models.yaml")
    return rows


def _from_table(source: str, models: Path | None) -> Shape:
    name, _, revision = source.partition("@")
    row = known_models(models).get(name.lower())
    if row is None:
        fetch = f"hf download {name} config.json" + (f" --revision {revision}" if revision else "")
        raise LeptaError(
            f"{source}: its sizes are not known here. Fetch the one small file that has them with `{fetch}` and run "
            "again, or give its shape in a file of your own: --models FILE (a list of rows with ids, model_type, "
            "layers, width, intermediate, heads, kv_heads, head_dim, rows, tied, context)"
        )
    if row["model_type"] not in FAMILIES:
        raise LeptaError(f"{source}: model_type {row['model_type']!r}; known here are {', '.join(FAMILIES)}")
    return _by_formula(source, "table of known models", row)


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
    # Of a model that sees images too, GGUF has the part for text alone.
    config["model_type"] = "gemma3_text" if kind == "gemma3" else kind
    config["vocab_size"] = counted.rows
    config["tie_word_embeddings"] = counted.matrices == 1
    shape = _from_config(source, config, str(file))
    # A GGUF file is dequantised to float32 before work begins: lepta.models.gguf.
    return replace(shape, source="headers of its file", body=counted.body, dtype="float32")


def _from_config(source: str, config: dict[str, Any], where: str) -> Shape:
    """Read a config.json: by the family's formula, or for other families by what transformers would build."""
    conform(ModelConfig, config, where, REMEDY)
    whole = config
    if isinstance(config.get("text_config"), dict):
        config = config["text_config"]
    row = {ours: config[theirs] for theirs, ours in CONFIG_FIELDS.items() if config.get(theirs) is not None}
    row.setdefault("kv_heads", row.get("heads"))
    if missing := set(CONFIG_FIELDS.values()) - set(row) - {"head_dim", "context", "intermediate"}:
        names = [theirs for theirs, ours in CONFIG_FIELDS.items() if ours in missing]
        raise LeptaError(f"{where}: no {', '.join(names)}; expected the config.json of a language model")
    row.setdefault("head_dim", row["width"] // row["heads"])
    row.setdefault("context", 2048)
    row.setdefault("intermediate", 4 * row["width"])
    row["dtype"] = str(whole.get("dtype") or whole.get("torch_dtype") or config.get("dtype") or "bfloat16")
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None or config.get("attention_bias") or config.get("mlp_bias"):
        return _shape(source, "config.json", row, **_as_transformers_builds_it(config, where))
    tied = config.get("tie_word_embeddings", whole.get("tie_word_embeddings"))
    row["tied"] = family.tied if tied is None else bool(tied)
    return _by_formula(source, "config.json", row | {"model_type": config["model_type"]})


def _by_formula(name: str, origin: str, row: dict[str, Any]) -> Shape:
    """The shape of a model of a known family."""
    family = FAMILIES[row["model_type"]]
    layers, width, inner = row["layers"], row["width"], row["intermediate"]
    queries, keys = row["heads"] * row["head_dim"], row["kv_heads"] * row["head_dim"]
    if family.merged:
        pairs = [("qkv_proj", width, queries + 2 * keys), ("gate_up_proj", width, 2 * inner)]
    else:
        pairs = [("q_proj", width, queries), ("k_proj", width, keys), ("v_proj", width, keys)]
        pairs += [("gate_proj", width, inner), ("up_proj", width, inner)]
    pairs += [("o_proj", queries, width), ("down_proj", inner, width)]
    linear = tuple(Linear(*pair, layers) for pair in pairs)
    small = family.norms * width + (queries + 2 * keys) * family.qkv_bias + 2 * row["head_dim"] * family.head_norms
    body = sum(layer.weights for layer in linear) + layers * small + width  # the last norm
    return _shape(name, origin, row, body, linear, row["tied"])


def _as_transformers_builds_it(config: dict[str, Any], where: str) -> dict[str, Any]:
    """`body`, `linear` and `tied`, from a model on the meta device, which has no memory behind it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with explained(where, "transformers knows no such language model", REMEDY), torch.device("meta"):
        # A copy, since transformers changes what it is given.
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**copy.deepcopy(config)))
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    body = sum(math.prod(p.shape) for p in model.parameters() if id(p) not in ends)
    found: Counter[tuple[str, int, int]] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and id(module.weight) not in ends:
            found[name.rpartition(".")[2], module.in_features, module.out_features] += 1
    linear = tuple(Linear(*key, number) for key, number in found.items())
    return {"body": body, "linear": linear, "tied": len(ends) == 1}


def _shape(name: str, origin: str, row: dict[str, Any], body: int, linear: tuple[Linear, ...], tied: bool) -> Shape:
    return Shape(
        name=name,
        source=origin,
        **{field: row[field] for field in CONFIG_FIELDS.values()},
        tokens=row.get("tokens", row["rows"]),
        tied=tied,
        body=body,
        linear=linear,
        dtype=row.get("dtype", "bfloat16"),
        tokenizer=row.get("tokenizer"),
    )
