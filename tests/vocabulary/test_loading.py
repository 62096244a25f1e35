"""A tokenizer that transformers reads otherwise than its file says is refused before anything is made of it."""

from dataclasses import replace

import pytest
from transformers import Qwen2Config, Qwen2ForCausalLM

from lepta.core.errors import LeptaError
from lepta.core.output import publishing
from lepta.embeddings.initialise import initialise
from lepta.models.folder import Checkpoint
from lepta.vocabulary.build import build_vocabulary
from lepta.vocabulary.check import check_vocabulary
from lepta.vocabulary.loading import OTHER_TEXT, first_difference, load_exact, load_tokenizer, sample_text
from lepta.vocabulary.source import open_tokenizer
from lepta.vocabulary.tokenizer_json import QWEN2_REGEX, split_bytes

TRANSFORMERS = "same ids in tokenizers and transformers"


@pytest.fixture(scope="module")
def qwen_tokenizer(tiny_tokenizer):
    """The tiny tokenizer with Qwen's rules, which the class that transformers takes for `qwen2` builds in."""
    rules = {"pre_tokenizer": split_bytes(QWEN2_REGEX), "normalizer": {"type": "NFC"}}
    return replace(tiny_tokenizer, spec=tiny_tokenizer.spec | rules)


@pytest.fixture
def qwen_folder(qwen_tokenizer, tmp_path):
    config = Qwen2Config(
        vocab_size=4000,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    folder = tmp_path / "qwen"
    Qwen2ForCausalLM(config).save_pretrained(folder)
    qwen_tokenizer.save(folder)
    return folder


def test_a_tokenizer_of_the_models_family_is_taken(qwen_folder, tmp_path):
    assert type(load_exact(qwen_folder)).__name__ == "Qwen2Tokenizer"
    with publishing(tmp_path / "out") as folder:
        initialise(Checkpoint(qwen_folder), open_tokenizer(qwen_folder), folder)


@pytest.fixture(scope="module")
def unigram(qwen_tokenizer):
    return build_vocabulary(qwen_tokenizer, ["starter:ru/valid"], "unigram", size=1000)


def test_init_refuses_what_transformers_would_read_otherwise(qwen_folder, unigram, tmp_path):
    with (
        pytest.raises(LeptaError, match="Qwen2Tokenizer, which does not follow"),
        publishing(tmp_path / "out") as folder,
    ):
        initialise(Checkpoint(qwen_folder), unigram, folder)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_misread_is_refused_and_found_by_the_check(qwen_folder, unigram):
    unigram.save(qwen_folder)
    text = "учитель читав"
    assert (
        load_tokenizer(qwen_folder)(text, add_special_tokens=False)["input_ids"]
        != unigram.vocabulary().encode([text])[0]
    )
    with pytest.raises(LeptaError, match="does not follow"):
        load_exact(qwen_folder)
    checks = check_vocabulary(open_tokenizer(qwen_folder), None, [], [])
    assert TRANSFORMERS in {check.name for check in checks if not check.passed}


def test_init_refuses_a_source_that_transformers_misreads(qwen_folder, tiny_tokenizer, tmp_path):
    """SmolLM2's rule takes every digit alone, Qwen's class not."""
    tiny_tokenizer.save(qwen_folder)
    with pytest.raises(LeptaError, match=str(qwen_folder)), publishing(tmp_path / "out") as folder:
        initialise(Checkpoint(qwen_folder), tiny_tokenizer, folder)


def test_sample_text_is_in_the_scripts_of_the_tokens(tiny_extended, tiny_model_folder):
    texts = sample_text(tiny_extended.vocabulary())
    assert any("а" <= letter <= "я" for letter in "".join(texts))
    loaded = load_tokenizer(tiny_model_folder(rows=4300, tokenizer=tiny_extended))
    assert first_difference(loaded, tiny_extended.vocabulary(), [*OTHER_TEXT, *texts])[1] is None
