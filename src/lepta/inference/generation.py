"""Generation: the one place that runs `generate` of transformers, and greedy texts with the share of new tokens."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lepta.core.progress import progress
from lepta.core.settings import as_list
from lepta.inference.scoring import token_ids

BATCH = 16  # prompts


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after one prompt, the end token left out; `ended` tells whether there was one."""

    ids: list[int]
    ended: bool


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end a text, by the model's generation config (a number, a list or nothing) and by the tokenizer."""
    ends = as_list(model.generation_config.eos_token_id)
    return frozenset({*ends, tokenizer.eos_token_id} - {None})


@torch.no_grad()  # not inference_mode: what a model caches in its forward pass must still serve a training step
def generate_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    samples: int = 1,
    temperature: float = 0.0,
    begun: tuple[int, Any] = (0, None),
    stop: Callable[..., torch.Tensor] | None = None,
) -> list[Continuation]:
    """Continue prompts, given as ids, in one batch: greedily, or with so many samples of each at a temperature.

    The samples of a prompt follow each other. `begun`: how many ids all prompts start with, and a cache of their keys
    and values; padding stands behind these. `stop` is a stopping criterion of transformers.
    """
    shared, cache = begun
    width = max(map(len, prompts))
    padding = tokenizer.pad_token_id or 0  # attention never sees it, so any id will do
    rows, mask = [], []
    for ids in prompts:
        gap = width - len(ids)
        rows.append([*ids[:shared], *[padding] * gap, *ids[shared:]])
        mask.append([1] * shared + [0] * gap + [1] * (len(ids) - shared))
    ends = end_tokens(model, tokenizer)
    with _own_settings_off(model):
        output = model.generate(
            torch.tensor(rows, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=_generation_config(max_tokens, padding, sorted(ends), samples, temperature),
            stopping_criteria=stop and [stop],
            **({"past_key_values": cache} if shared else {}),
        )
    continuations = []
    for row in output[:, width:].tolist():
        length = next((n for n, token in enumerate(row) if token in ends), None)
        continuations.append(Continuation(row[:length], ended=length is not None))
    return continuations


@contextmanager
def _own_settings_off(model: Any) -> Iterator[None]:
    """Keep what a model's files say of generation (sampling, penalties, biases, `stop_strings`) out of the block.

    transformers takes from them whatever is not said to `generate`.
    """
    from transformers import GenerationConfig

    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _generation_config(max_tokens: int, padding: int, ends: Sequence[int], samples: int, temperature: float) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=max_tokens,
        do_sample=temperature > 0,
        temperature=temperature or 1.0,
        top_k=0 if temperature else 50,  # sampling is from all tokens; 50, the default, keeps greedy search quiet
        num_return_sequences=samples,
        pad_token_id=padding,
        eos_token_id=list(ends) or None,
    )


@dataclass(frozen=True)
class Generated:
    """Greedy texts for a list of prompts, without special tokens; `ids` end before the end token."""

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
        ids = list(itertools.chain.from_iterable(self.ids))
        return sum(map(wanted.__contains__, ids)) / max(len(ids), 1)

    def over_canonical(self, tokenizer: Any) -> float:
        """Tokens written for each token that the tokenizer makes of the same texts (their canonical tokenisation).

        Above 1, the model spells words from shorter tokens than its vocabulary has for them.
        """
        canonical = tokenizer(self.texts, add_special_tokens=False)["input_ids"]
        return sum(map(len, self.ids)) / max(sum(map(len, canonical)), 1)


def start_tokens(tokenizer: Any) -> list[int]:
    """The token that a tokenizer puts before a text, if any: models that know one hardly read without it."""
    return [i for i in tokenizer("")["input_ids"][:1] if i == tokenizer.bos_token_id]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_tokens: int,
    description: str,
    batch: int = BATCH,
    start: Sequence[int] = (),
) -> Generated:
    """Continue prompts, written as the model is to see them, greedily; `description` is the progress bar's.

    `start` stands before each: `start_tokens` of plain text; a chat template has written them.
    """
    ids: list[list[int]] = []
    started = time.perf_counter()
    with progress(description, len(prompts)) as bar:
        for first in range(0, len(prompts), batch):
            opened = token_ids(tokenizer, prompts[first : first + batch], start)
            ids += [written.ids for written in generate_batch(model, tokenizer, opened, max_tokens)]
            bar.set(len(ids))
    seconds = time.perf_counter() - started
    return Generated(tokenizer.batch_decode(ids, skip_special_tokens=True), ids, seconds)


def behaviour_kept(answers: Sequence[str], references: Sequence[str], mark: str) -> list[bool]:
    """Tell which answers open as their reference does, up to and including a mark such as ":".

    This counts a style that a variant was tuned to: a fixed opening, the right one for each prompt.
    """
    openings = [reference[: reference.index(mark) + len(mark)] for reference in references]
    return [answer.lstrip().startswith(opening) for answer, opening in zip(answers, openings, strict=True)]
