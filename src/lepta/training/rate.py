"""The learning rate where nobody gives one, from the size of the rows that train.

AdamW moves each number of a row by about the rate in a step, however large the rows are; so what is much for the rows
of one model is little for those of another.
"""

from typing import Any

import torch

from lepta.core.errors import LeptaError
from lepta.models.folder import Checkpoint
from lepta.training.settings import AUTO, PretrainSettings

SHARE, TOKENS = 0.0075, 512  # of the rows' RMS, at so many tokens a step (measured: docs/training.md)
MOST = 4.0  # times that, however many tokens a step has
SAMPLE = 4096  # rows that the RMS is computed on
BODY = 1e-4  # of the body: one of the paper's


def resolved_rates(settings: PretrainSettings, source: Checkpoint) -> tuple[list[float], dict[str, Any]]:
    """Learning rates as numbers, each once; and for the manifest, if one was `auto`, which that is and why."""
    facts: dict[str, Any] = {}
    rates = []
    for rate in settings.learning_rate:
        if rate == AUTO:
            rms = rows_rms(source)
            rate = rate_for(rms, settings.batch * settings.block)
            facts = {"auto_learning_rate": rate, "rows_rms": rms}
        rates.append(float(rate))
    return list(dict.fromkeys(rates)), facts


def rows_rms(source: Checkpoint) -> float:
    """Root mean square of the input embeddings, on rows in equal distances; those of nothing but zeros do not count."""
    index = torch.linspace(0, source.rows - 1, min(SAMPLE, source.rows)).long()
    squares = source.rows_of(source.input_name)[index].float().square().mean(dim=1)
    if not squares.any():
        raise LeptaError(
            f"{source.folder}: `learning_rate` auto goes by the size of the rows, which are all 0; give one"
        )
    return float(squares[squares > 0].mean().sqrt())


def rate_for(rms: float, tokens: int) -> float:
    """The rate for rows of a size and a number of tokens a step, in two digits.

    With more tokens the gradient's noise falls by the root of their number, and the rate may rise as much, up to a
    limit: the rows' own size says how far a step may go.
    """
    return float(f"{SHARE * rms * min((tokens / TOKENS) ** 0.5, MOST):.2g}")
