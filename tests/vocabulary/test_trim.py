"""New tokens that the text has too seldom are left out, and every one that is left can be reached."""

from collections import Counter

import numpy as np
import pytest

from lepta.core.errors import LeptaError
from lepta.text.sources import read_documents, read_labelled
from lepta.vocabulary.extend import extend
from lepta.vocabulary.families import read_vocabulary
from lepta.vocabulary.merges import TooFewTokens
from lepta.vocabulary.settings import VocabularySettings
from lepta.vocabulary.tokens import Kind
from lepta.vocabulary.trim import without_rare
from lepta.vocabulary.words import WordCounter

LEAST = 12
TEXT = "starter:ru/valid"


def use_of(vocabulary):
    """How often each token occurs in the corpus."""
    texts = list(read_documents([TEXT]))
    return np.bincount(np.concatenate([np.asarray(ids) for ids in vocabulary.encode(texts)]), minlength=vocabulary.size)


@pytest.mark.parametrize(("name", "scenario"), [("tiny_llama3", "extended"), ("mistral", "bpe")])
def test_what_is_left_is_frequent_or_part_of_what_is(build, request, name, scenario):
    old = request.getfixturevalue(name)
    chosen = {"size": 1_500} if scenario == "bpe" else {"add": 1_000}
    whole, new = (build(old, scenario, **chosen, trim=least).vocabulary() for least in (None, LEAST))
    first_new = whole.size - 1_000 if scenario != "bpe" else 400
    assert first_new < new.size < whole.size
    tokens = [new.data(i) for i in range(new.size)]
    assert tokens[:first_new] == [whole.data(i) for i in range(first_new)]
    assert set(tokens) < {whole.data(i) for i in range(whole.size)}
    use = use_of(new)
    rare = [tokens[i] for i in range(first_new, new.size) if use[i] < LEAST]
    frequent = [tokens[i] for i in range(first_new, new.size) if use[i] >= LEAST]
    assert len(frequent) > 5 * len(rare)
    for token in rare:
        assert any(token in longer and token != longer for longer in tokens[first_new:])
    assert new.split([tokens[-1]]) == [[new.size - 1]]


def test_word_lists_do_not_count(tiny_llama3):
    vocabulary = tiny_llama3.vocabulary()
    counter = WordCounter(vocabulary.word_rules())
    counter.add_counts("wordfreq:ru", Counter({" словарь": 1e6}))
    with pytest.raises(TooFewTokens) as few:
        extend(vocabulary, [" словарь"], np.array([1e6]), 100, "Cyrillic")
    spec = extend(vocabulary, [" словарь"], np.array([1e6]), few.value.available, "Cyrillic")
    with pytest.raises(LeptaError, match="`trim`: the corpus has word lists alone; expected text"):
        without_rare(spec, vocabulary.size, counter.table(), LEAST)
    counter.add(read_labelled([TEXT]))
    trimmed = without_rare(spec, vocabulary.size, counter.table(), LEAST)
    has_word = [" словарь".encode() in read_vocabulary(one, "").ids_by_bytes(Kind.TEXT) for one in (spec, trimmed)]
    assert has_word == [True, False]


def test_what_cannot_be_trimmed(build, tiny_llama3):
    with pytest.raises(LeptaError, match="`trim` 1000000: no new token is in the text so often; give more text, or a"):
        build(tiny_llama3, "extended", add=100, trim=1_000_000)
    with pytest.raises(ValueError, match="`trim`: scenario replaced has as many tokens as it was asked for"):
        VocabularySettings(scenario="replaced", add=10, corpus=[TEXT], trim=2)
