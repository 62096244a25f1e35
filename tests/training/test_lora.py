"""Which layers get low-rank changes in families for which peft has rules of its own."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from lepta.core.errors import LeptaError
from lepta.models.folder import Checkpoint
from lepta.models.load import complete_model
from lepta.models.write import write_model
from lepta.training.merge import changed_tensors
from lepta.training.settings import Lora
from lepta.training.trainable import add_lora, trained_weights

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
    "Rwkv": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "JetMoe": SIZES | {"kv_channels": 8, "num_local_experts": 4},
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
        ("Rwkv", {"key", "value", "receptance", "output"}),
    ],
)
def test_layers_that_are_called_get_low_rank_changes(name, expected):
    """Mamba's kernels take other weights by themselves; Afmoe has experts, and a gate in its attention too.

    RWKV's parameters of three dimensions are no experts.
    """
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


def test_a_model_of_experts_alone_is_refused():
    with pytest.raises(LeptaError, match=r"^JetMoeForCausalLM: these layers have no linear layer that all tokens go"):
        add_lora(model_of("JetMoe"), Lora(rank=2))


@pytest.mark.parametrize("family", ["GPT2", "Bloom"])
def test_files_may_have_the_names_of_the_model_without_its_head(family, tiny_tokenizer, tmp_path):
    """As those of gpt2 and bloom-560m on the hub have."""
    folder, result = tmp_path / "base", tmp_path / "result"
    config = getattr(transformers, f"{family}Config")(vocab_size=4000, hidden_size=32, n_layer=2, n_head=4)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer.save(folder)
    tensors = load_file(folder / "model.safetensors")
    short = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(short, folder / "model.safetensors", metadata={"format": "pt"})
    result.mkdir()

    model, source = complete_model(folder), Checkpoint(folder)
    add_lora(model, Lora(rank=2))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    changed = changed_tensors(model, trained_weights(model), source)
    write_model(source, changed, tiny_tokenizer, result)
    ids = torch.arange(100, 120)[None]
    with torch.no_grad():
        torch.testing.assert_close(complete_model(result)(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    assert load_file(result / "model.safetensors").keys() == short.keys()
