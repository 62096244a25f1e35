"""Checks pass on good tokenizers, and each fails on the fault that it is for."""

import copy
from dataclasses import replace

import pytest

from lepta.vocabulary.check import check_vocabulary

DENSE, REACHABLE = "ids are dense", "every token is reachable"
ROUND_TRIP, TRANSFORMERS = "text survives encoding and decoding", "same ids in tokenizers and transformers"
OLD_IDS, SPECIALS, UNCHANGED = (
    "old ids keep their meaning",
    "special tokens keep their ids",
    "ids of other text unchanged",
)


def failed(checks):
    return {check.name for check in checks if not check.passed}


@pytest.fixture
def spoilt(tiny_extended):
    """An extended tokenizer with contents that a test may change."""
    return replace(tiny_extended, spec=copy.deepcopy(tiny_extended.spec))


def test_extended_tokenizer_passes_every_check(extended, smollm2, russian, english):
    checks = check_vocabulary(extended, smollm2, russian[:4], english[:4])
    names = {check.name for check in checks}
    assert names == {DENSE, REACHABLE, ROUND_TRIP, TRANSFORMERS, OLD_IDS, SPECIALS, UNCHANGED}
    assert [(check.name, check.evidence) for check in checks if not check.passed] == []
    assert all(check.evidence for check in checks)


def test_alone_a_tokenizer_is_not_compared(tiny_tokenizer, russian):
    checks = check_vocabulary(tiny_tokenizer, None, russian[:2], [])
    assert not {OLD_IDS, SPECIALS, UNCHANGED} & {check.name for check in checks}
    assert not {DENSE, ROUND_TRIP, TRANSFORMERS} & failed(checks)


def test_hole_is_found(spoilt, tiny_tokenizer):
    spoilt.spec["added_tokens"].append(spoilt.spec["added_tokens"][0] | {"id": 4_302, "content": "<late>"})
    checks = check_vocabulary(spoilt, tiny_tokenizer, [], [])
    assert DENSE in failed(checks)
    assert "first 4300" in next(check.evidence for check in checks if check.name == DENSE)


def test_token_without_a_merge_is_found(spoilt, tiny_tokenizer):
    spoilt.spec["model"]["vocab"]["ÑĪÑĪÑĪÑĪÑĪÑĪ"] = 4_300
    checks = check_vocabulary(spoilt, tiny_tokenizer, [], [])
    assert REACHABLE in failed(checks)
    assert "300 of 301 new tokens" in next(check.evidence for check in checks if check.name == REACHABLE)


def test_exchanged_old_ids_are_found(spoilt, tiny_tokenizer, english):
    vocab = spoilt.spec["model"]["vocab"]
    vocab["Ġthe"], vocab["Ġof"] = vocab["Ġof"], vocab["Ġthe"]
    names = failed(check_vocabulary(spoilt, tiny_tokenizer, [], english[:2]))
    assert {OLD_IDS, UNCHANGED} <= names
    assert SPECIALS not in names


def test_renamed_special_token_is_found(spoilt, tiny_tokenizer):
    spoilt.spec["added_tokens"][16]["content"] = "<renamed>"
    assert {OLD_IDS, SPECIALS} <= failed(check_vocabulary(spoilt, tiny_tokenizer, [], []))


def test_lost_letters_are_found(spoilt, tiny_tokenizer):
    spoilt.spec["normalizer"] = None
    spoilt.spec["decoder"] = None
    assert ROUND_TRIP in failed(check_vocabulary(spoilt, tiny_tokenizer, ["Привет, мир"], []))
