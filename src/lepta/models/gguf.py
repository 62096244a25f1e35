"""A GGUF file as a plain Hugging Face folder, dequantised to float32."""

from pathlib import Path
from typing import Any

import torch

from lepta.core.errors import LeptaError
from lepta.models.load import complete_model
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


def import_gguf(path: Path, folder: Path) -> None:
    """Write the model in a GGUF file into an existing folder.

    transformers reads the weights; the tokenizer is ours, because transformers drops the pre-tokenizer's name.
    LeptaError if the file is damaged, or its architecture is one that transformers cannot read from GGUF.
    """
    fields = read_gguf_fields(path)
    tokenizer = TokenizerSource(*read_gguf_tokenizer(path, fields), str(path))
    try:
        loaded = complete_model(path.parent, gguf_file=path.name, dtype="float32")
    except (ValueError, KeyError, NotImplementedError) as error:
        raise LeptaError(f"{path}: transformers cannot read this GGUF file ({error})") from error
    # save_pretrained of a model loaded from GGUF refuses: it believes that the weights are still quantised.
    config = loaded.config
    del config.quantization_config
    config.architectures = [type(loaded).__name__]
    config._name_or_path = ""
    if config.model_type == "gemma3_text":
        _complete_gemma3(path, fields, loaded)
    with torch.device("meta"):  # takes the weights over, so that they are in memory once
        model: Any = type(loaded)(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    tokenizer.save(folder)
    name, licence = fields.get("general.name", path.stem), fields.get("general.license", "other")
    card = f"---\nlicense: {licence}\n---\n\n{name}, dequantised to float32 from `{path.name}`.\n"
    (folder / "README.md").write_text(card, encoding="utf-8")


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
    pattern = sizes.get("attention.sliding_window_pattern", 6)
    slides = pattern if isinstance(pattern, list) else [(layer + 1) % pattern != 0 for layer in range(layers)]
    config.layer_types = ["sliding_attention" if here else "full_attention" for here in slides]
    everywhere = {"rope_type": "default", "rope_theta": sizes["rope.freq_base"]}
    if (scaling := sizes.get("rope.scaling.type", "none")) != "none":
        if scaling != "linear":
            raise LeptaError(f"{path}: gemma3.rope.scaling.type is {scaling!r}; expected 'linear' or none")
        everywhere |= {"rope_type": scaling, "factor": sizes["rope.scaling.factor"]}
    nearby = {"rope_type": "default", "rope_theta": sizes.get("rope.freq_base_swa", 10_000.0)}
    config.rope_parameters = {"full_attention": everywhere, "sliding_attention": nearby}
    config.attn_logit_softcapping = sizes.get("attn_logit_softcapping")
    config.final_logit_softcapping = sizes.get("final_logit_softcapping")
