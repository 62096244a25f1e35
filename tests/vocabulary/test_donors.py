"""Tokens of another tokenizer as candidates."""

import pytest

from lepta.core.errors import LeptaError
from lepta.vocabulary.change import VocabularyChange
from lepta.vocabulary.source import open_tokenizer
from lepta.vocabulary.tokens import Kind


@pytest.fixture(scope="module")
def donor(build, mistral, tmp_path_factory):
    """Mistral with 2,000 tokens of other Russian text."""
    folder = tmp_path_factory.mktemp("donor")
    build(mistral, "extended", corpus=["starter:ru/train"], add=2_000).save(folder)
    return str(folder)


@pytest.mark.parametrize("scenario", ["extended", "replaced", "bpe", "unigram"])
def test_more_of_the_donors_tokens_are_learned_and_all_are_reached(build, tiny_llama3, donor, scenario):
    numbers = {"extended": {"add": 400}, "replaced": {"add": 400, "keep_text": ["starter:en/valid"], "most_changed": 1}}
    chosen = numbers.get(scenario, {"size": 1_200})
    theirs = set(open_tokenizer(donor).vocabulary().ids_by_bytes(Kind.TEXT))
    shared = {}
    for name, donors in (("without", []), ("with", [donor])):
        old, new = tiny_llama3.vocabulary(), build(tiny_llama3, scenario, donor=donors, **chosen).vocabulary()
        ids = [i for i in VocabularyChange.between(old, new).new_ids.tolist() if new.kinds[i] == Kind.TEXT]
        shared[name] = len(theirs.intersection(map(new.data, ids))) / len(ids)
        assert new.split([new.data(i) for i in ids]) == [[i] for i in ids]
    assert shared["with"] > shared["without"]


def test_a_token_across_words_is_none_here(build, tiny_llama3, donor):
    """SentencePiece may join words; byte-level tokenizers cut text first, so nothing could lead to such a token."""
    across = [
        data
        for data in open_tokenizer(donor).vocabulary().ids_by_bytes(Kind.TEXT)
        if data.startswith(b", ") and len(data) > 4
    ]
    assert across
    new = build(tiny_llama3, "extended", add=400, donor=[donor]).vocabulary()
    assert not set(across) & set(new.ids_by_bytes(Kind.TEXT))


def test_a_donor_of_another_script_is_one_line(build, tiny_llama3, train):
    english = train(english=True, model_type="bpe", vocab_size=400)
    with pytest.raises(LeptaError, match=r"donor .*tokenizer\.model: no token in the script Cyrillic; expected"):
        build(tiny_llama3, "extended", add=10, donor=[str(english)])


def test_a_donor_that_is_not_there_is_one_line(build, tiny_llama3):
    with pytest.raises(LeptaError, match=r"no/such/donor"):
        build(tiny_llama3, "extended", add=10, donor=["no/such/donor"])


def test_what_became_of_the_donors_tokens_is_told(build, tiny_llama3, donor):
    built = build(tiny_llama3, "extended", add=400, donor=[donor])
    (facts,) = built.facts["donors"].values()
    old, new = (one.vocabulary().ids_by_bytes(Kind.TEXT) for one in (tiny_llama3, built))
    theirs = open_tokenizer(donor).vocabulary().ids_by_bytes(Kind.TEXT)
    assert 0 < facts["taken"] < facts["candidates"] <= len(theirs.keys() - old.keys())
    assert facts["taken"] >= len((theirs.keys() & new.keys()) - old.keys()) // 2
