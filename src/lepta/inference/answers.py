"""Greedy answers to conversations, their thinking apart, for what is shown and counted in reports."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lepta.inference.chat import Message, begun_answer
from lepta.inference.generation import BATCH, Generated, generate
from lepta.inference.thinking import split_thinking, think_here


def answers(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    max_tokens: int,
    description: str,
    thinking: int = 0,
) -> Generated:
    """Answer conversations, after at most `thinking` tokens of thinking; `description` is the progress bar's."""
    prompts = [begun_answer(tokenizer, messages, thinking > 0) for messages in conversations]
    if thinking:
        prompts = think_here(model, tokenizer, prompts, thinking, BATCH).prompts
    written = generate(model, tokenizer, prompts, max_tokens, description)
    return replace(written, texts=[split_thinking(text)[1] for text in written.texts])
