"""Blocks of training text."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepta.checkpoints.load import load_tokenizer
from lepta.corpus import read_documents
from lepta.errors import LeptaError
from lepta.training.blocks import pack, sections, tokenise, training_blocks

paragraphs = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=30), min_size=1, max_size=6)
END = 2


@pytest.fixture(scope="module")
def tokenizer(smollm2, tmp_path_factory):
    """SmolLM2's tokenizer as transformers loads it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    smollm2.save(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def texts():
    """Russian and English training documents."""
    return tuple(list(itertools.islice(read_documents([f"starter:{code}/train"]), 12)) for code in ("ru", "en"))


def whole(documents):
    """Documents as one section each."""
    return sections(documents, 10**9)


@given(documents=st.lists(paragraphs, max_size=8), length=st.integers(1, 40))
def test_pack_loses_no_token_and_exceeds_no_length(documents, length):
    blocks = list(pack(documents, length))
    assert list(itertools.chain(*blocks)) == [token for document in documents for part in document for token in part]
    assert all(1 <= len(block) <= length for block in blocks)


@settings(max_examples=200)
@given(documents=st.lists(paragraphs, max_size=8), length=st.integers(1, 40))
def test_blocks_start_at_a_paragraph_unless_it_is_longer_than_a_block(documents, length):
    """Inside a paragraph only ends a block that is full, of a paragraph that fits no block."""
    starts, inside, position = set(), {}, 0
    for part in itertools.chain(*documents):
        starts.add(position)
        inside |= {position + n: len(part) for n in range(1, len(part))}
        position += len(part)
    position, previous = 0, length
    for block in pack(documents, length):
        if position not in starts:
            assert inside[position] > length
            assert previous == length
        position, previous = position + len(block), len(block)


def test_pack_closes_a_block_when_the_next_paragraph_does_not_fit():
    assert list(pack([[[1, 1], [2, 2, 2]], [[3, 3]]], 5)) == [[1, 1, 2, 2, 2], [3, 3]]
    assert list(pack([[[1, 1], [2, 2, 2]], [[3, 3]]], 4)) == [[1, 1], [2, 2, 2], [3, 3]]
    assert list(pack([[[1], [2] * 7], [[3]]], 3)) == [[1], [2] * 3, [2] * 3, [2, 3]]


def test_tokenise_joins_to_the_document_and_ends_it_once(tokenizer, texts):
    documents = [*texts[0], "одна строка", "а\n\n\nб\n", "  пробелы  "]
    for document, parts in zip(documents, tokenise(tokenizer, whole(documents)), strict=True):
        ids = [token for part in parts for token in part]
        assert ids[-1] == END
        assert END not in ids[:-1]
        assert tokenizer.decode(ids[:-1]) == document.strip()


def test_tokenise_cuts_after_line_breaks(tokenizer):
    parts = next(tokenise(tokenizer, whole(["первый\nвторой\n\nтретий"])))
    assert [tokenizer.decode(part) for part in parts] == ["первый\n", "второй\n\n", "третий<|im_end|>"]


@given(documents=st.lists(st.text("аб \n", min_size=1).filter(str.strip), max_size=5), characters=st.integers(1, 30))
def test_sections_join_to_the_documents(documents, characters):
    parts = list(sections(documents, characters))
    text = "".join("".join(part.paragraphs) + ("|" if part.ends_document else "") for part in parts)
    assert text == "".join(document.strip() + "|" for document in documents)
    assert all(sum(map(len, part.paragraphs[:-1])) < characters for part in parts)


def test_a_small_budget_sees_many_documents(tokenizer):
    documents = [f"Документ {n}.\n" * 400 for n in range(30)]
    blocks = training_blocks(tokenizer, documents, [], 2000, 64, 0.0, 1)
    seen = {tokenizer.decode(block).split("Документ ")[1].split(".")[0] for block in blocks}
    assert len(seen) > 5  # one, if documents were gone through whole


def run(tokenizer, texts, tokens=6000, length=64, share=0.25, seed=1):
    return training_blocks(tokenizer, *texts, tokens, length, share, seed)


def is_cyrillic(tokenizer, block):
    text = tokenizer.decode(block)
    return sum("а" <= letter <= "я" for letter in text) > len(text) / 4


def test_budget_is_kept(tokenizer, texts):
    for length in (32, 64, 256):
        blocks = run(tokenizer, texts, length=length)
        assert all(len(block) <= length for block in blocks)
        assert 6000 <= sum(map(len, blocks)) < 6000 + 2 * length


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.6])
def test_source_share_is_respected(tokenizer, texts, share):
    blocks = run(tokenizer, texts, share=share)
    source = sum(len(block) for block in blocks if not is_cyrillic(tokenizer, block))
    assert source / sum(map(len, blocks)) == pytest.approx(share, abs=64 / 6000)


def test_source_blocks_are_spread_evenly(tokenizer, texts):
    languages = [is_cyrillic(tokenizer, block) for block in run(tokenizer, texts)]
    quarter = len(languages) // 4
    counts = [languages[n * quarter : (n + 1) * quarter].count(False) for n in range(4)]
    assert min(counts) > 0
    assert max(counts) - min(counts) <= 2


def test_same_seed_gives_the_same_blocks_and_another_seed_others(tokenizer, texts):
    assert run(tokenizer, texts) == run(tokenizer, texts)
    assert run(tokenizer, texts) != run(tokenizer, texts, seed=2)


def test_every_block_of_real_text_starts_at_a_document_or_paragraph(tokenizer, texts):
    length = 256
    parts = [part for documents in texts for document in tokenise(tokenizer, whole(documents)) for part in document]
    assert max(map(len, parts)) > length  # paragraphs that must be cut are among them
    long = {tuple(part) for part in parts if len(part) > length}
    starts = {tuple(part[:12]) for part in parts}
    tails = {tuple(part[n : n + 12]) for part in long for n in range(length, len(part), length)}
    for block in run(tokenizer, texts, length=length, tokens=15_000):
        assert any(tuple(block[: len(start)]) == start for start in starts | tails)


def test_texts_are_repeated_as_often_as_the_budget_asks(tokenizer):
    blocks = training_blocks(tokenizer, ["Один.", "Два."], [], 200, 16, 0.0, 1)
    text = "".join(tokenizer.decode(block) for block in blocks)
    assert sum(map(len, blocks)) >= 200
    assert abs(text.count("Один.") - text.count("Два.")) <= 3
    assert text.count("Один.") > 5


def test_source_share_without_source_text_raises(tokenizer):
    with pytest.raises(LeptaError, match="source_share: above 0"):
        training_blocks(tokenizer, ["Один."], [], 100, 16, 0.1, 1)
