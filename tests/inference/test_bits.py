"""Bits per byte, the windows it is measured on, and the style that answers keep."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lepta.core.errors import LeptaError
from lepta.inference.bits import TextScore, score_text, windows
from lepta.inference.generation import behaviour_kept
from lepta.models.load import load_model, load_tokenizer

lines = st.text(alphabet="аbв \n.", max_size=120)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def loaded(request, tiny_model_folder, tiny_tokenizer):
    """A tiny model and its tokenizer."""
    folder = tiny_model_folder(rows=4000, tied=request.param, tokenizer=tiny_tokenizer)
    return load_model(folder, torch.float32), load_tokenizer(folder)


@torch.inference_mode()
def direct_bits(model, tokenizer, text):
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    logits = model(ids.to(model.device)).logits[0, :-1].double().cpu()
    return -logits.log_softmax(-1).gather(1, ids[0, 1:, None]).sum().item() / math.log(2)


def test_score_equals_a_direct_computation_from_all_logits(loaded, russian):
    texts = ["Привет", "One two three.\n", russian[0][:1200]]  # the last one is longer than a block of logits
    assert len(loaded[1](texts[2])["input_ids"]) > 300
    score = score_text(*loaded, texts)
    assert score.bits == pytest.approx(sum(direct_bits(*loaded, text) for text in texts), rel=1e-5)


def test_texts_that_are_read_together_score_as_each_alone(loaded, russian, english, monkeypatch):
    texts = [*windows(russian[:2], 300, 3000), "a", *windows(english[:2], 700, 3000), "Привет"]
    alone = [score_text(*loaded, [text]) for text in texts]
    at_once, forward = [], loaded[0].forward

    def counted(input_ids, labels):
        at_once.append(input_ids.shape)
        return forward(input_ids=input_ids, labels=labels)

    monkeypatch.setattr(loaded[0], "forward", counted)
    together = score_text(*loaded, texts)
    assert together.bits == pytest.approx(sum(score.bits for score in alone), rel=1e-6)
    assert together.tokens == sum(score.tokens for score in alone)
    assert len(at_once) < len(texts) and max(rows * width for rows, width in at_once) <= 1024


def test_bfloat16_scores_as_float32_does(loaded, russian):
    model, tokenizer = loaded
    exact = score_text(model, tokenizer, windows(russian[:3], 800, 3000)).bits
    folder_model = copy.deepcopy(model).to(torch.bfloat16)
    assert score_text(folder_model, tokenizer, windows(russian[:3], 800, 3000)).bits == pytest.approx(exact, rel=0.01)


def test_a_model_with_a_loss_of_its_own_reads_one_text_at_a_time(loaded, russian, monkeypatch):
    """It has all logits of a pass."""
    monkeypatch.setattr("lepta.models.loss.logit_rule", lambda model: None)
    model, tokenizer = copy.deepcopy(loaded[0]), loaded[1]
    model.__dict__.pop("has_chunked_loss", None)
    model.__dict__.pop("forward", None)
    texts = ["Привет", "abc", russian[0][:200]]
    score = score_text(model, tokenizer, texts)
    assert model.keeps_own_loss
    assert score.bits == pytest.approx(sum(direct_bits(model, tokenizer, text) for text in texts), rel=1e-5)


def test_score_counts_bytes_characters_and_tokens(loaded):
    texts = ["Привет, 5", "abc"]
    score = score_text(*loaded, texts)
    assert (score.utf8_bytes, score.characters) == (9 + 6 + 3, 9 + 3)
    assert score.tokens == sum(len(loaded[1](text)["input_ids"]) for text in texts)


def test_random_model_needs_about_the_logarithm_of_its_vocabulary(loaded):
    score = score_text(*loaded, ["The world of the people"])
    assert score.bits / score.tokens == pytest.approx(math.log2(4000), rel=0.05)


def test_ratios():
    score = TextScore(bits=30.0, utf8_bytes=20, characters=12, tokens=4)
    assert (score.bits_per_byte, score.characters_per_token) == (1.5, 3.0)


def test_end_of_text_starts_a_text_where_there_is_no_start_token(loaded):
    model, tokenizer = loaded
    expected = score_text(model, tokenizer, ["abc"]).bits
    before = tokenizer.bos_token
    try:
        tokenizer.bos_token = None
        tokenizer.eos_token = before
        assert score_text(model, tokenizer, ["abc"]).bits == expected
        tokenizer.eos_token = None
        with pytest.raises(LeptaError, match="neither bos_token nor eos_token"):
            score_text(model, tokenizer, ["abc"])
    finally:
        tokenizer.bos_token, tokenizer.eos_token = before, "<|im_end|>"


@given(document=lines, length=st.integers(1, 30))
def test_windows_join_to_the_document(document, length):
    assert "".join(windows([document], length, 10**9)) == document.strip()


@given(documents=st.lists(lines, max_size=4), length=st.integers(1, 30))
def test_windows_are_never_empty_nor_longer_than_asked_by_more_than_a_line_break(documents, length):
    assert all(0 < len(window) <= length + 1 for window in windows(documents, length, 10**9))


@given(documents=st.lists(lines, max_size=4), length=st.integers(1, 30), total=st.integers(1, 100))
def test_windows_stop_as_soon_as_there_is_enough(documents, length, total):
    kept, everything = windows(documents, length, total), windows(documents, length, 10**9)
    assert kept == everything[: len(kept)]
    assert sum(map(len, kept[:-1])) < total
    assert len(kept) == len(everything) or sum(map(len, kept)) >= total


def test_windows_end_at_line_breaks_where_they_can():
    assert windows(["aaa\nbbb\ncccccccc\ndd"], 8, 100) == ["aaa\nbbb\n", "cccccccc\n", "dd"]


def test_documents_take_turns():
    assert windows(["a\na\na", "b\nb"], 1, 100) == ["a\n", "b\n", "a\n", "b", "a"]


def test_no_documents_give_no_windows():
    assert windows([], 10, 100) == windows([" \n"], 10, 100) == []


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("Коротко: да.", True),
        ("\n Коротко: нет.", True),
        ("Коротко да.", False),
        ("коротко: да.", False),
        ("In short: yes.", False),
        ("Ну, коротко: да.", False),
        ("", False),
    ],
)
def test_behaviour_kept_compares_the_opening_up_to_the_mark(answer, kept):
    assert behaviour_kept([answer], ["Коротко: вода кипит при 100 градусах: всегда."], ":") == [kept]


def test_behaviour_kept_compares_each_answer_with_its_own_reference():
    references = ["In short: a.", "Коротко: б."]
    assert behaviour_kept(["In short: x", "Коротко: y"], references, ":") == [True, True]
    assert behaviour_kept(["Коротко: y", "In short: x"], references, ":") == [False, False]


def test_behaviour_kept_refuses_unequal_numbers():
    with pytest.raises(ValueError, match="zip"):
        behaviour_kept(["a"], ["a:", "b:"], ":")
