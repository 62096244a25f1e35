"""Thinking before an answer: the block that holds it, its budget, and answers without it.

A prompt is written with an empty block at its end. Where a model is to think, it fills the block in first; when its
budget is used up, the block is ended all the same. So whatever comes after it, a text or the probability of one, is the
answer alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from lepta.core.errors import LeptaError
from lepta.inference.generation import generate_batch

SWITCHES = ("enable_thinking", "thinking")  # names in chat templates: Qwen, GLM, SmolLM, Gemma; DeepSeek, Granite
TAIL = 16  # last tokens in which the end of a block is looked for


@dataclass(frozen=True)
class Block:
    """How a family of models writes its thinking: before it, nothing at all in it, behind it, before the answer.

    `always`: the chat template cannot turn it off.
    """

    start: str
    nothing: str
    end: str
    after: str
    always: bool = False

    @property
    def empty(self) -> str:
        """The block of a model that does not think."""
        return f"{self.start}{self.nothing}{self.end}"

    def put_behind(self, prompt: str) -> str:
        """A prompt with an empty block behind it; the template may have begun the block."""
        begun = prompt.rstrip()
        if begun.endswith(self.start.rstrip()):
            prompt = begun.removesuffix(self.start.rstrip())
        return f"{prompt}{self.empty}{self.after}"


BLOCKS = (
    Block("<think>", "\n\n", "</think>", "\n\n"),  # Qwen, DeepSeek, GLM, SmolLM, and most others
    Block("[THINK]", "", "[/THINK]", ""),  # Mistral
    Block("<|channel>thought\n", "", "<channel|>", ""),  # Gemma 4
    Block("<|channel|>analysis<|message|>", "", "<|end|>", "<|start|>assistant<|channel|>final<|message|>", True),
)


class Thoughts(NamedTuple):
    """Prompts whose blocks are filled in, and what each was filled with; "" if that had to be ended."""

    prompts: list[str]
    thinking: list[str]


def switches(on: bool) -> dict[str, bool]:
    """What chat templates are told. Templates of models that do not think take no notice."""
    return dict.fromkeys(SWITCHES, on)


def block_of(template: Any) -> Block | None:
    """The block that a chat template (or one of several by name) writes; None if its model does not think."""
    text = str(template or "")
    return next((block for block in BLOCKS if block.start.rstrip() in text and block.end in text), None)


def needed_block(template: Any) -> Block:
    """The block of a model that is to think; LeptaError if it cannot."""
    block = block_of(template)
    if block is None:
        known = ", ".join(block.start.rstrip() for block in BLOCKS)
        raise LeptaError(f"thinking: the chat template has no block for it ({known}); leave `thinking` off")
    return block


def split_thinking(text: str) -> tuple[str, str]:
    """Thinking and answer of a text that may hold both; of thinking that did not end, no answer."""
    for block in BLOCKS:
        if block.always:
            continue  # servers take it out themselves, and its end also ends turns of other models
        thinking, ended, answer = text.rpartition(block.end)
        if not ended:
            thinking, answer = text, ""
        begun, start = thinking.lstrip(), block.start.rstrip()
        if ended or begun.startswith(start):
            return begun.removeprefix(start).strip(), answer.strip()
    return "", text


def filled(prompt: str, block: Block, thinking: str) -> str:
    """A prompt whose empty block holds this thinking."""
    before, _, after = prompt.rpartition(block.empty)
    return f"{before}{block.start}{thinking}{block.end}{after}"


def think(prompts: Sequence[str], block: Block, write: Callable[[list[str]], list[str]]) -> Thoughts:
    """Fill in the block of each prompt; `write` goes on with texts, special tokens shown, at most for the budget."""
    begun = [prompt.rpartition(block.empty)[0] + block.start for prompt in prompts]
    thoughts = Thoughts([], [])
    for prompt, text in zip(prompts, write(begun), strict=True):
        thinking, ended, _ = text.partition(block.end)
        thoughts.prompts.append(filled(prompt, block, thinking.rstrip("\ufffd")))
        thoughts.thinking.append(thinking if ended else "")
    return thoughts


def think_here(
    model: Any, tokenizer: Any, prompts: Sequence[str], budget: int, batch: int, temperature: float = 0.0
) -> Thoughts:
    """Have a model of transformers think, for at most `budget` tokens about each prompt, `batch` prompts at once."""
    block = needed_block(tokenizer.chat_template)

    def ended(input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
        tails = tokenizer.batch_decode(input_ids[:, -TAIL:])
        # The prompt may hold earlier blocks, but ends with the start of this one.
        done = [block.end in tail.rpartition(block.start.rstrip())[2] for tail in tails]
        return torch.tensor(done, device=input_ids.device)

    def write(begun: list[str]) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(begun), batch):
            ids = tokenizer(begun[start : start + batch], add_special_tokens=False)["input_ids"]
            written = generate_batch(model, tokenizer, ids, budget, temperature=temperature, stop=ended)
            texts += tokenizer.batch_decode([one.ids for one in written])
        return texts

    return think(prompts, block, write)
