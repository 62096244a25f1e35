"""Merges on top of any tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepta.core.errors import LeptaError
from lepta.vocabulary.merges import Merge, learn_merges, whole_numbers
from lepta.vocabulary.tokenizer_json import merge_lines, merge_pairs


def letters(words):
    return [[bytes([byte]) for byte in word] for word in words]


WORDS = letters([b"banana", b"bandana", b"cabana", b"ananas"])
WEIGHTS = np.array([5, 3, 2, 1])
KNOWN = {bytes([byte]) for byte in range(256)}


def test_the_most_frequent_pair_merges_first():
    assert learn_merges(letters([b"ab", b"cd"]), np.array([1, 3]), KNOWN, 2) == [
        Merge(b"c", b"d"),
        Merge(b"a", b"b"),
    ]


@pytest.mark.parametrize("number", range(1, 10))
def test_exactly_so_many_new_tokens(number):
    merges = learn_merges(WORDS, WEIGHTS, KNOWN, number)
    assert len({merge.token for merge in merges} - KNOWN) == number
    assert merges[-1].token not in KNOWN | {merge.token for merge in merges[:-1]}


def test_no_new_token_needs_no_merge():
    assert learn_merges(WORDS, WEIGHTS, KNOWN, 0) == []


def test_parts_of_a_merge_stand_before_it():
    symbols = set(KNOWN)
    for merge in learn_merges(WORDS, WEIGHTS, KNOWN, 9):
        assert {merge.left, merge.right} <= symbols
        symbols.add(merge.token)


def test_known_tokens_cost_nothing():
    known = KNOWN | {b"an", b"ana"}
    merges = learn_merges(WORDS, WEIGHTS, known, 4)
    assert len({merge.token for merge in merges} - known) == 4
    assert b"an" in {merge.token for merge in merges}


def test_merges_stand_on_symbols_of_any_length():
    symbols = [["при".encode(), "вет".encode()], [b"\xd0", "вет".encode()]]
    merges = learn_merges(symbols, np.array([2, 1]), set(), 2)
    assert merges == [Merge("при".encode(), "вет".encode()), Merge(b"\xd0", "вет".encode())]


def test_same_words_give_the_same_merges():
    assert learn_merges(WORDS, WEIGHTS, KNOWN, 9) == learn_merges(WORDS, WEIGHTS, KNOWN, 9)


@pytest.mark.parametrize("words", [[b"abc"], [b"a"], []])
def test_too_few_words_raise(words):
    with pytest.raises(LeptaError, match=r"corpus: only \d new tokens .* not 50; give more"):
        learn_merges(letters(words), np.ones(len(words), dtype=int), KNOWN, 50)


@given(st.lists(st.floats(0, 1e4), max_size=200))
def test_whole_numbers_keep_the_running_sum(weights):
    weights = np.array(weights, dtype=np.float64)
    numbers = whole_numbers(weights)
    assert numbers.dtype.kind == "i"
    assert (numbers >= 0).all()
    assert (np.abs(np.cumsum(numbers) - np.cumsum(weights)) <= 0.5 + 1e-6).all()


def test_rare_words_keep_their_share_together():
    assert whole_numbers(np.full(1000, 0.1)).sum() == 100


@pytest.mark.parametrize("like", [["a b"], [["a", "b"]]])
def test_merges_are_written_as_the_file_writes_them(like):
    pairs = [("a", "b"), ("ab", "c")]
    lines = merge_lines(pairs, like)
    assert {type(line) for line in lines} == {type(like[0])}
    assert merge_pairs(lines) == pairs
