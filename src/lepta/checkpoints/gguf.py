"""A GGUF file as a plain Hugging Face folder, dequantised to float32."""

from pathlib import Path
from typing import Any

from lepta.checkpoints.publish import save_loaded_model
from lepta.errors import LeptaError
from lepta.vocabulary.gguf_tokenizer import read_gguf_fields
from lepta.vocabulary.source import open_tokenizer


def import_gguf(path: Path, folder: Path) -> None:
    """Write the model in a GGUF file into an existing folder.

    transformers reads the weights; the tokenizer is ours, because transformers drops the pre-tokenizer's name.

    Raises
    ------
    LeptaError
        If the file is damaged, or its architecture is one that transformers cannot read from GGUF.
    """
    from transformers import AutoModelForCausalLM

    fields = read_gguf_fields(path)
    tokenizer = open_tokenizer(path)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype="float32")
    except (ValueError, KeyError, NotImplementedError) as error:
        raise LeptaError(f"{path}: transformers cannot read this GGUF file ({error})") from error
    # save_pretrained of a model loaded from GGUF refuses: it believes that the weights are still quantised.
    config = loaded.config
    del config.quantization_config
    config.architectures = [type(loaded).__name__]
    config._name_or_path = ""
    model: Any = type(loaded)(config)
    model.to(loaded.dtype)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    save_loaded_model(model, tokenizer, folder)
    name, licence = fields.get("general.name", path.stem), fields.get("general.license", "other")
    card = f"---\nlicense: {licence}\n---\n\n{name}, dequantised to float32 from `{path.name}`.\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
