"""Why documents are dropped."""

import numpy as np
import pytest

from lepta.corpora.clean import Cleaned, Cleaner
from lepta.corpora.judge import Judge, repeated_share
from lepta.corpora.overlap import ngram_hashes, split_words, word_hashes
from lepta.corpora.settings import Clean, Filters
from lepta.text.sources import read_documents

GOOD = next(text for text in read_documents(["starter:ru/train"]) if len(text) > 1000)


def reason(text, share=0.0, **limits):
    return Judge(Filters(**limits), Clean()).reason(Cleaned(text, {}, share))


def test_the_starter_corpus_passes_in_both_languages():
    cleaner, judge = Cleaner(Clean(scripts=["Cyrillic", "Latin"])), Judge(Filters(), Clean())
    for source in ("starter:ru/train", "starter:en/train"):
        assert {judge.reason(cleaner.clean(text)) for text in read_documents([source])} == {None}


@pytest.mark.parametrize(
    ("text", "limits", "expected"),
    [
        ("", {}, "empty"),
        ("Коротко.", {}, "short"),
        (GOOD, {"max_characters": 100}, "long"),
        ("слово " * 20 + "длинноесловобезконца" * 10, {}, "few words"),
        (GOOD, {"max_words": 10}, "many words"),
        ("12 345 67,8 — 90 ... 100 %\n" * 20, {}, "few letters"),
        (GOOD, {"max_line": 50}, "long line"),
        (GOOD, {"max_word_length": 3}, "long words"),
        (GOOD, {"min_word_length": 9}, "short words"),
        (GOOD, {"stop_words": ["zzz", "qqq"]}, "no stop words"),
        ("\n".join(f"- {word} и так далее" for word in GOOD.split()[:60]), {}, "bullet lines"),
        ("\n".join(f"{word} и так далее..." for word in GOOD.split()[:60]), {"max_symbols": None}, "cut lines"),
        (GOOD.split("\n")[0] + "\n" + "Купить недорого в нашем магазине сегодня.\n" * 30, {}, "repeated lines"),
        (" ".join(GOOD.split()[:40] * 4), {}, "repeated runs of words"),
        ("!" * 50 + " а" * 5, {"min_characters": 1, "min_words": None, "min_letters": None}, None),
        ("!?" * 300, {"min_letters": None, "min_words": None}, "few words"),
    ],
)
def test_reasons(text, limits, expected):
    assert reason(text, **limits) == expected


ONE = "\n".join(f"{word} и так далее" for word in GOOD.split()[:60])  # a text to be given one fault


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("# " + ONE, "max_symbols", "many hashes"),
        (ONE + "...", "max_symbols", "many ellipses"),
        ("- " + ONE, "max_bullet_lines", "bullet lines"),
        (ONE + "...", "max_cut_lines", "cut lines"),
        (ONE + "\nраз\nраз", "max_repeated_lines", "repeated lines"),
        (ONE + "\nраз\nраз", "max_repeated_line_characters", "repeated lines"),
        (ONE + "\n\nраз\n\nраз", "max_repeated_lines", "repeated paragraphs"),
        (ONE, "max_repeated_ngrams", "repeated runs of words"),
    ],
)
def test_a_limit_of_0_allows_none(text, limit, expected):
    zero, off = ({3: 0}, {}) if limit == "max_repeated_ngrams" else (0, None)
    others = {"max_repeated_ngrams": {}}
    assert reason(text, **others | {limit: zero}) == expected
    assert reason(text, **others | {limit: off}) is None


def test_foreign_documents_are_dropped():
    assert reason(GOOD, share=0.5) == "foreign"
    assert reason("", share=0.9) == "foreign"
    assert reason(GOOD, share=0.1) is None


def test_every_limit_can_be_turned_off():
    off = {name: None for name, field in Filters.model_fields.items() if field.default is None or name.startswith("m")}
    off |= {"max_repeated_ngrams": {}, "min_stop_words": 0}
    assert reason("Да", **off) is None


def test_repeated_share_counts_words_in_runs_met_before():
    once, twice = np.arange(40, dtype=np.uint64), np.tile(np.arange(20, dtype=np.uint64), 2)
    assert repeated_share(once, 5) == 0
    assert repeated_share(twice, 5) == 0.5
    assert repeated_share(once[:3], 5) == 0


def test_words_need_no_spaces_where_the_script_has_none():
    assert split_words("Привет, мир-2!") == ["Привет", "мир", "2"]
    assert split_words("東京は big city") == ["東", "京", "は", "big", "city"]
    assert split_words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]


def test_runs_of_words_do_not_know_case_and_punctuation_but_order():
    one, other = word_hashes("Раз, два — ТРИ четыре"), word_hashes("раз два три (четыре)")
    assert (ngram_hashes(one, 3) == ngram_hashes(other, 3)).all()
    assert not (ngram_hashes(one, 3) == ngram_hashes(one[::-1], 3)).any()
    assert len(ngram_hashes(one, 5)) == 0
