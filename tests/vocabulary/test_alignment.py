"""Old ids of what new ids write, in families that put a space before a text, and where ids write no whole text."""

import pytest

from lepta.vocabulary.alignment import Aligner


@pytest.mark.parametrize("family", ["mistral", "tiny_llama3"])
def test_ids_are_aligned_as_the_old_tokenizer_writes_their_text(family, request):
    vocabulary = request.getfixturevalue(family).vocabulary()
    (ids,) = vocabulary.encode(["Привет, мир! How are you?"])
    same = Aligner(vocabulary, vocabulary)
    old_ids, old_ends, new_ends = same.align_ids(ids)
    assert old_ids == ids and old_ends.tolist() == new_ends.tolist() and len(old_ends) > 5
    cut = ids + vocabulary.split(["ж".encode()[:1]])[0]
    old_ids, old_ends, _ = same.align_ids(cut)
    assert b"".join(map(vocabulary.data, old_ids)) == b"".join(map(vocabulary.data, cut)) and len(old_ends) > 5


def test_special_tokens_that_the_old_vocabulary_lacks_are_left_out(mistral, tiny_llama3):
    old, new = mistral.vocabulary(), tiny_llama3.vocabulary()
    end = new.ids_by_bytes(2 + 1)[b"<|end_of_text|>"]
    ids = [*new.encode(["Hello"])[0], end]
    old_ids, old_ends, _ = Aligner(old, new).align_ids(ids)
    assert b"".join(map(old.data, old_ids)).strip() == b"Hello" and not len(old_ends)
