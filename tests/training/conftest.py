"""A model with experts, for what trains and what is merged."""

import pytest
import torch


class Listed(list):
    """Examples in memory, as training asks for them."""

    @property
    def sizes(self):
        return [len(example["input_ids"]) for example in self]


@pytest.fixture(scope="session")
def listed():
    """Make examples of lists of token ids."""
    return lambda rows: Listed({"input_ids": row, "labels": row} for row in rows)


@pytest.fixture(scope="session")
def experts(tiny_tokenizer, tmp_path_factory):
    """A tiny Qwen3Moe: its experts are single parameters, and stored under other names."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    folder = tmp_path_factory.mktemp("experts")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "moe_intermediate_size": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "eos_token_id": 2}
    torch.manual_seed(0)
    config = Qwen3MoeConfig(vocab_size=4000, num_experts=4, num_experts_per_tok=2, **sizes, **heads)
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save(folder)
    return folder
