"""What the model writes: greedy answers and continuations, and how much of them is in new tokens."""

import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch

from lepta.core.progress import progress

BATCH = 16


@dataclass(frozen=True)
class Generated:
    """Greedy texts for a list of prompts.

    Attributes
    ----------
    texts : list of str
        Without special tokens.
    ids : list of list of int
        Generated ids of each text, cut at the end of the answer.
    seconds : float
        Time for all of them.
    """

    texts: list[str]
    ids: list[list[int]]
    seconds: float

    @property
    def characters_per_second(self) -> float:
        """Characters written per second, reading the prompts included."""
        return sum(map(len, self.texts)) / self.seconds

    def share_of(self, wanted: Set[int] | None) -> float | None:
        """Share of the generated tokens that are among the wanted ids; None if there is no such set."""
        if wanted is None:
            return None
        ids = [token for text in self.ids for token in text]
        return sum(token in wanted for token in ids) / max(len(ids), 1)


def chat_prompt(tokenizer: Any, messages: Sequence[dict[str, str]]) -> str:
    """Write a conversation as the model's chat template does, up to where its answer starts."""
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)


def greedy(max_tokens: int, pad: int, ends: Sequence[int], **otherwise: Any) -> Any:
    """Settings for always writing the most probable next token.

    What is not said here transformers takes from the model's files, which may draw at random or punish repetition.

    Parameters
    ----------
    max_tokens : int
        Most new tokens.
    pad : int
        Token for padding.
    ends : sequence of int
        Tokens that end a text.
    **otherwise
        Settings to change, for drawing at random.

    Returns
    -------
    transformers.GenerationConfig
    """
    from transformers import GenerationConfig

    settings = {
        "max_new_tokens": max_tokens,
        "min_new_tokens": 0,  # stands for min_length too
        "do_sample": False,
        "num_beams": 1,
        "num_return_sequences": 1,
        "repetition_penalty": 1.0,
        "encoder_repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 50,
        "pad_token_id": pad,
        "eos_token_id": list(ends) or None,
    }
    return GenerationConfig(**settings | otherwise)


@torch.no_grad()
def generate(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_tokens: int, description: str, batch: int = BATCH
) -> Generated:
    """Continue prompts greedily, in batches padded on the left.

    Parameters
    ----------
    model, tokenizer : transformers causal LM and its tokenizer
    prompts : sequence of str
        Texts as the model is to see them (see `chat_prompt`).
    max_tokens : int
        Most new tokens for each prompt.
    description : str
        Of the progress bar.
    batch : int
        Prompts at once.
    """
    stop = model.generation_config.eos_token_id
    stops = {end for end in (stop if isinstance(stop, list) else [stop]) if end is not None}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    settings = greedy(max_tokens, pad, sorted(stops))
    ids: list[list[int]] = []
    started = time.perf_counter()
    with progress(description, len(prompts)) as bar:
        for start in range(0, len(prompts), batch):
            asked = tokenizer(list(prompts[start : start + batch]), add_special_tokens=False)["input_ids"]
            width = max(map(len, asked))
            inputs = torch.tensor([[pad] * (width - len(row)) + row for row in asked], device=model.device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in asked], device=model.device)
            output = model.generate(inputs, attention_mask=mask, generation_config=settings)
            for row in output[:, width:].tolist():
                end = next((n for n, token in enumerate(row) if token in stops), len(row))
                ids.append(row[:end])
            bar.set(min(start + batch, len(prompts)))
    seconds = time.perf_counter() - started
    return Generated(tokenizer.batch_decode(ids, skip_special_tokens=True), ids, seconds)


def behaviour_kept(answers: Sequence[str], references: Sequence[str], mark: str) -> list[bool]:
    """Tell which answers open as their reference does, up to and including a mark such as ":".

    This counts a style that a variant was tuned to: a fixed opening, the right one for each prompt.
    """
    openings = [reference[: reference.index(mark) + len(mark)] for reference in references]
    return [answer.lstrip().startswith(opening) for answer, opening in zip(answers, openings, strict=True)]
