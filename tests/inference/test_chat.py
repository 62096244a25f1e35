"""A hybrid thinking model is asked without thinking if nothing else is said, wherever it is asked or tuned."""

import signal
from collections import Counter

import pytest

from lepta.core.errors import LeptaError
from lepta.darumeru.transformers_backend import TransformersBackend
from lepta.inference import chat
from lepta.inference.chat import chat_prompt, render_chat
from lepta.models.load import load_model, load_tokenizer
from lepta.training.conversations import conversation_example
from lepta.training.preference import _fits

HYBRID = (  # as Qwen3 has it
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
ASKED = [{"role": "user", "content": "Раз?"}]


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def loaded(tiny_model_folder, tiny_tokenizer):
    folder = tiny_model_folder(rows=4000, tied=True, tokenizer=tiny_tokenizer)
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = HYBRID
    return load_model(folder), tokenizer


def test_thinking_is_off_wherever_a_model_is_asked_or_tuned(loaded):
    model, tokenizer = loaded
    prompt = chat_prompt(tokenizer, ASKED)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert TransformersBackend(model, tokenizer, "tiny").render(ASKED) == prompt
    example = conversation_example(tokenizer, [*ASKED, {"role": "assistant", "content": "Два."}])
    assert tokenizer.decode(example["input_ids"]).startswith(f"{prompt}Два.")
    assert tokenizer.decode([label for label in example["labels"] if label >= 0]) == "Два.<|im_end|>"


def test_a_refusal_of_the_template_is_one_line(loaded):
    refusing = "{{ raise_exception('no system here') }}"
    with pytest.raises(LeptaError, match=r"chat template: refuses a conversation \(no system here\)$"):
        render_chat(loaded[1], ASKED, chat_template=refusing)


@pytest.mark.parametrize(("template", "content"), [(r"{{ '\ud800' }}", "Раз?"), (HYBRID, "\ud800")])
def test_half_of_a_utf_16_pair_is_refused(loaded, template, content):
    with pytest.raises(LeptaError, match=r"chat template: refuses a conversation \(.*surrogates not allowed\)$"):
        render_chat(loaded[1], [{"role": "user", "content": content}], chat_template=template)


DOUBLING = "{% set n = namespace(x='x' * 99999999) %}{% for i in range(9) %}{% set n.x = n.x ~ n.x %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "says"),
    [(DOUBLING, "MemoryError"), ("{% set x = 10 ** 10 ** 9 %}", r"operator \*\*"), (ENDLESS, "0.5 s")],
)
def test_a_template_takes_neither_all_memory_nor_all_time(tiny_tokenizer, tmp_path, monkeypatch, template, says):
    monkeypatch.setattr(chat, "SECONDS", 0.5 if template == ENDLESS else 60)
    tiny_tokenizer.save(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.chat_template = template
    with pytest.raises(LeptaError, match=f"chat template: refuses a conversation .*{says}"):
        render_chat(tokenizer, ASKED)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    counts = Counter()
    pair = {"prompt": ASKED, "chosen": [{"role": "assistant", "content": "a"}]}
    assert not _fits(pair, tokenizer, 100, counts) and counts["refused"] == 1
