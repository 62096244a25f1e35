"""Hidden states of a model, and how far those of two models are apart."""

from typing import Any

import torch

from lepta.models.language_model import language_model

OUTLIER = 10.0  # times the median of squared lengths
LEAST_VARIANCE = 1e-9  # of the mean square: a dimension that is constant in a batch must not divide by 0
FEWEST = 8  # positions whose variance means something; a batch of passages may have no learned token at all


def last_states(model: Any, *args: Any, **inputs: Any) -> torch.Tensor:
    """Last hidden states, shape (B, N, d)."""
    states: torch.Tensor = language_model(model)(*args, **{"use_cache": False, **inputs}).last_hidden_state
    return states


def hidden_distance(target: torch.Tensor, found: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of hidden states in units of the variance of each dimension.

    Two of the 640 dimensions of Gemma 3 270M carry 60 % of the plain squared distance. Measured so, 100,000 tokens
    brought last hidden states 11 % nearer to the teacher's; in units of variance 40,000 tokens brought them 16 %.
    Positions whose state is ten medians long (attention sinks) say nothing about rows; they do not count. If fewer than
    `FEWEST` are left, the distance is 0. States are (B, E, d), weights (B, E).
    """
    lengths = target.square().sum(-1)
    counted = weights > 0
    counted &= lengths < OUTLIER * lengths[counted].median()
    chosen = target[counted]
    if len(chosen) < FEWEST:
        return (found * 0).sum()
    variance = chosen.var(0, correction=0) + LEAST_VARIANCE * chosen.square().mean()
    distances = ((found - target).square() / variance).mean(-1)
    return (distances * weights * counted).sum() / (weights * counted).sum().clamp(min=1.0)
