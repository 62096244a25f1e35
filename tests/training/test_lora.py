"""Which layers get low-rank changes in families for which peft has rules of its own."""

import pytest
import transformers
from torch import nn

from lepta.core.errors import LeptaError
from lepta.training.settings import Lora
from lepta.training.trainable import add_lora

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
MAMBA = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 0}
WITH_GATES = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_dense_layers": 1}
MODELS = {
    "Mamba": MAMBA | {"time_step_rank": 4},
    "Mamba2": MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "FalconH1": SIZES
    | {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 4},
    "Afmoe": SIZES | WITH_GATES | {"layer_types": ["sliding_attention", "full_attention"], "num_shared_experts": 1},
}


def model_of(name):
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**MODELS[name]))


def changed_layers(model):
    changed = [path for path, module in model.named_modules() if getattr(module, "lora_A", None)]
    return {path.rpartition(".")[2] for path in changed if "0" in path.split(".")}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Mamba", {"in_proj"}),
        ("Mamba2", {"in_proj"}),
        ("FalconH1", {"in_proj", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("Afmoe", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"}),
    ],
)
def test_layers_that_are_called_get_low_rank_changes(name, expected):
    """Mamba's kernels take other weights by themselves; Afmoe has experts, and a gate in its attention too."""
    model = model_of(name)
    add_lora(model, Lora(rank=2))
    assert changed_layers(model) == expected


def test_dense_layers_of_a_model_with_experts_are_those_that_are_named():
    """For peft their names are those of all experts, which are one parameter."""
    model = model_of("Afmoe")
    add_lora(model, Lora(rank=2, targets=["gate_proj", "up_proj"]))
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("layers.0.mlp.up_proj" in name for name in learning)
    assert not any(".experts." in name for name in learning)
    assert all(isinstance(m.base_layer, nn.Linear) for m in model.modules() if hasattr(m, "base_layer"))


def test_layers_that_kernels_use_are_refused_where_they_are_named():
    with pytest.raises(LeptaError, match=r"lora.targets: no layer out_proj; linear layers here: in_proj$"):
        add_lora(model_of("Mamba"), Lora(rank=2, targets=["out_proj"]))
