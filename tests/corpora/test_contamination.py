"""Runs of words that a corpus must not hold."""

import json

import pytest

from lepta.core.errors import LeptaError
from lepta.corpora.overlap import Contamination, build_index
from lepta.corpora.settings import Clean, Decontaminate

QUESTION = "Какая река впадает в Каспийское море и считается самой длинной рекой во всей Европе"
ANSWER = "самая длинная река Европы это конечно Волга которая течёт через многие области России"


@pytest.fixture
def against(tmp_path):
    """An index of a benchmark whose strings lie at different depths."""
    row = {"inputs": {"question": QUESTION, "options": ["Волга", ANSWER]}, "n": 5, "none": None}
    (tmp_path / "b.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")

    def make(**options):
        settings = Decontaminate(against=[str(tmp_path)], **options)
        place = tmp_path / "index.npy"
        return build_index(settings, Clean(), place), Contamination(settings, place)

    return make


def test_all_strings_of_a_row_are_indexed_and_short_ones_counted(against):
    facts, found = against()
    assert facts == {"strings": 3, "too_short": 1, "runs": 3}
    assert found.found(f"В книге сказано: {ANSWER.upper()}! И так далее.")
    assert found.found(QUESTION.replace(" ", ", "))
    assert not found.found(" ".join(QUESTION.split()[:12]) + " и всё")
    assert not found.found("")


def test_number_of_hits(against):
    _, found = against(ngram=5, hits=4)
    words = QUESTION.split()
    assert not found.found(" ".join(words[:7]))
    assert found.found(" ".join(words[:8]))


def test_texts_too_short_for_any_run_raise(against):
    with pytest.raises(LeptaError, match=r"no string of 50 words.*smaller decontaminate\.ngram"):
        against(ngram=50)
