"""A GGUF file as a plain Hugging Face folder, dequantised."""

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lepta.core.errors import LeptaError
from lepta.core.progress import step
from lepta.core.reading import read_json
from lepta.models.folder import DTYPES, SINGLE, TensorEntry
from lepta.models.rows import ComputedRows
from lepta.models.write import CONFIG, write_config, write_shard
from lepta.vocabulary.gguf_reader import Reader, reading_within_limits
from lepta.vocabulary.gguf_tokenizer import read_gguf_fields, read_gguf_tokenizer
from lepta.vocabulary.source import TokenizerSource

# Sizes in a Gemma 3 file: those that transformers reads, those that are read below, and those that follow from others.
GEMMA3_NEEDED = {
    "context_length",
    "block_count",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "rope.freq_base",
}
GEMMA3_KNOWN = GEMMA3_NEEDED | {
    "attention.value_length",
    "attention.sliding_window_pattern",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "rope.dimension_count",
    "rope.freq_base_swa",
    "rope.scaling.factor",
    "rope.scaling.type",
    "vocab_size",
}
GEMMA3_27B_LAYERS = 62
DEQUANTISED = 2 << 20  # stored bytes at once: gguf holds some fifteen times as many for what comes between
TABLES = ("token_embd.weight", "output.weight")  # too large to be held whole; transformers takes them as they are


@step("reading the GGUF file")
def import_gguf(path: Path, folder: Path, dtype: str = "float32") -> None:
    """Write the model in a GGUF file into an existing folder, its weights in a floating dtype.

    How the file's tensors become those of a model is transformers' knowledge; they are read and written one by one, for
    it would hold all of them in float32, twice. The tokenizer is ours, because transformers drops the pre-tokenizer's
    name. LeptaError if the file is damaged or lacks tensors, or transformers cannot read its architecture from GGUF.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    fields = read_gguf_fields(path)
    TokenizerSource(*read_gguf_tokenizer(path, fields), str(path)).save(folder)  # first, to have its memory again
    try:
        with reading_within_limits():
            parsed = load_gguf_checkpoint(path)
        parsed["tokenizer"] = {}  # all tokens once more
        config = CONFIG_MAPPING[parsed["config"]["model_type"]].from_dict(dict(parsed["config"]))
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
        tensors = _tensors(path, model, fields["general.architecture"], parsed)
    except Exception as error:  # whatever its classes run into
        raise LeptaError(f"{path}: transformers cannot read this GGUF file ({error})") from error
    stored = set(model.state_dict())
    if model.config.tie_word_embeddings:
        stored -= set(model.all_tied_weights_keys)
    if missing := sorted(stored - tensors.keys()):
        raise LeptaError(f"{path}: no weights for {missing[0]}; expected all tensors; convert the model again")
    if config.model_type == "gemma3_text":
        _complete_gemma3(path, fields, model)
    config.architectures, config.dtype = [type(model).__name__], dtype
    config.save_pretrained(folder)
    write_config(folder / CONFIG, read_json(folder / CONFIG))
    model.generation_config.save_pretrained(folder)
    file_dtype = next(name for name, known in DTYPES.items() if known == getattr(torch, dtype))
    entries = [TensorEntry(name, file_dtype, rows.shape, path, 0, 0) for name, rows in tensors.items()]
    write_shard(folder / SINGLE, entries, tensors)
    name, licence = fields.get("general.name", path.stem), fields.get("general.license", "other")
    card = f"---\nlicense: {licence}\n---\n\n{name}, dequantised to {dtype} from `{path.name}`.\n"
    (folder / "README.md").write_text(card, encoding="utf-8")


def _tensors(path: Path, model: Any, architecture: str, parsed: dict[str, Any]) -> dict[str, ComputedRows]:
    """The tensors of a GGUF file by their names in the model, in the order of the file; read when they are used."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=parsed["config"])
    name_of = get_gguf_hf_weights_map(model, processor)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    parsed["tensors"] = {}  # where processors put together what a file has in parts, such as experts

    def processed(tensor: Any) -> Any:
        weights = _dequantised(path, tensor, slice(0, tensor.data.shape[0]))
        return processor.process(
            weights=weights, name=tensor.name, tensor_key_mapping=name_of, parsed_parameters=parsed
        )

    @lru_cache(maxsize=1)
    def whole(number: int) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(processed(stored[number]).weights))

    def part(number: int, rows: slice) -> torch.Tensor:
        return whole(number)[rows]

    stored = list(Reader(path).tensors)
    found: dict[str, ComputedRows] = {}
    for number, tensor in enumerate(stored):
        name = name_of.get(tensor.name)
        if name is None:
            result = processed(tensor)
            if result.name in name_of:
                found[name_of[result.name]] = ComputedRows.of(torch.from_numpy(np.array(result.weights)))
        elif tensor.name in TABLES:
            found[name] = ComputedRows(shapes[name], partial(_rows, path, tensor))
        else:
            found[name] = ComputedRows(shapes[name], partial(part, number))
    return found | {name: ComputedRows.of(tensor) for name, tensor in parsed["tensors"].items()}


def _rows(path: Path, tensor: Any, rows: slice) -> torch.Tensor:
    return torch.from_numpy(_dequantised(path, tensor, rows))


def _dequantised(path: Path, tensor: Any, rows: slice) -> np.ndarray:
    """Rows of a tensor in float32, read from the file: pages of a mapped one count as memory of the process."""
    from gguf import dequantize

    shape = (rows.stop - rows.start, *tensor.data.shape[1:])
    width = tensor.data[:1].nbytes
    with path.open("rb") as file:
        file.seek(tensor.data_offset + rows.start * width)
        stored = np.frombuffer(file.read(shape[0] * width), tensor.data.dtype).reshape(shape)
    step = max(1, DEQUANTISED // width)
    _, *numbers = reversed(tensor.shape)  # in a row; GGUF names the innermost first
    values = np.empty((len(stored), *numbers), np.float32)
    for start in range(0, len(stored), step):
        values[start : start + step] = dequantize(stored[start : start + step], tensor.tensor_type)
    return values


def _complete_gemma3(path: Path, fields: dict[str, Any], model: Any) -> None:
    """Set what transformers (5.23) leaves at its defaults, as llama.cpp has it, and refuse what is not known here."""
    sizes = {name.removeprefix("gemma3."): value for name, value in fields.items() if name.startswith("gemma3.")}
    if unknown := sizes.keys() - GEMMA3_KNOWN:
        raise LeptaError(f"{path}: gemma3.{min(unknown)} is not known here; give the model as a Hugging Face folder")
    if missing := GEMMA3_NEEDED - sizes.keys():
        raise LeptaError(f"{path}: no gemma3.{min(missing)}; convert the model again")
    number = len(list(model.parameters()))
    if fields["GGUF.tensor_count"] != number:
        raise LeptaError(
            f"{path}: {fields['GGUF.tensor_count']} tensors, expected {number}; not a Gemma 3 of text alone"
        )
    config, layers, head = model.config, sizes["block_count"], sizes["attention.key_length"]
    if {sizes.get("attention.value_length", head), sizes.get("rope.dimension_count", head)} != {head}:
        raise LeptaError(f"{path}: keys, values and rotations of different lengths; transformers has one for all")
    per_head = sizes["embedding_length"] // sizes["attention.head_count"]
    config.query_pre_attn_scalar = per_head if layers == GEMMA3_27B_LAYERS else head
    slides = sizes.get("attention.sliding_window_pattern", 6)
    if not isinstance(slides, list):
        slides = np.arange(1, layers + 1) % slides != 0
    config.layer_types = np.where(slides, "sliding_attention", "full_attention").tolist()
    everywhere = {"rope_type": "default", "rope_theta": sizes["rope.freq_base"]}
    if (scaling := sizes.get("rope.scaling.type", "none")) != "none":
        if scaling != "linear":
            raise LeptaError(f"{path}: gemma3.rope.scaling.type is {scaling!r}; expected 'linear' or none")
        everywhere |= {"rope_type": scaling, "factor": sizes["rope.scaling.factor"]}
    nearby = {"rope_type": "default", "rope_theta": sizes.get("rope.freq_base_swa", 10_000.0)}
    config.rope_parameters = {"full_attention": everywhere, "sliding_attention": nearby}
    config.attn_logit_softcapping = sizes.get("attn_logit_softcapping")
    config.final_logit_softcapping = sizes.get("final_logit_softcapping")
