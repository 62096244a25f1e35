"""The transfer matrix between vocabularies of different families."""

import itertools

import numpy as np
import pytest
from scipy import sparse

from lepta.embeddings.transfer import transfer_matrix
from lepta.vocabulary.tokens import Kind, runs_of_text

NAMES = ["smollm2", "llama3", "mistral", "small_unigram"]


@pytest.fixture(scope="module")
def vocabularies(request):
    return {name: request.getfixturevalue(name).vocabulary() for name in NAMES}


@pytest.fixture(scope="module", params=itertools.permutations(NAMES, 2), ids="-".join)
def pair(request, vocabularies):
    """Old and new vocabulary with T between them."""
    old, new = (vocabularies[name] for name in request.param)
    return old, new, transfer_matrix(old, new, old.size, new.size)


@pytest.mark.parametrize("name", [*NAMES, "tekken"])
def test_an_unchanged_vocabulary_gives_the_identity(request, name):
    vocabulary = request.getfixturevalue(name).vocabulary()
    rows = vocabulary.size
    transfer = transfer_matrix(vocabulary, vocabulary, rows, rows)
    assert transfer.exact.tolist() == list(range(rows))
    assert (transfer.matrix != sparse.eye_array(rows, format="csr")).nnz == 0
    assert set(transfer.matrix.data.tolist()) == {1.0}


def test_rows_sum_to_one_or_are_empty(pair):
    _, new, transfer = pair
    sums = transfer.matrix.sum(axis=1)
    filled = np.diff(transfer.matrix.indptr) > 0
    np.testing.assert_allclose(sums[filled], 1, rtol=1e-12)
    assert (transfer.matrix.data > 0).all()
    text = np.flatnonzero(new.kinds == Kind.TEXT)
    assert filled[text].mean() > 0.999


def row(transfer, i):
    part = slice(transfer.matrix.indptr[i], transfer.matrix.indptr[i + 1])
    return dict(zip(transfer.matrix.indices[part].tolist(), transfer.matrix.data[part].tolist(), strict=True))


def test_single_bytes_map_to_the_same_bytes(pair, single_ids):
    old, new, transfer = pair
    before, after = single_ids(old), single_ids(new)
    assert len(after) >= 235
    for byte, i in after.items():
        if byte in before:
            assert transfer.exact[i] == before[byte] or old.bytes_of[transfer.exact[i]] == bytes([byte])
            assert row(transfer, i) == {int(transfer.exact[i]): 1.0}


def test_every_byte_of_byte_fallback_maps_too(pair):
    """Text tokens of one character stand beside the 256 byte tokens of SentencePiece; each maps."""
    old, new, transfer = pair
    known = set(old.ids_by_bytes(Kind.TEXT)) | set(old.ids_by_bytes(Kind.BYTE))
    for i in np.flatnonzero(new.kinds == Kind.BYTE).tolist():
        if new.bytes_of[i] in known:
            assert transfer.exact[i] >= 0
            assert old.bytes_of[transfer.exact[i]] == new.bytes_of[i]


def test_rows_are_the_tokens_that_spell_the_bytes(pair, single_ids):
    old, new, transfer = pair
    bytes_known = set(single_ids(old))
    compared = 0
    for i in np.random.default_rng(0).choice(new.size, 400, replace=False).tolist():
        data = new.data(i)
        if new.kinds[i] != Kind.TEXT or not set(data) <= bytes_known:
            continue
        ids = [int(transfer.exact[i])] if transfer.exact[i] >= 0 else old.split([data])[0]
        assert b"".join(map(old.data, ids)) == data
        assert row(transfer, i) == pytest.approx({j: ids.count(j) / len(ids) for j in ids})
        compared += 1
    assert compared > 200


def test_parts_of_characters_map_by_bytes(pair, partial_text):
    """A token of half a letter becomes text where it is text, and single bytes where it is not."""
    old, new, transfer = pair
    partial = [i for i in range(new.size) if new.kinds[i] == Kind.TEXT and partial_text(new.data(i))]
    if new.family == "byte-level BPE":
        assert len(partial) > 300
    for i in partial[:3000]:
        if transfer.exact[i] >= 0:
            assert old.data(int(transfer.exact[i])) == new.data(i)
            continue
        ids = old.split([new.data(i)])[0]
        known = {byte for j in ids for byte in old.data(j)}
        assert bytes(byte for byte in new.data(i) if byte in known) == b"".join(map(old.data, ids))
        if len(new.data(i)) > 1 and old.family != "byte-level BPE":
            runs = [run for run in runs_of_text(new.data(i)) if isinstance(run, bytes)]
            assert {int(old.kinds[j]) for j in ids} <= {Kind.BYTE, Kind.TEXT}
            assert sum(old.kinds[j] == Kind.BYTE for j in ids) >= sum(map(len, runs))


def test_exact_rows_have_the_same_bytes(pair):
    old, new, transfer = pair
    exact = np.flatnonzero(transfer.exact >= 0)
    assert len(exact) > 600
    assert all(old.bytes_of[transfer.exact[i]] == new.bytes_of[i] for i in exact)


def test_words_of_both_vocabularies_are_unit_rows(vocabularies):
    """The word "the" after a space is "Ġthe" in one and "▁the" in the other."""
    old, new = vocabularies["mistral"], vocabularies["llama3"]
    transfer = transfer_matrix(old, new, old.size, new.size)
    i, j = new.ids_by_bytes(Kind.TEXT)[b" the"], old.ids_by_bytes(Kind.TEXT)[b" the"]
    assert row(transfer, i) == {j: 1.0}
