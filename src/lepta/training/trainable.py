"""What trains: rows of the embeddings, low-rank changes of the body, or everything (paper 2.1.3 and 2.4.1)."""

import itertools
import re
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from torch import nn

from lepta.core.errors import LeptaError
from lepta.models.language_model import (
    attention_of_experts,
    called_layers,
    decoder_layers,
    linear_layers,
    path_of,
    text_modules,
    train_language_model,
)
from lepta.models.split import NewRows, parts_of, split_rows
from lepta.training.settings import Lora, PretrainSettings, TuneSettings

ADAPTER = "default"  # peft's own name for an adapter


def make_trainable(model: Any, settings: PretrainSettings, new_rows: NewRows, rate: float) -> list[dict[str, Any]]:
    """Freeze what does not train; the rest as parameter groups for AdamW: `name`, `params`, `lr`, `weight_decay`.

    The model is changed in place: its embeddings may be split in old rows and `new_rows`, and low-rank layers
    put in. What trains becomes float32; a body in 16 or 4 bits stays as it is. `rate` is the peak rate
    of the embeddings.
    """
    model.requires_grad_(False)
    rates = {
        "embeddings": rate,
        "old rows": settings.old_rows_learning_rate or rate,
        "body": settings.body_learning_rate or rate,
    }
    if settings.keeps_old_rows or rates["old rows"] != rate:
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        if tied and parse_flag_from_env("ACCELERATE_USE_FSDP"):
            raise LeptaError(
                "FSDP2: old and new rows of a model with tied embeddings cannot be trained apart under it; "
                "use DDP (such models are small), or train all rows at one rate"
            )
        split_rows(model, new_rows)
    if settings.trains_lora:
        add_lora(model, settings.lora)
    elif settings.trains == "full":
        train_language_model(model)
    for module in _ends(model):
        *old, new = parts_of(module)
        new.requires_grad_(True)
        for part in old:
            part.requires_grad_(not settings.keeps_old_rows)
    _make_masters(model)
    return _groups(model, rates, settings.weight_decay)


def make_tunable(model: Any, settings: TuneSettings) -> list[dict[str, Any]]:
    """As `make_trainable`, for tuning on conversations: all that trains has one rate."""
    model.requires_grad_(False)
    if settings.trains == "full":
        train_language_model(model)
    else:
        add_lora(model, settings.lora, of_embeddings=settings.trains != "embeddings+lora")
    embeddings, head = _ends(model)
    whole = {"lora+head": [head], "embeddings+lora": [embeddings, head]}
    for module in whole.get(settings.trains, []):
        module.weight.requires_grad_(True)  # peft has frozen all but its own
    _make_masters(model)
    rates = dict.fromkeys(("embeddings", "old rows", "body"), settings.learning_rate)
    return _groups(model, rates, settings.weight_decay)


def _ends(model: Any) -> tuple[Any, Any]:
    return model.get_input_embeddings(), model.get_output_embeddings()


def _make_masters(model: Any) -> None:
    """Make what trains float32; embeddings that became float32 still give the body the precision it computes in."""
    frozen = (p.dtype for p in model.parameters() if p.is_floating_point() and not p.requires_grad)
    compute_dtype = next(frozen, torch.float32)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if compute_dtype != torch.float32:
        model.get_input_embeddings().register_forward_hook(lambda module, inputs, rows: rows.to(compute_dtype))


def _groups(model: Any, rates: dict[str, float], weight_decay: float) -> list[dict[str, Any]]:
    name_of = {}
    for module in _ends(model):
        *old, new = parts_of(module)
        name_of[id(new)] = "embeddings"
        name_of |= dict.fromkeys(map(id, old), "old rows")
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        name = name_of.get(id(parameter), "body")
        decays = parameter.ndim > 1  # not biases and norms, as usual
        empty = {"name": name, "params": [], "lr": rates[name], "weight_decay": weight_decay * decays}
        groups.setdefault((name, decays), empty)["params"].append(parameter)
    return list(groups.values())


def add_lora(model: Any, lora: Lora, of_embeddings: bool = False) -> None:
    """Put low-rank layers beside the linear layers of a model's body, in place, and freeze all else.

    With `of_embeddings` the targets may name the input embeddings too, if they are not tied to the head.
    """
    inject(lora_config(model, lora, of_embeddings), model)


def inject(config: Any, model: Any) -> None:
    """Put low-rank layers beside exactly the layers that peft's settings name, in place, and freeze all else.

    In a model whose type it knows, peft takes the names of some layers for other things: with experts, `gate_proj` and
    `up_proj` of any layer for those of all experts. So it gets the model as part of a list, which has no type.
    """
    from peft import inject_adapter_in_model

    whole: Any = nn.ModuleList([model])
    for loaded in ("is_loaded_in_8bit", "is_loaded_in_4bit"):
        setattr(whole, loaded, getattr(model, loaded, False))
    inject_adapter_in_model(config, whole)
    model.peft_config = whole.peft_config


def lora_config(model: Any, lora: Lora, of_embeddings: bool = False) -> Any:
    """The settings as peft's. LeptaError if there are no such layers, or what is named is trained otherwise."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_targets(model, lora, of_embeddings),
        bias="none",
    )


def _targets(model: Any, lora: Lora, of_embeddings: bool) -> list[str]:
    """Whole names of the layers that get low-rank changes; peft would also find layers of these names in a tower."""
    embeddings, head = _ends(model)
    named = set(lora.targets) if lora.targets != "all-linear" else set()
    if (name := _last_part(path_of(model, head))) in named:
        raise LeptaError(f"lora.targets: {name} is the head; to train it give trains: lora+head")
    of_rows = _last_part(path_of(model, embeddings))
    if of_rows in named and (not of_embeddings or embeddings.weight is head.weight):
        raise LeptaError(f"lora.targets: {of_rows} is trained whole or tied to the head; leave it out here")
    linear = called_layers(model, linear_layers(model, _chosen_layers(model, lora.layers)))
    known = set(map(_last_part, linear))
    if unknown := sorted(named - known - {of_rows}):
        raise LeptaError(f"lora.targets: no layer {unknown[0]}; linear layers here: {', '.join(sorted(known))}")
    if not named:
        if not (chosen := attention_of_experts(model, linear)):
            raise LeptaError(
                f"{type(model).__name__}: these layers have no linear layer that all tokens go through; train rows "
                "alone (`trains` new-rows), or name layers in lora.targets"
            )
        return chosen
    chosen = [path for path in linear if _last_part(path) in named]
    if of_rows in named:
        chosen.append(path_of(model, embeddings))
    return chosen


def _chosen_layers(model: Any, layers: list[int] | None) -> set[int] | None:
    """Numbers from 0 of the decoder layers in settings; LeptaError if there is no such layer."""
    if layers is None:
        return None
    number = len(decoder_layers(model))
    if wrong := [layer for layer in layers if not -number <= layer < number]:
        raise LeptaError(f"lora.layers: no layer {wrong[0]}; this model has {number}, from 0 or -{number} on")
    return {layer % number for layer in layers}


def _last_part(path: str) -> str:
    """What settings call a module, by its name in the model."""
    return path.rpartition(".")[2]


def unreached(model: Any, settings: PretrainSettings | TuneSettings) -> list[str]:
    """Matrices of the language model's body that `all-linear` leaves out, such as those of experts.

    Names of parameters, with `*` for numbers of layers; none where no low-rank changes are trained, or where their
    layers are named.
    """
    if "lora" not in settings.trains or settings.lora.targets != "all-linear" or settings.lora.layers is not None:
        return []
    rows = set(map(id, itertools.chain.from_iterable(map(parts_of, _ends(model)))))
    changed = {id(module.base_layer) for module in model.modules() if hasattr(module, "base_layer")}
    names = set()
    for path, module in text_modules(model):
        if id(module) in changed or isinstance(module, nn.Embedding) or "lora_" in path:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1 and id(parameter) not in rows:
                names.add(re.sub(r"\b\d+\b", "*", f"{path}.{name}"))
    return sorted(names)


def training_parameters(model: Any) -> dict[str, Any]:
    """What trains, by name, in the order of the model; detached, in the same memory."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained_weights(model: Any) -> dict[str, torch.Tensor]:
    """Copy what trains to the CPU, parameter name -> tensor. With sharded weights every process has to call it."""
    weights = {}
    for name, parameter in training_parameters(model).items():
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        weights[name] = whole.to("cpu", copy=True)
    return weights


@torch.no_grad()
def load_trained(model: Any, weights: dict[str, torch.Tensor], where: str) -> None:
    """Copy weights that `trained_weights` gave back; LeptaError if they are not of the parameters that train."""
    trained = training_parameters(model)
    if {name: p.shape for name, p in trained.items()} != {name: w.shape for name, w in weights.items()}:
        raise LeptaError(
            f"{where}: holds other weights than those that train now; it is of a run with other settings. "
            "Delete it, or restore the settings"
        )
    for name, parameter in trained.items():
        parameter.copy_(weights[name].to(parameter.device))
