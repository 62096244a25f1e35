"""Tiny random models with tokenizers of several families."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lepta.darumeru.backend import Asking
from lepta.darumeru.transformers_backend import TransformersBackend


@pytest.fixture(scope="session")
def loaded(tiny_model_folder, request):
    """Model and tokenizer of a family, which a fixture is named after; made once."""
    made = {}

    def load(family="smollm2"):
        if family not in made:
            source = request.getfixturevalue(family)
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
