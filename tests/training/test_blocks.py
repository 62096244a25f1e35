"""Blocks of training text."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from lepta.core.errors import LeptaError
from lepta.models.load import load_tokenizer
from lepta.text.sources import read_documents
from lepta.training.blocks import (
    SECTIONS,
    TOKENS,
    TokenStore,
    TrainingText,
    cut,
    fit,
    lay_out,
    training_blocks,
    write_tokens,
)
from lepta.training.settings import PretrainSettings

paragraphs = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=30), min_size=1, max_size=6)
START, END = 1, 2
LENGTH = 64


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


def store_of(lengths):
    """A store whose n-th section is made of the number n."""
    tokens = np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths)
    return TokenStore(tokens, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def run(tokenizer, texts, folder, tokens=6000, length=LENGTH, share=0.25, seed=1, batch=1, **rest):
    parts = [TrainingText(lambda: texts[0], 1 - share), TrainingText(lambda: texts[1], share)]
    chosen = PretrainSettings(tokens=tokens, block=length, batch=batch, **rest)
    return training_blocks(parts, tokenizer, chosen, seed, folder)


def ids_of(blocks):
    return [blocks[n]["input_ids"].tolist() for n in range(len(blocks))]


def is_cyrillic(tokenizer, block):
    text = tokenizer.decode(block)
    return sum("а" <= letter <= "я" for letter in text) > len(text) / 4


@given(document=paragraphs, length=st.integers(1, 40))
def test_cut_loses_no_token_and_cuts_no_paragraph_that_fits(document, length):
    sections = list(cut(document, length))
    assert list(itertools.chain(*sections)) == list(itertools.chain(*document))
    assert all(1 <= len(section) <= length for section in sections)
    starts = {0, *itertools.accumulate(map(len, document))}
    inside = {
        n: len(p) for start, p in zip(sorted(starts), document, strict=False) for n in range(start, start + len(p))
    }
    for end in list(itertools.accumulate(map(len, sections)))[:-1]:
        assert end in starts or inside[end] > length


@settings(max_examples=200)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=80), spare=st.integers(0, 30))
def test_fit_uses_every_section_once_and_no_two_blocks_would_fit_into_one(lengths, spare):
    length = max(lengths) + spare
    blocks = fit(np.asarray(lengths), length)
    assert sorted(itertools.chain(*blocks)) == list(range(len(lengths)))
    sizes = sorted(sum(lengths[n] for n in block) for block in blocks)
    assert sizes[-1] <= length
    assert len(sizes) < 2 or sizes[0] + sizes[1] > length


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=40),
    tokens=st.integers(1, 600),
    batch=st.integers(1, 5),
    others=st.integers(0, 4),
)
def test_a_pass_uses_every_section_before_any_comes_again(lengths, tokens, batch, others):
    packed = lay_out(store_of(lengths), tokens, 20, 1, batch, others)
    sizes = packed.sizes
    assert (len(sizes) + others) % batch == 0
    assert sizes.sum() >= tokens
    assert sizes[: max(0, len(sizes) - batch)].sum() < tokens
    counts = np.bincount(packed.members, minlength=len(lengths))
    assert counts.max() - counts.min() <= 1
    assert [len(packed.sections(n)) for n in range(len(sizes))] == np.diff(packed.starts).tolist()


def test_sections_join_to_the_documents_and_end_once(tokenizer, texts, tmp_path):
    documents = [*texts[0], "одна строка", "а\n\n\nб\n", "  пробелы  ", " \n "]
    store = write_tokens(documents, tokenizer, LENGTH, tmp_path)
    assert store.lengths.max() <= LENGTH
    text = tokenizer.decode(store.tokens.tolist())
    end = tokenizer.decode([END])
    assert text == "".join(document.strip() + end for document in documents if document.strip())


@pytest.fixture(scope="module")
def starting(tokenizer):
    """The same tokenizer, which puts its start token before each text, as LLaMA-3's and Gemma's do."""
    result = copy.deepcopy(tokenizer)
    template = {"single": "<|im_start|> $A", "special_tokens": [("<|im_start|>", START)]}
    result.backend_tokenizer.post_processor = TemplateProcessing(**template)
    return result


@pytest.mark.parametrize("apart", [False, True])
def test_a_tokenizers_start_token_opens_each_section_and_is_not_predicted(starting, texts, tmp_path, apart):
    blocks = run(starting, texts, tmp_path, documents_apart=apart)
    for number in range(len(blocks)):
        example, sections = blocks[number], blocks.sections_of(number)
        assert all(section[0] == START for section in sections)
        is_start = example["input_ids"] == START
        assert is_start.sum() == len(sections)
        assert (example["labels"][is_start] < 0).all()
        assert (example["labels"][~is_start] >= 0).all()
    assert blocks.sizes.max() <= LENGTH


def test_sections_end_with_a_line_wherever_a_line_fits(tokenizer, tmp_path):
    store = write_tokens(["первый\nвторой\n\nтретий"], tokenizer, 12, tmp_path)
    pieces = [tokenizer.decode(store.tokens[a:b].tolist()) for a, b in itertools.pairwise(store.starts)]
    assert all(piece.endswith(("\n", tokenizer.decode([END]))) for piece in pieces)


def test_blocks_are_nearly_full(tokenizer, texts, tmp_path):
    blocks = run(tokenizer, texts, tmp_path, tokens=20_000, length=256)
    assert blocks.facts(256)["full"] > 0.85  # paragraphs are long against such a block


def test_a_small_budget_sees_many_documents(tokenizer, tmp_path):
    documents = [f"Документ {n}.\n" * 400 for n in range(30)]
    blocks = run(tokenizer, (documents, []), tmp_path, tokens=2000, share=0.0)
    seen = {part.split(".")[0] for block in ids_of(blocks) for part in tokenizer.decode(block).split("Документ ")[1:]}
    assert len(seen) > 5  # one, if documents were gone through whole
    assert TokenStore.open(tmp_path / "0").starts[-1] < 60_000  # of 240,000: only a part is tokenised
    whole = len(tokenizer("".join(documents)).input_ids)
    [passes] = blocks.facts(LENGTH)["passes"]
    assert passes == pytest.approx(2000 / whole, rel=0.1), "of the whole text, not of that part"


@pytest.mark.parametrize("length", [32, 64, 256])
def test_budget_is_kept(tokenizer, texts, tmp_path, length):
    blocks = run(tokenizer, texts, tmp_path, length=length)
    assert all(len(block) <= length for block in ids_of(blocks))
    assert blocks.sizes.tolist() == [len(block) for block in ids_of(blocks)]
    assert 6000 <= blocks.sizes.sum() < 6000 + 2 * length


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.6])
def test_source_share_is_respected(tokenizer, texts, tmp_path, share):
    blocks = ids_of(run(tokenizer, texts, tmp_path, share=share))
    source = sum(len(block) for block in blocks if not is_cyrillic(tokenizer, block))
    assert source / sum(map(len, blocks)) == pytest.approx(share, abs=64 / 6000)


def test_source_blocks_are_spread_evenly(tokenizer, texts, tmp_path):
    languages = [is_cyrillic(tokenizer, block) for block in ids_of(run(tokenizer, texts, tmp_path))]
    quarter = len(languages) // 4
    counts = [languages[n * quarter : (n + 1) * quarter].count(False) for n in range(4)]
    assert min(counts) > 0
    assert max(counts) - min(counts) <= 2


def test_steps_are_whole(tokenizer, texts, tmp_path):
    assert len(run(tokenizer, texts, tmp_path, batch=7)) % 7 == 0


def test_same_seed_gives_the_same_blocks_and_another_seed_others(tokenizer, texts, tmp_path):
    one, again, other = (
        ids_of(run(tokenizer, texts, tmp_path / name, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == again
    assert one != other


def test_tokens_on_disk_are_not_written_twice(tokenizer, texts, tmp_path):
    first = ids_of(run(tokenizer, texts, tmp_path))
    stamp = (tmp_path / "0" / SECTIONS).stat().st_mtime_ns
    assert ids_of(run(tokenizer, (["другой текст"], ["other text"]), tmp_path)) == first
    assert (tmp_path / "0" / SECTIONS).stat().st_mtime_ns == stamp


@pytest.mark.parametrize("name", [TOKENS, SECTIONS])
@pytest.mark.parametrize("share", [0, 0.5])
def test_tokens_that_were_cut_short_on_disk_are_refused(tokenizer, texts, tmp_path, name, share):
    run(tokenizer, texts, tmp_path)
    file = tmp_path / "0" / name
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(
        LeptaError, match=rf"{tmp_path}/0: tokens that an interrupted run has left are damaged .*--force"
    ):
        run(tokenizer, texts, tmp_path)


def test_texts_are_repeated_as_often_as_the_budget_asks(tokenizer, tmp_path):
    blocks = run(tokenizer, (["Один.", "Два."], []), tmp_path, tokens=200, length=16, share=0.0)
    text = "".join(tokenizer.decode(block) for block in ids_of(blocks))
    assert blocks.sizes.sum() >= 200
    assert abs(text.count("Один.") - text.count("Два.")) <= 1
    assert text.count("Один.") > 5


def test_documents_apart_see_only_themselves(tokenizer, texts, tiny_model_folder, tmp_path):
    """A document in the middle of a block gives the logits that it gives alone, and the loss leaves its start out."""
    import torch
    from transformers import AutoModelForCausalLM

    from lepta.training.trainer import collate

    documents = ["Один день.", "Два дня и ещё один.", "Three days of rain.", "И ночь."]
    blocks = run(tokenizer, (documents, []), tmp_path, tokens=70, length=40, share=0.0, documents_apart=True)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder()).eval()
    batch = collate([blocks[n] for n in range(len(blocks))], pad_id=0)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    several = 0
    for row, positions in enumerate(batch["position_ids"].tolist()):
        size = int(blocks.sizes[row])
        starts = [n for n in range(size) if positions[n] == 0]
        several += len(starts) > 1
        for start, end in itertools.pairwise([*starts, size]):
            alone = batch["input_ids"][row, start:end][None]
            with torch.no_grad():
                torch.testing.assert_close(model(alone).logits[0], logits[row, start:end], rtol=1e-4, atol=1e-4)
            if start:
                assert batch["labels"][row, start] == -100
    assert several


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=30)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_padding_is_not_predicted(sizes):
    from lepta.training.trainer import collate

    batch = collate([{"input_ids": [5] * size, "labels": [5] * size} for size in sizes], pad_id=0)
    assert (batch["labels"] != -100).sum(dim=1).tolist() == sizes
    assert batch["input_ids"].shape == (len(sizes), max(sizes))


def test_a_small_share_of_a_large_text_is_never_nothing(tokenizer, tmp_path):
    """A draw of few out of many parts may keep none: then more are drawn."""
    russian, english = (["слово и дело. " * 200 + "\n"] * 300, ["word and deed. " * 200 + "\n"] * 300)
    for seed in range(6):
        blocks = run(tokenizer, (russian, english), tmp_path / str(seed), 10_000, 1024, 0.01, seed)
        assert set(blocks.text_of.tolist()) == {0, 1}


def test_a_draw_that_kept_nothing_is_made_again_by_a_run_that_goes_on(tokenizer, texts, tmp_path):
    write_tokens([], tokenizer, LENGTH, tmp_path / "0")
    write_tokens([], tokenizer, LENGTH, tmp_path / "1")
    assert len(run(tokenizer, texts, tmp_path))


def test_text_without_tokens_is_named(tokenizer, tmp_path):
    text = TrainingText(lambda: [" \n"], 1.0, "text in ru")
    with pytest.raises(LeptaError, match=r"text in ru: it holds no token; expected text for 500"):
        training_blocks([text], tokenizer, PretrainSettings(tokens=500), 1, tmp_path)


def test_a_tokenizer_without_an_end_of_text_token_is_named(smollm2, tmp_path):
    config = {name: value for name, value in smollm2.config.items() if name != "eos_token"}
    replace(smollm2, config=config).save(tmp_path)
    with pytest.raises(LeptaError, match=rf"{tmp_path}: the tokenizer has no eos_token"):
        write_tokens(["слово"], load_tokenizer(tmp_path), LENGTH, tmp_path)
