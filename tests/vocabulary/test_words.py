"""Words, where they occur, and how much they count."""

import random
from collections import Counter

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lepta.text.sources import Document, read_labelled
from lepta.vocabulary import words as module
from lepta.vocabulary.build import WORD_LIST_ALONE, WORD_LIST_WEIGHT, count_corpus
from lepta.vocabulary.tokenizer_json import GPT2_REGEX, LLAMA3_REGEX, sequence, split
from lepta.vocabulary.words import PARTS, WordCounter, WordTable, weigh, words_of_frequencies

RULES = {"normalizer": None, "pre_tokenizer": sequence(split(LLAMA3_REGEX))}


def counted(documents, rules=RULES):
    counter = WordCounter(rules)
    counter.add(documents)
    return counter.table()


def totals(table):
    return dict(zip(table.words, table.counts.sum(axis=1).tolist(), strict=True))


def plain(documents, pattern=LLAMA3_REGEX):
    return Counter(word for document in documents for word in regex.findall(pattern, document.text))


def test_counts_equal_a_plain_count():
    documents = list(read_labelled(["starter:ru/valid", "starter:en/valid"]))
    documents.append(Document("7 слов и 2024 год\n\n  «Кавычки», <|im_start|> it's — e\u0301!\t🫠", "a", "b"))
    assert totals(counted(documents)) == plain(documents)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(alphabet="аб cé1.\n\t'", max_size=30), max_size=5))
def test_counts_of_any_text_equal_a_plain_count(texts):
    documents = [Document(text, "a", str(n)) for n, text in enumerate(texts)]
    assert totals(counted(documents)) == plain(documents)


def test_words_of_a_tokenizer_are_those_it_cuts(smollm2, tiny_llama3):
    """SmolLM2 cuts out digits, then words as GPT-2 does."""
    documents = list(read_labelled(["starter:en/valid"]))
    rules = [source.vocabulary().word_rules() for source in (tiny_llama3, smollm2)]
    assert totals(counted(documents, rules[0])) == plain(documents)
    cut = Counter(
        word
        for document in documents
        for piece in regex.split(r"(\p{N})", document.text)
        for word in regex.findall(GPT2_REGEX, piece)
    )
    assert totals(counted(documents, rules[1])) == cut


def test_batches_do_not_change_the_counts(monkeypatch):
    documents = list(read_labelled(["starter:ru/valid"]))
    whole = counted(documents)
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 3_000)
    parts = counted(documents)
    assert parts.words == whole.words
    assert (parts.counts != whole.counts).nnz == 0


def test_words_are_kept_apart_by_source_and_part():
    documents = [Document(f"слово{n % 3}", f"source{n % 2}", f"work{n}") for n in range(40)]
    table = counted(documents)
    assert table.names == ["source0", "source1"]
    assert table.words == ["0", "1", "2", "слово"]
    assert table.counts.shape == (4, len(table.sources))
    assert set(table.sources.tolist()) == {0, 1}
    assert 2 < len(table.sources) <= 2 * PARTS
    by_source = [table.counts[:, table.sources == n].sum() for n in (0, 1)]
    expected = [sum(plain(d for d in documents if d.source == name).values()) for name in table.names]
    assert by_source == expected


def test_pieces_of_one_work_stay_in_one_part():
    documents = [Document("Герой и героиня", "novels", "novel") for _ in range(20)]
    table = counted([*documents, *(Document("иное", "novels", f"other{n}") for n in range(20))])
    column = table.counts[table.words.index("Герой")].toarray().ravel()
    assert sorted(column)[-2:] == [0, 20]
    other = table.counts[table.words.index("иное")].toarray().ravel()
    assert (other > 0).sum() > 3


def test_sources_beyond_the_bound_share_a_column(monkeypatch):
    monkeypatch.setattr(module, "MOST_SOURCES", 3)
    table = counted([Document("a", f"source{n}", "x") for n in range(10)])
    assert table.names == ["source0", "source1", "source2", "others"]
    assert table.counts.sum(axis=0).tolist() == [1, 1, 1, 7]


def test_memory_is_bounded_and_the_most_frequent_words_stay(monkeypatch):
    monkeypatch.setattr(module, "MOST_WORDS", 1_000)
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 2_000)
    frequent = [f"ч{'абвгд'[n % 5] * (n // 5 + 1)}" for n in range(50)]
    rare = iter(range(10**6))
    letters = "абвгдежзийклмнопрстуфхцчшщ"

    def rare_word(n):
        return "р" + "".join(letters[n // 26**k % 26] for k in range(4))

    documents = [
        Document(" ".join([*frequent, *(rare_word(next(rare)) for _ in range(200))]), "a", f"w{n}") for n in range(60)
    ]
    counter = WordCounter(RULES)
    sizes = []
    for document in documents:
        counter.add([document])
        sizes.append(len(counter._ids))
    table = counter.table()
    assert max(sizes) <= 1_000 + 300
    found = totals(table)
    assert [found[f" {word}"] for word in frequent[1:]] == [60] * 49
    assert len(table.words) <= 1_300 < len(plain(documents))


def test_forgetting_keeps_the_most_frequent_even_if_all_are_equal(monkeypatch):
    monkeypatch.setattr(module, "MOST_WORDS", 100)
    counter = WordCounter(RULES)
    counter.add_counts("list", {f"w{n}": 3.0 for n in range(150)})
    assert len(counter.table().words) >= 50


def test_order_of_chance_leaves_no_trace():
    documents = list(read_labelled(["starter:ru/valid"]))
    first, second = counted(documents), counted(documents)
    assert first.words == second.words == sorted(first.words)
    assert (first.counts != second.counts).nnz == 0
    random.Random(1).shuffle(documents)
    shuffled = counted(documents)
    assert shuffled.words == first.words
    np.testing.assert_allclose(weigh(shuffled), weigh(first), rtol=1e-12)


def test_keep_leaves_the_counts_of_matching_words():
    table = counted(list(read_labelled(["starter:ru/valid"])))
    kept = table.keep(r" ?\p{Cyrillic}+")
    expected = {word: n for word, n in totals(table).items() if regex.fullmatch(r" ?\p{Cyrillic}+", word)}
    assert totals(kept) == expected
    assert 0 < len(expected) < len(table.words)


# Weights.


def table_of(counts, sources):
    words = [f"w{n}" for n in range(len(counts))]
    names = [f"s{n}" for n in range(max(sources) + 1)]
    return WordTable(words, sparse.csr_array(np.array(counts, dtype=np.float64)), np.array(sources), names)


def test_a_word_of_many_parts_weighs_more_than_one_of_a_single_part():
    spread, single, filler = weigh(table_of([[10] * 5, [50, 0, 0, 0, 0], [100] * 5], [0] * 5))
    assert filler > spread > 1.1 * single


def test_a_source_weighs_by_the_power_of_its_words_only():
    counts = [[1_000_000, 0], [0, 100]]
    large, small = weigh(table_of(counts, [0, 1]))
    assert large / small == pytest.approx((1_000_000 / 100) ** module.SOURCE_EXPONENT)
    assert small / (large + small) > 10 * 100 / 1_000_100


@given(st.lists(st.lists(st.integers(0, 1000), min_size=4, max_size=4), min_size=1, max_size=6))
def test_weights_of_a_source_sum_to_the_power_of_its_size(counts):
    table = table_of(counts, [0, 0, 1, 1])
    sizes = [table.counts[:, table.sources == n].sum() for n in (0, 1)]
    weights = weigh(table)
    assert weights.sum() == pytest.approx(sum(size**module.SOURCE_EXPONENT for size in sizes))
    assert ((weights > 0) == (table.counts.sum(axis=1) > 0)).all()


def test_an_empty_source_adds_nothing():
    assert weigh(table_of([[1, 0], [3, 0]], [0, 1])).tolist() == weigh(table_of([[1], [3]], [0])).tolist()


# Word lists.


def test_words_of_a_list_share_out_the_count_over_four_forms():
    words = words_of_frequencies({"привет": 0.5}, 1000)
    assert set(words) == {" привет", "привет", " Привет", "Привет"}
    assert sum(words.values()) == pytest.approx(500)
    assert max(words, key=words.get) == " привет"


def test_a_word_list_is_a_source_beside_the_text(monkeypatch):
    pytest.importorskip("wordfreq")
    monkeypatch.setattr("lepta.text.sources.FREQUENT_WORDS", 20_000)
    table = count_corpus(RULES, ["starter:ru/valid", "wordfreq:ru"])
    assert table.names == ["ru/valid", "wordfreq:ru"]
    text, listed = (table.counts[:, table.sources == n].sum() for n in (0, 1))
    assert 0.8 < listed / (WORD_LIST_WEIGHT * text) < 1.05
    alone = count_corpus(RULES, ["wordfreq:ru"])
    assert alone.names == ["wordfreq:ru"]
    assert 0.8 < alone.counts.sum() / WORD_LIST_ALONE < 1.05


def test_sources_of_a_corpus_add_up():
    both = totals(count_corpus(RULES, ["starter:ru/valid", "starter:en/valid"]))
    alone = [Counter(totals(count_corpus(RULES, [f"starter:{code}/valid"]))) for code in ("ru", "en")]
    assert both == alone[0] + alone[1]
