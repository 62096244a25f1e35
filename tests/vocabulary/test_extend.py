"""Scenario `extended`: old vocabulary first, new tokens after it."""

import copy
import itertools
from collections import Counter

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from lepta.corpus import read_documents
from lepta.errors import LeptaError
from lepta.vocabulary.build import build_vocabulary, corpus_words
from lepta.vocabulary.extend import (
    count_words,
    dominant_script,
    extend,
    words_from_frequencies,
    words_of_script,
)
from lepta.vocabulary.tokens import read_vocabulary, to_byte_alphabet

ADDED = 2000


@pytest.fixture(scope="module")
def tiny(tiny_tokenizer):
    """A small old vocabulary, for extensions that take no time."""
    return tiny_tokenizer.vocabulary()


def quick_extend(vocabulary, words, add):
    """Extend as ever, with fewer words handed to the trainer: seconds less, and merges only a little worse."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lepta.vocabulary.extend.TRAINING_OCCURRENCES", 50_000)
        return extend(vocabulary, words, add)


@pytest.fixture(scope="module")
def few_words(tiny) -> Counter[str]:
    """Cyrillic words of a few documents."""
    documents = itertools.islice(read_documents(["starter:ru/train"]), 8)
    return words_of_script(count_words(tiny, documents), "Cyrillic")


def test_old_vocabulary_keeps_its_ids(smollm2, extended):
    before, after = smollm2.spec["model"]["vocab"], extended.spec["model"]["vocab"]
    assert {token: after.get(token) for token in before} == before


def test_new_ids_follow_the_largest_old_id_without_holes(old, new):
    assert new.size == old.size + ADDED
    assert all(new.bytes_of[i] is not None for i in range(old.size, new.size))
    assert len(set(new.bytes_of)) == new.size


def test_old_merges_are_a_prefix_of_the_new_ones(smollm2, extended):
    before, after = smollm2.spec["model"]["merges"], extended.spec["model"]["merges"]
    assert len(after) >= len(before) + ADDED
    assert after[: len(before)] == before


def test_everything_else_of_the_tokenizer_stays(smollm2, extended):
    without = [{k: v for k, v in t.spec.items() if k != "model"} for t in (smollm2, extended)]
    assert without[0] == without[1]
    assert extended.config == smollm2.config
    assert extended.chat_template == smollm2.chat_template


def test_every_new_token_is_reachable(old, new):
    ids = list(range(old.size, new.size))
    assert new.split([new.bytes_of[i] for i in ids]) == [[i] for i in ids]


def test_new_tokens_hold_cyrillic_letters_with_at_most_a_space_before(old, new):
    tokens = [new.bytes_of[i].decode() for i in range(old.size, new.size)]
    assert [token for token in tokens if not regex.fullmatch(r" ?[\p{Cyrillic}\p{Mn}]+", token)] == []


def test_english_text_keeps_its_ids(old, new, english):
    assert new.encode(english) == old.encode(english)


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=st.characters(max_codepoint=0x2FF), max_size=80))
def test_text_without_cyrillic_keeps_its_ids(old, new, text):
    assert new.encode([text]) == old.encode([text])


def test_russian_needs_fewer_tokens(old, new, russian):
    before, after = (sum(map(len, vocabulary.encode(russian))) for vocabulary in (old, new))
    assert after < before / 1.8


def test_added_tokens_are_used_in_running_text(old, new, russian):
    used = {i for ids in new.encode(russian) for i in ids if i >= old.size}
    assert len(used) > ADDED / 2


def test_same_text_gives_the_same_vocabulary(tiny, few_words):
    assert quick_extend(tiny, few_words, 50) == quick_extend(tiny, few_words, 50)


def test_fewer_tokens_are_the_first_of_more(tiny, few_words):
    few, more = quick_extend(tiny, few_words, 20)["model"], quick_extend(tiny, few_words, 60)["model"]
    assert more["merges"][: len(few["merges"])] == few["merges"]
    assert {token: more["vocab"].get(token) for token in few["vocab"]} == few["vocab"]


def test_input_spec_is_not_changed(tiny, few_words):
    before = copy.deepcopy(tiny.spec)
    quick_extend(tiny, few_words, 20)
    assert tiny.spec == before


def test_merges_written_as_strings_stay_strings_and_mean_the_same(tiny_tokenizer, tiny, few_words):
    """Older `tokenizer.json` files write "a b" for ["a", "b"]."""
    model = tiny_tokenizer.spec["model"]
    spec = tiny_tokenizer.spec | {"model": model | {"merges": [" ".join(pair) for pair in model["merges"]]}}
    as_strings, as_pairs = quick_extend(read_vocabulary(spec), few_words, 30), quick_extend(tiny, few_words, 30)
    assert all(isinstance(merge, str) for merge in as_strings["model"]["merges"])
    assert [merge.split(" ") for merge in as_strings["model"]["merges"]] == as_pairs["model"]["merges"]
    text = ["Она смотрела в окно и думала о том, что было."]
    assert read_vocabulary(as_strings).encode(text) == read_vocabulary(as_pairs).encode(text)


def test_ids_of_special_tokens_above_the_text_tokens_are_not_reused(tiny_tokenizer, few_words):
    spec = copy.deepcopy(tiny_tokenizer.spec)
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": 4_008, "content": "<last>"})
    vocabulary = read_vocabulary(spec)
    new = read_vocabulary(quick_extend(vocabulary, few_words, 10))
    assert new.size == 4_009 + 10
    assert new.bytes_of[4_008] == b"<last>"


def test_asking_for_more_tokens_than_the_text_holds_raises(tiny):
    with pytest.raises(LeptaError, match=r"only \d+ new tokens .* 1,000 were asked for"):
        quick_extend(tiny, Counter({to_byte_alphabet(" привет".encode()): 5}), 1000)


@pytest.mark.parametrize("language", ["ru", "en"])
def test_count_words_equals_an_independent_count(old, language):
    documents = list(itertools.islice(read_documents([f"starter:{language}/valid"]), 4))
    documents.append("7 слов и 2024 год\n\n  «Кавычки», <|im_start|> it's — e\u0301!")
    tokenizer = old.tokenizer.pre_tokenizer
    expected = Counter(word for document in documents for word, _ in tokenizer.pre_tokenize_str(document))
    assert count_words(old, documents) == expected


def test_corpus_words_add_text_to_text(old):
    both = corpus_words(old, ["starter:ru/valid", "starter:en/valid"])
    assert both == corpus_words(old, ["starter:ru/valid"]) + corpus_words(old, ["starter:en/valid"])


def test_word_list_stands_for_more_than_the_text_beside_it(old):
    pytest.importorskip("wordfreq")
    text = corpus_words(old, ["starter:ru/valid"])
    both = corpus_words(old, ["starter:ru/valid", "wordfreq:ru"])
    assert set(text) <= set(both)
    assert 2 * text.total() < both.total() <= 3.01 * text.total()


def test_words_from_frequencies_share_out_the_count_over_four_forms():
    words = words_from_frequencies({"привет": 0.5}, 1000)
    expected = {" привет", "привет", " Привет", "Привет"}
    assert set(words) == {to_byte_alphabet(form.encode()) for form in expected}
    assert sum(words.values()) == pytest.approx(500)
    assert max(words, key=words.get) == to_byte_alphabet(" привет".encode())


@pytest.mark.parametrize(
    ("words", "script"),
    [
        ({" hello": 100, " привет": 1}, "Cyrillic"),
        ({" γεια": 5, " привет": 1}, "Greek"),
        ({" hello": 3}, "Latin"),
        ({"123": 3, "!": 1}, "Latin"),
    ],
)
def test_dominant_script(words, script):
    assert dominant_script(Counter({to_byte_alphabet(w.encode()): n for w, n in words.items()})) == script


def test_words_of_script_keeps_whole_words_of_that_script_only():
    words = [" привет", "привет", " hello", "приvет", "  привет", "привет!", " й", "5"]
    counted = Counter({to_byte_alphabet(word.encode()): 1 for word in words})
    kept = {" привет", "привет", " й"}
    assert set(words_of_script(counted, "Cyrillic")) == {to_byte_alphabet(word.encode()) for word in kept}


def test_unknown_script_and_missing_script_raise():
    words = Counter({to_byte_alphabet(b" hello"): 1})
    with pytest.raises(LeptaError, match="'Klingonese': not a Unicode script"):
        words_of_script(words, "Klingonese")
    with pytest.raises(LeptaError, match="no word in the script Greek"):
        words_of_script(words, "Greek")


def test_unknown_scenario_raises(smollm2):
    with pytest.raises(LeptaError, match="'replaced': unknown"):
        build_vocabulary(smollm2, ["starter:ru/valid"], "replaced", 10)
