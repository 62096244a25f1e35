"""The language model inside a transformers model, and the names that files give its weights.

A multimodal model has its language model beside towers for images and sound. Everything here works on text alone, so
it is the part that holds the input embeddings that learns; the towers stay as they are.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lepta.core.errors import LeptaError


def class_for(config: type) -> Any:
    """The auto class of transformers that loads a whole model of this kind of config; None if it is none that writes.

    Multimodal ones come first: for some (Qwen3.5) `AutoModelForCausalLM` loads the part for text alone.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    for auto in (AutoModelForMultimodalLM, AutoModelForCausalLM):
        if config in auto._model_mapping:
            return auto
    return None


def check_architecture(config: Mapping[str, Any], where: Path) -> None:
    """LeptaError unless transformers has a decoder-only language model for a config.json, of any vocabulary."""
    from transformers import CONFIG_MAPPING

    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        asks = ""
        if "auto_map" in config:
            asks = ", and auto_map asks to run Python code from the folder, which LEPTA never does"
        raise LeptaError(
            f"{where}: model_type {kind} is not one that transformers has{asks}; take a model of an architecture in "
            "transformers"
        )
    known = CONFIG_MAPPING[kind]
    if class_for(known) is None or config.get("is_encoder_decoder", getattr(known, "is_encoder_decoder", False)):
        raise LeptaError(f"{where}: model_type {kind} is no decoder-only language model; take one that writes text")
    for name, part in config.items():
        if isinstance(part, dict) and "vocab_offset" in part:
            raise LeptaError(
                f"{where}: {name}.vocab_offset is {part['vocab_offset']}: from this id on the model's code takes "
                "tokens for images or sound, so there is no place for new tokens; take its language model alone (a "
                "folder with the config and tensors of text_config)"
            )


def language_model(model: Any) -> Any:
    """The part of a model that text goes through, without the head: the module that holds the input embeddings."""
    embedding = model.get_input_embeddings()
    for module in model.modules():
        if any(child is embedding for child in module.children()):
            return module
    raise LeptaError(f"{type(model).__name__}: no module holds its input embeddings; take another model")


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder layers of a model's language model."""
    config = model.config.get_text_config()
    number = getattr(config, "num_layers", config.num_hidden_layers)  # LongCat counts two in each of its layers
    for module in language_model(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return module
    raise LeptaError(
        f"{type(model).__name__}: its {number} layers are not in one list, which distillation and `lora.layers` go by; "
        "leave both out and train the rows (lepta pretrain)"
    )


def text_modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """All modules that text alone goes through, with their names in the model; the head is not among them.

    Layers that attend to images (Mllama) do not run without one.
    """
    body = language_model(model)
    silent = getattr(model.config.get_text_config(), "cross_attention_layers", None) or ()
    left_out = _inside_layers(model, silent)
    left_out.add(id(model.get_output_embeddings()))
    for path, module in body.named_modules(prefix=path_of(model, body)):
        if id(module) not in left_out:
            yield path, module


def path_of(model: Any, wanted: nn.Module) -> str:
    """The name of a module in a model."""
    return next(path for path, module in model.named_modules() if module is wanted)


def _inside_layers(model: Any, numbers: Iterable[int]) -> set[int]:
    """`id` of all modules in decoder layers of these numbers."""
    found: set[int] = set()
    for number in numbers:
        found.update(map(id, decoder_layers(model)[number].modules()))
    return found


def train_language_model(model: Any) -> None:
    """Let all weights of the language model learn, head included; those of towers stay as they are."""
    for _, module in text_modules(model):
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(parameter.is_floating_point())
    model.get_output_embeddings().requires_grad_(True)


def linear_layers(model: Any, layers: set[int] | None = None) -> list[str]:
    """Names of the linear layers of the language model's body, or of those in decoder layers of some numbers."""
    from transformers.pytorch_utils import Conv1D  # a linear layer whose matrix is turned round (GPT-2)

    chosen = _inside_layers(model, layers or ())
    linear = []
    for path, module in text_modules(model):
        if isinstance(module, (nn.Linear, Conv1D)) and (layers is None or id(module) in chosen):
            linear.append(path)
    return linear


def called_layers(model: Any, linear: list[str]) -> list[str]:
    """Of linear layers those that are called; others have weights that something else reads.

    Mamba's kernels read all but the first, and Gemma 3n, in training, those that correct its predictions. A low-rank
    change beside these would do nothing on a GPU or in training, and something elsewhere.
    """
    mixers = [path for path, module in text_modules(model) if hasattr(module, "conv1d") and hasattr(module, "D")]
    called = []
    for path in linear:
        read_by_kernel = path.rpartition(".")[0] in mixers and not path.endswith(".in_proj")
        if not read_by_kernel and not path.endswith(".altup.correction_coefs"):
            called.append(path)
    return called


def attention_of_experts(model: Any, linear: list[str]) -> list[str]:
    """Of linear layers those outside the parts of layers that have experts: few tokens reach each expert."""
    if not any(_has_experts(module) for _, module in text_modules(model)):
        return linear
    layers, forward = set(), set()
    for layer in decoder_layers(model):
        layers.add(id(layer))
        for name, part in layer.named_children():
            if any(map(_has_experts, part.modules())):
                forward.add(name)
    inside: list[str] = []
    for path, module in text_modules(model):
        if id(module) in layers:
            inside += [f"{path}.{name}." for name in forward]
    return [path for path in linear if not path.startswith(tuple(inside))]


def _has_experts(module: nn.Module) -> bool:
    """The matrices of all experts of a layer are one parameter of three dimensions; RWKV and others have such too."""
    return "Expert" in type(module).__name__ and any(p.ndim == 3 for p in module.parameters(recurse=False))


def as_stored(model: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters as the tensors of the folder that a model was loaded from: under their names there, and as cut there.

    Files may have other names than the model (LLaVA, Qwen2-VL), and each expert's matrices apart (Qwen3-MoE).
    """
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(model, dict(weights)))


def stored_name(model: Any, name: str) -> str:
    """The name of one parameter in the folder that a model was loaded from; LeptaError if it is several tensors."""
    names = list(as_stored(model, {name: torch.empty(1, 1)}))
    if len(names) != 1:
        raise LeptaError(
            f"{type(model).__name__}: {name} is stored in parts ({', '.join(names)}); leave it out of lora.targets"
        )
    return names[0]
