"""How much text a token holds."""

import pytest

from lepta.vocabulary.measure import measure


def test_counts_of_a_text_counted_by_hand(old):
    text = "The world: мир 5"
    measured = measure(old, [text])
    ids = old.encode([text])[0]
    assert (measured.characters, measured.utf8_bytes, measured.words) == (16, 19, 4)
    assert measured.tokens == len(ids)
    assert measured.single_token_words == 2  # " The" and " world", but not " мир", nor " 5": a space and a digit


def test_ratios(old):
    measured = measure(old, ["The world of the people"])
    assert measured.summary() == {
        "tokens": 5,
        "characters_per_token": 23 / 5,
        "bytes_per_token": 23 / 5,
        "tokens_per_word": 1.0,
        "single_token_words": 1.0,
    }


def test_every_occurrence_counts(old):
    assert measure(old, ["world world", "world"]).single_token_words == 3


def test_documents_add_up(old, russian):
    parts = [measure(old, [document]) for document in russian]
    whole = measure(old, russian)
    for name in ("characters", "utf8_bytes", "words", "tokens", "single_token_words"):
        assert getattr(whole, name) == sum(getattr(part, name) for part in parts)


def test_extended_vocabulary_holds_more_russian_in_a_token_and_the_same_english(old, new, russian, english):
    before, after = measure(old, russian), measure(new, russian)
    assert after.summary()["characters_per_token"] > 1.8 * before.summary()["characters_per_token"]
    assert after.single_token_words > before.single_token_words
    assert measure(new, english) == measure(old, english)


def test_text_without_words_has_ratios(old):
    assert measure(old, ["!!!"]).summary()["tokens_per_word"] == pytest.approx(measure(old, ["!!!"]).tokens)
