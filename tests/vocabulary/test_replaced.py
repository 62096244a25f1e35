"""Scenario `replaced`: the size stays, kept tokens keep their ids, and text that is to stay is measured."""

from string import ascii_letters, digits

import numpy as np
import pytest

from lepta.core.errors import LeptaError
from lepta.embeddings.transfer import transfer_matrix
from lepta.text.sources import read_documents
from lepta.vocabulary.build import save_vocabulary
from lepta.vocabulary.change import VocabularyChange
from lepta.vocabulary.check import check_vocabulary
from lepta.vocabulary.families import read_vocabulary
from lepta.vocabulary.replaced import into_freed_ids, without_least_useful
from lepta.vocabulary.source import open_tokenizer
from lepta.vocabulary.tokens import Kind

ENGLISH = ["starter:en/train", "starter:en/valid"]
# How many, and the share of documents that may change: small vocabularies have nothing that English never uses.
ADDED = {"tiny_llama3": (300, 0.01), "mistral": (400, 0.01), "gemma": (40, 1.0)}


@pytest.fixture(scope="module", params=list(ADDED))
def case(request, build):
    """Original tokenizer, the same with tokens replaced, and how many."""
    original = request.getfixturevalue(request.param)
    number, limit = ADDED[request.param]
    return original, build(original, "replaced", add=number, keep_text=ENGLISH, most_changed=limit), number


def gone(old, new):
    """Old ids of tokens that the new vocabulary lacks."""
    moved = VocabularyChange.between(old, new).moved
    return {i for i in range(old.size) if not old.is_hole(i) and i not in moved}


def test_size_stays_and_what_is_kept_has_its_id(case):
    original, built, number = case
    old, new = original.vocabulary(), built.vocabulary()
    change = VocabularyChange.between(old, new)
    assert new.size == old.size
    assert all(i == moved for i, moved in change.moved.items())
    assert set(change.new_ids.tolist()) == gone(old, new)
    assert 0 < len(change.new_ids) <= number  # tokens that were learned again are at their old ids
    assert len(change.new_ids) >= 0.9 * number


def test_every_new_token_is_reached(case):
    original, built, _ = case
    new = built.vocabulary()
    ids = VocabularyChange.between(original.vocabulary(), new).new_ids.tolist()
    assert new.split([new.data(i) for i in ids]) == [[i] for i in ids]


def test_specials_bytes_and_parts_of_what_is_kept_stay(case):
    original, built, _ = case
    old, new = original.vocabulary(), built.vocabulary()
    lost = gone(old, new)
    assert all(old.kinds[i] == Kind.TEXT and len(old.data(i)) > 1 for i in lost)
    for token, parts in old.merge_parts.items():
        assert token in lost or not lost.intersection(parts)
    assert built.spec["added_tokens"] == original.spec["added_tokens"]


def test_text_of_kept_tokens_keeps_its_ids(case, texts):
    """Whatever its language: what was merged before is merged now, in the same order."""
    original, built, _ = case
    old, new = original.vocabulary(), built.vocabulary()
    lost = gone(old, new)
    documents = [*texts, *read_documents(ENGLISH)]
    kept = [text for text, ids in zip(documents, old.encode(documents), strict=True) if not lost.intersection(ids)]
    latin = [text for text in kept if not any("а" <= letter.lower() <= "ё" for letter in text)]
    assert len(latin) > 10
    assert new.encode(latin) == old.encode(latin)
    assert new.encode(texts) != old.encode(texts)  # Russian is shorter


def test_all_rows_of_the_check_pass(case, tmp_path, russian, english):
    original, built, _ = case
    facts = save_vocabulary(built, original, "replaced", tmp_path)
    assert facts["kept_text"]["documents"] == len(list(read_documents(ENGLISH)))
    checks = check_vocabulary(open_tokenizer(tmp_path), original, russian[:3], english[:3])
    assert [(check.name, check.evidence) for check in checks if not check.passed] == []
    assert {"old ids keep their meaning", "ids of other text unchanged"} <= {check.name for check in checks}


def test_rows_of_kept_tokens_are_copied_in_place(case):
    original, built, _ = case
    old, new = original.vocabulary(), built.vocabulary()
    transfer = transfer_matrix(old, new, old.size, new.size)
    kept = np.flatnonzero(transfer.exact >= 0)
    assert np.array_equal(transfer.exact[kept], kept)
    np.testing.assert_allclose(transfer.matrix.sum(axis=1), 1.0)


def test_a_moved_id_and_too_many_changed_texts_fail_the_check(build, tiny_llama3, tmp_path, english):
    built = build(tiny_llama3, "replaced", add=300, keep_text=ENGLISH)
    vocab = built.spec["model"]["vocab"]
    vocab["Ġthe"], vocab["Ġof"] = vocab["Ġof"], vocab["Ġthe"]
    save_vocabulary(built, tiny_llama3, "replaced", tmp_path)
    checks = check_vocabulary(open_tokenizer(tmp_path), tiny_llama3, [], english[:2])
    assert {"old ids keep their meaning", "ids of other text unchanged"} <= {c.name for c in checks if not c.passed}


def test_a_text_that_uses_what_gave_up_its_id_is_shown(build, tiny_llama3, tmp_path):
    built = build(tiny_llama3, "replaced", add=300, keep_text=ENGLISH)
    save_vocabulary(built, tiny_llama3, "replaced", tmp_path)
    old = tiny_llama3.vocabulary()
    text = next(decoded(old, i) for i in gone(old, built.vocabulary()) if old.encode([decoded(old, i)]) == [[i]])
    checks = check_vocabulary(open_tokenizer(tmp_path), tiny_llama3, [], [text, "Plain English."])
    [check] = [check for check in checks if check.name == "ids of other text unchanged"]
    assert not check.passed
    assert "of 1 of 2 documents given" in check.evidence
    assert "tokens that gave up their ids (documents given with those: 1)" in check.evidence
    assert repr(text) in check.evidence


def test_without_text_to_keep_only_other_scripts_go(build, mistral):
    built = build(mistral, "replaced", add=500)
    old = mistral.vocabulary()
    lost = gone(old, built.vocabulary())
    assert len(lost) >= 490  # some signs of Russian text are learned again
    letters = {letter for i in lost for letter in decoded(old, i)}
    assert letters.isdisjoint(ascii_letters + digits + "абвгдеё—«»№…é")


def decoded(vocabulary, i):
    return vocabulary.data(i).decode(errors="ignore")


def test_tokens_that_the_kept_text_uses_go_last(build, tiny_llama3, write_lines):
    """Code, which English text would give up."""
    old = tiny_llama3.vocabulary()
    code = "public static void main(String[] args) {\n\t\tthrow new Exception();\n} // <div class='row'></div>\n" * 9
    file = str(write_lines("code.txt", [code]))
    freed = {}
    for name, texts in (("en", ENGLISH), ("code", [*ENGLISH, file])):
        freed[name] = gone(old, build(tiny_llama3, "replaced", add=900, keep_text=texts, most_changed=1).vocabulary())
    used = set().union(*old.encode([code]))
    assert used & freed["en"]
    assert not used & freed["code"]


def test_a_token_that_is_learned_again_keeps_its_id(tiny_llama3):
    old = tiny_llama3.vocabulary()
    words = [" слово", " перевод"]
    start = read_vocabulary(without_least_useful(old, 5_000, words, np.ones(2), None))
    again = next(
        token for token, i in old.spec["model"]["vocab"].items() if i not in set(start.spec["model"]["vocab"].values())
    )
    learned = {token: start.size + n for n, token in enumerate(["неть", again])}
    extended = start.spec | {"model": start.spec["model"] | {"vocab": start.spec["model"]["vocab"] | learned}}
    vocab = into_freed_ids(old, start, extended)["model"]["vocab"]
    assert vocab[again] == old.spec["model"]["vocab"][again]
    assert vocab["неть"] != vocab[again]
    assert len(set(vocab.values())) == len(vocab)


def test_what_was_replaced_is_replaced_again(build, tiny_llama3):
    once = build(tiny_llama3, "replaced", add=200, keep_text=ENGLISH)
    twice = build(once, "replaced", add=150, keep_text=ENGLISH)
    old, new = tiny_llama3.vocabulary(), twice.vocabulary()
    assert new.size == old.size
    ids = VocabularyChange.between(old, new).new_ids.tolist()
    assert len(ids) > 200
    assert new.split([new.data(i) for i in ids]) == [[i] for i in ids]


def test_the_same_vocabulary_again(build, tiny_llama3):
    first, second = (build(tiny_llama3, "replaced", add=200, keep_text=ENGLISH) for _ in range(2))
    assert first.spec == second.spec


# Bad input.


@pytest.mark.parametrize(
    ("scenario", "numbers", "words"),
    [
        ("replaced", {"size": 6_256}, "replaced keeps the size: give `add`"),
        ("replaced", {"add": 6_256, "keep_text": ENGLISH}, "add: 6,256, but only .* bytes .* must stay. Ask"),
        ("replaced", {"add": 6_000}, "6,000, but only .* scripts other than Latin and Cyrillic .* or give `keep_text`"),
        ("replaced", {"add": 10, "keep": 3}, "`keep` 3: .*expected scenario optimized"),
        ("extended", {"add": 10, "keep_text": ENGLISH}, "`keep_text`: only scenario replaced"),
        ("replaced", {"add": 10, "keep_text": ["no/such.txt"]}, "no/such.txt"),
        ("replaced", {"add": 10, "most_changed": 1.5}, "most_changed: .*less than or equal to 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_met_is_one_line(build, tiny_llama3, scenario, numbers, words):
    with pytest.raises(LeptaError, match=words):
        build(tiny_llama3, scenario, **numbers)


def test_too_many_changed_documents_are_refused(build, gemma):
    with pytest.raises(
        LeptaError, match=r"keep_text: \d+ of \d+ documents .* expected at most 0.00%.* fewer new tokens"
    ):
        build(gemma, "replaced", add=40, keep_text=ENGLISH, most_changed=0)


def test_unigram_has_no_merges_to_build_on(build, small_unigram):
    with pytest.raises(LeptaError, match="scenario replaced needs merges"):
        build(small_unigram, "replaced", add=5)
