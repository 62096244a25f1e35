"""Real corpora, where they lie beside the project (environment variable LEPTA_SHARED names another place)."""

import os
from pathlib import Path

import pytest
import regex

from lepta.text.sources import read_documents
from lepta.vocabulary.check import check_vocabulary
from lepta.vocabulary.measure import measure

DATA = Path(os.environ.get("LEPTA_SHARED", Path(__file__).parents[2] / "shared")) / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no shared data at {DATA}; LEPTA_SHARED names another place")


@pytest.fixture(scope="module")
def english_corpus():
    """112 English documents of eight sources."""
    return list(read_documents([str(DATA / "corpus_en" / "valid.jsonl")]))


def test_english_keeps_its_ids_down_to_the_last_document(old, new, english_corpus):
    """One document lists languages by their own names, two of them in Cyrillic; all others are the same."""
    without = [document for document in english_corpus if not regex.search(r"\p{Cyrillic}", document)]
    assert len(without) == len(english_corpus) - 1 > 100
    assert new.encode(without) == old.encode(without)


def test_every_check_passes_on_real_text(extended, smollm2, english_corpus):
    russian = list(read_documents([str(DATA / "corpus_ru" / "valid.jsonl")]))[:60]
    checks = check_vocabulary(extended, smollm2, russian, english_corpus)
    assert [(check.name, check.evidence) for check in checks if not check.passed] == []


def test_two_thousand_tokens_nearly_double_the_text_in_a_token(old, new):
    """The starter corpus alone, on text of other sources: 1.36 characters per token become 2.4."""
    russian = list(read_documents([str(DATA / "corpus_ru" / "valid.jsonl")]))[:100]
    before, after = measure(old, russian), measure(new, russian)
    assert after.tokens < 0.6 * before.tokens
