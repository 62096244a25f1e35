"""Bytes of ids and ids of bytes."""

import copy
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from lepta.core.errors import LeptaError
from lepta.vocabulary.families import from_byte_alphabet, read_vocabulary, to_byte_alphabet
from lepta.vocabulary.tokens import Kind

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def single_bytes(new):
    """The bytes that are tokens by themselves."""
    return {data for data in new.ids_by_bytes(Kind.TEXT) if len(data) == 1}


@given(st.binary(max_size=300))
def test_byte_alphabet_round_trips_any_bytes(data):
    written = to_byte_alphabet(data)
    assert len(written) == len(data)
    assert from_byte_alphabet(written) == data


def test_byte_alphabet_has_256_distinct_characters_and_no_whitespace():
    written = to_byte_alphabet(bytes(range(256)))
    assert len(set(written)) == 256
    assert not any(character.isspace() for character in written)


@pytest.mark.parametrize(("data", "written"), [(b" hi", "Ġhi"), (b"\n", "Ċ"), ("п".encode(), "Ð¿")])
def test_byte_alphabet_is_the_one_of_gpt2(data, written):
    assert to_byte_alphabet(data) == written


def test_characters_outside_the_byte_alphabet_are_refused():
    with pytest.raises(KeyError):
        from_byte_alphabet("привет")


@quick
@given(text=st.text(max_size=80))
def test_extended_tokenizer_round_trips_what_the_original_does(old, new, text):
    """A text that the original gives back unchanged also survives the extended vocabulary."""
    if old.tokenizer.decode(old.encode([text])[0], skip_special_tokens=False) == text:
        assert new.tokenizer.decode(new.encode([text])[0], skip_special_tokens=False) == text


@quick
@given(text=st.text(alphabet=st.characters(min_codepoint=0x400, max_codepoint=0x4FF), max_size=60))
def test_cyrillic_letters_survive_the_extended_tokenizer(new, text):
    assert b"".join(new.bytes_of[i] for i in new.encode([text])[0]) == text.encode()


@quick
@given(data=st.binary(max_size=60))
def test_split_keeps_every_byte_valid_text_or_not(new, single_bytes, data):
    """SmolLM2 has no token for some bytes; those, and only those, cannot come back."""
    known = bytes(byte for byte in data if bytes([byte]) in single_bytes)
    assert b"".join(new.bytes_of[i] for i in new.split([known])[0]) == known


@quick
@given(text=st.text(alphabet="аб вгde 1,\n", max_size=60))
def test_split_agrees_with_encode_where_no_special_token_is_written(new, text):
    assert new.split([text.encode()]) == new.encode([text])


def test_split_answers_in_the_order_of_mixed_pieces(old):
    pieces = [b" the", b"\xd0", b" of", b"\xd1\x8f\xd0", b""]
    assert [old.split([piece])[0] for piece in pieces] == old.split(pieces)


def test_split_never_matches_special_tokens(old):
    ids = old.split([b"<|im_start|>"])[0]
    assert b"".join(old.bytes_of[i] for i in ids) == b"<|im_start|>"
    assert not any(old.kinds[i] == Kind.SPECIAL for i in ids)


def test_encode_does_match_special_tokens(old):
    assert old.encode(["<|im_start|>"]) == [[1]]


def test_split_adds_no_prefix_space(smollm2):
    """A tokenizer that puts a space before text must not do so when single tokens are split."""
    spec = copy.deepcopy(smollm2.spec)
    for part in spec["pre_tokenizer"]["pretokenizers"]:
        if part["type"] == "ByteLevel":
            part["add_prefix_space"] = True
    vocabulary = read_vocabulary(spec)
    assert vocabulary.encode(["the"]) == vocabulary.split([b" the"])  # the space is there in whole texts
    assert b"".join(vocabulary.bytes_of[i] for i in vocabulary.split([b"the"])[0]) == b"the"


def test_special_tokens_are_told_from_text(old):
    assert np.flatnonzero(old.kinds == Kind.SPECIAL).tolist() == list(range(17))
    assert old.bytes_of[1] == b"<|im_start|>"
    assert (old.kinds[17:] == Kind.TEXT).all()


def test_byte_level_as_a_normalizer_is_refused(tiny_tokenizer):
    spec = tiny_tokenizer.spec | {"normalizer": {"type": "ByteLevel"}, "pre_tokenizer": None}
    with pytest.raises(LeptaError, match=r"my\.json: ByteLevel as a normalizer; expected it in pre_tokenizer"):
        read_vocabulary(spec, "my.json")


def test_ids_by_bytes_gives_every_text_token_its_id(old):
    ids = old.ids_by_bytes(Kind.TEXT)
    assert all(old.bytes_of[i] == data for data, i in ids.items())
    assert len(ids) == 49152 - 17


def test_ids_without_a_token_are_holes_and_the_size_is_the_largest_id_plus_one(smollm2):
    spec = copy.deepcopy(smollm2.spec)
    last = max(spec["model"]["vocab"].values())
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": last + 4, "content": "<new>"})
    vocabulary = read_vocabulary(spec)
    assert vocabulary.size == last + 5
    assert vocabulary.kinds[last + 1 :].tolist() == [Kind.HOLE] * 3 + [Kind.SPECIAL]
    assert vocabulary.bytes_of[last + 1 :] == [None, None, None, b"<new>"]


def test_the_lowest_id_wins_where_two_tokens_have_the_same_bytes(smollm2):
    spec = copy.deepcopy(smollm2.spec)
    spec["added_tokens"].append(spec["added_tokens"][1] | {"id": 60_000})
    assert read_vocabulary(spec).ids_by_bytes(Kind.SPECIAL)[b"<|im_start|>"] == 1


@pytest.mark.parametrize(
    ("model", "word"), [(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"), "WordPiece"), (models.BPE(), "BPE")]
)
def test_unsupported_families_are_named(model, word):
    with pytest.raises(LeptaError, match=rf"my\.json.*{word}.*of no family known here; expected byte-level BPE"):
        read_vocabulary(json.loads(Tokenizer(model).to_str()), "my.json")
