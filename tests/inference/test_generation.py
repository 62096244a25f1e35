"""Greedy texts, whatever a model's files say of generation."""

import copy

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from lepta.inference.generation import Generated, end_tokens, generate, start_tokens
from lepta.models.load import load_model, load_tokenizer

PROMPTS = ["Раз, два, три", "Once upon a time there was a time"]
DRAWING = {"do_sample": True, "temperature": 5.0, "top_k": 0, "top_p": 0.9, "num_beams": 3, "num_return_sequences": 2}
STOPPING = {"min_length": 30, "stop_strings": ["a", "е"]}
BENDING = {"sequence_bias": [[[7], 99.0]], "suppress_tokens": [*range(5, 40)], "forced_bos_token_id": 9}
PUNISHING = {"repetition_penalty": 9.0, "encoder_repetition_penalty": 9.0, "no_repeat_ngram_size": 1}


@pytest.fixture(scope="module")
def loaded(tiny_model_folder, tiny_tokenizer):
    folder = tiny_model_folder(rows=4000, tied=True, tokenizer=tiny_tokenizer)
    return load_model(folder, torch.float32), load_tokenizer(folder)


@torch.inference_mode()
def most_probable(model, tokenizer, prompt, number):
    """Token after token, without `generate` of transformers."""
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.device)
    width = ids.shape[1]
    for _ in range(number):
        ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return ids[0, width:].tolist()


@pytest.mark.parametrize("files", [{}, DRAWING, PUNISHING, BENDING, STOPPING])
def test_the_most_probable_token_is_always_next(loaded, monkeypatch, files):
    model, tokenizer = loaded
    expected = [most_probable(model, tokenizer, prompt, 12) for prompt in PROMPTS]
    monkeypatch.setattr(model.generation_config, "eos_token_id", expected[0][9])  # an end that is come to
    for name, value in files.items():
        monkeypatch.setattr(model.generation_config, name, value)
    ends = [next((n for n, token in enumerate(row) if token == expected[0][9]), 12) for row in expected]
    found = generate(model, tokenizer, PROMPTS, 12, "texts")
    assert found.ids == [row[:end] for row, end in zip(expected, ends, strict=True)]


@pytest.mark.parametrize(("configured", "ends"), [(None, set()), (7, {7}), ([7, 9], {7, 9})])
def test_ends_are_those_of_model_and_tokenizer(loaded, monkeypatch, configured, ends):
    model, tokenizer = loaded
    monkeypatch.setattr(model.generation_config, "eos_token_id", configured)
    assert end_tokens(model, tokenizer) == {*ends, tokenizer.eos_token_id}


def test_plain_text_is_continued_after_the_tokenizers_start_token(loaded, monkeypatch):
    model, tokenizer = loaded
    assert start_tokens(tokenizer) == []
    starting = copy.deepcopy(tokenizer)
    template = {"single": "<|im_start|> $A", "special_tokens": [("<|im_start|>", tokenizer.bos_token_id)]}
    starting.backend_tokenizer.post_processor = TemplateProcessing(**template)
    start = start_tokens(starting)
    assert start == [tokenizer.bos_token_id]
    seen = []

    def spy(ids, **rest):
        seen.extend(ids.tolist())
        return ids

    monkeypatch.setattr(model, "generate", spy)
    generate(model, starting, PROMPTS, 12, "texts", start=start)
    plain = tokenizer(PROMPTS, add_special_tokens=False)["input_ids"]
    assert [row[-len(ids) - 1 :] for row, ids in zip(seen, plain, strict=True)] == [[*start, *ids] for ids in plain]


def test_a_text_spelt_in_letters_is_longer_than_its_canonical_tokenisation(loaded):
    tokenizer = loaded[1]
    canonical = tokenizer(PROMPTS, add_special_tokens=False)["input_ids"]
    assert Generated(PROMPTS, canonical, 1.0).over_canonical(tokenizer) == 1.0
    letters = [list("".join(tokenizer.convert_ids_to_tokens(ids))) for ids in canonical]
    spelt = [tokenizer.convert_tokens_to_ids(row) for row in letters]
    assert tokenizer.batch_decode(spelt) == PROMPTS
    expected = sum(map(len, letters)) / sum(map(len, canonical))
    assert Generated(PROMPTS, spelt, 1.0).over_canonical(tokenizer) == expected > 1.5
