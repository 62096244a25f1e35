"""Characters per second, reading and writing: what a better vocabulary buys."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def _synchronise(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


@torch.inference_mode()
def read(model: Any, ids: torch.Tensor) -> None:
    """Read a prompt: one forward pass that fills the cache and gives the logits of the next token."""
    model(ids, use_cache=True, logits_to_keep=1)


@torch.inference_mode()
def write(model: Any, ids: torch.Tensor) -> None:
    """Write a given text token by token with a cache, as generation does, but with the tokens forced.

    Forced, because two models that generate freely write different texts.
    """
    cache = None
    for position in range(ids.shape[1]):
        cache = model(ids[:, position : position + 1], past_key_values=cache, use_cache=True).past_key_values


def characters_per_second(
    models: Mapping[str, tuple[Any, Any]], text: str, work: Callable[[Any, torch.Tensor], None], repeats: int
) -> dict[str, float]:
    """Time the same text under several models (name -> model, tokenizer); `work` is `read` or `write`.

    Models take turns, so that a slow moment of the machine hits all alike. The first round warms up; of the `repeats`
    that follow, the median counts.
    """
    ids = {
        name: torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=model.device)
        for name, (model, tokenizer) in models.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(repeats + 1):
        for name, (model, _) in models.items():
            _synchronise(model)
            started = time.perf_counter()
            work(model, ids[name] if turn else ids[name][:, :16])
            _synchronise(model)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: len(text) / statistics.median(times) for name, times in seconds.items()}
