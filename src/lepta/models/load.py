"""Load a model folder into memory, on the device and in the precision that this machine computes fast in."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lepta.core.errors import LeptaError
from lepta.core.progress import step
from lepta.models.folder import MODEL_FILES, OUTPUT_NAMES, Checkpoint
from lepta.models.language_model import class_for
from lepta.models.precision import config_of, fastest_on_cpu, name_of, unloadable
from lepta.models.rows import all_finite, finite
from lepta.text.locate import locate
from lepta.vocabulary.loading import load_tokenizer as load_tokenizer

NAMED = 3  # of missing tensors, in a message


def device() -> torch.device:
    """The device that models run on: this process's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def fast_dtype(folder: Path) -> torch.dtype:
    """What a model is loaded in where nobody says otherwise: bfloat16 on a GPU, what is faster on a CPU."""
    return torch.bfloat16 if device().type == "cuda" else fastest_on_cpu(config_of(folder))


def exact_dtype() -> torch.dtype:
    """What models are loaded in whose small differences count: float32 on a CPU, bfloat16 on a GPU."""
    return torch.bfloat16 if device().type == "cuda" else torch.float32


def load_model(folder: Path, dtype: torch.dtype | None = None, bits: int | None = None) -> Any:
    """Load a causal LM, in evaluation mode and in `dtype`, whatever the file holds; default: `fast_dtype`.

    `bits` keeps the linear layers of the body in 8 (LLM.int8) or 4 (NF4), by bitsandbytes. LeptaError if transformers
    cannot load it, tensors are missing, or bitsandbytes is.
    """
    checkpoint = Checkpoint(folder)  # names what is missing, and refuses pickle
    dtype = dtype or fast_dtype(folder)
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False}
    if bits:
        options |= {"quantization_config": _quantised(bits, dtype), "device_map": {"": device()}}
    with step("loading the model"):
        model = complete_model(folder, **options)
    if bits:
        model.is_quantized = False  # the Trainer would refuse: it does not see that what trains is not quantised
        return model.eval()
    if "quantization_config" in checkpoint.config and not getattr(model, "is_quantized", False):
        model.to(dtype)  # without a GPU for float8, transformers makes it bfloat16, whatever `dtype` is
    try:
        model.to(device())
    except RuntimeError as error:
        raise LeptaError(f"{folder}: does not fit on {device()} ({error})") from error
    return model.eval()


def complete_model(folder: Path, **options: Any) -> Any:
    """`from_pretrained` of the whole model, for checkpoints that have all tensors, of the shapes that the config asks
    for, with finite values; LeptaError names those that they lack, and says why transformers cannot load a model.

    transformers draws missing tensors at random, and says so in a warning only.
    """
    from transformers import AutoModelForCausalLM

    auto: Any = class_for(type(config_of(folder))) or AutoModelForCausalLM
    try:
        model, found = auto.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except Exception as error:  # whatever a class of models raises
        raise unloadable(folder, error) from error
    remedy = "download or convert the model again, or correct config.json"
    if missing := sorted(found["missing_keys"]):
        if missing[0].endswith(OUTPUT_NAMES):
            remedy += '; if the input embeddings are its head too, write "tie_word_embeddings": true there'
        named = ", ".join(missing[:NAMED]) + (f" and {len(missing) - NAMED} more" if len(missing) > NAMED else "")
        raise LeptaError(f"{folder}: no weights for {named}; expected all tensors that its config asks for; {remedy}")
    for name, stored, expected in sorted(found["mismatched_keys"]):
        raise LeptaError(f"{folder}: {name} is {tuple(stored)}, expected {tuple(expected)} by its config; {remedy}")
    for name, parameter in model.named_parameters():
        if not parameter.is_meta and parameter.is_floating_point() and parameter.itemsize > 1 and not finite(parameter):
            raise LeptaError(f"{folder}: {name} has NaN or infinite values; {remedy}")
    return model


@step("checking the weights")
def check_whole(checkpoint: Checkpoint) -> None:
    """Refuse a folder whose tensors are not those that its config asks for, or are not finite; nothing is loaded.

    What is quantised is taken as it is: to read it may need a package.
    """
    if "quantization_config" not in checkpoint.config:
        complete_model(checkpoint.folder, device_map="meta")
    for name, entry in checkpoint.entries.items():
        if checkpoint.is_floating(name) and not all_finite(checkpoint.rows_of(name)):
            raise LeptaError(
                f"{entry.file}: {name} has NaN or infinite values; expected a whole model of training that went well; "
                "download it again, or take an earlier checkpoint"
            )


def _quantised(bits: int, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    try:
        if bits == 8:
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    except ImportError as error:
        raise LeptaError(f"{bits} bits: the package bitsandbytes is missing; pip install bitsandbytes") from error


def model_folder(source: str | Path, import_to: Path, dtype: str | None = None) -> Path:
    """Make any model source a Hugging Face folder: it is itself the result, or it is converted to `import_to`.

    `source` is a folder, a GGUF file, `package:NAME/FILE` or a hub id `OWNER/NAME[@REVISION]`; `import_to` is empty.
    `dtype` is what a GGUF file becomes, float32 by default; LeptaError if it is asked of a folder, which keeps its own.
    """
    path = locate(source, hub_files=MODEL_FILES)
    if path.is_dir():
        if dtype:
            raise LeptaError(f"{path}: dtype {dtype} is for GGUF files; a folder keeps the one that it has")
        return path
    if path.suffix == ".gguf":
        from lepta.models.gguf import import_gguf

        import_gguf(path, import_to, dtype or name_of(torch.float32))
        return import_to
    raise LeptaError(f"{path}: not a model; expected a Hugging Face folder, a .gguf file or a hub id")


@contextmanager
def opened(
    source: str | Path, input_name: str | None = None, output_name: str | None = None, dtype: str | None = None
) -> Iterator[Checkpoint]:
    """Open any model source as a checkpoint; one that had to be converted is gone when the block ends.

    `dtype`: see `model_folder`.
    """
    with tempfile.TemporaryDirectory(prefix="lepta-") as folder:
        checkpoint = Checkpoint(model_folder(source, Path(folder), dtype), input_name, output_name)
        checkpoint.name = str(source)
        yield checkpoint
