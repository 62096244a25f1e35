"""Which rows of a run are kept: those with the fewest bits per byte of passages put aside."""

import math

import torch

from lepta.distillation.head import HeadStates, collect_states, losses_of_original
from lepta.distillation.student import Distiller
from lepta.vocabulary.alignment import Alignment

BATCH = 16  # passages that are read at once


class BestRows:
    """Bits per byte of passages put aside after each step, and the rows with the fewest."""

    def __init__(self, distiller: Distiller, passages: list[Alignment]) -> None:
        self._distiller, self._passages = distiller, passages
        self._states: HeadStates | None = None
        self._rows: list[torch.Tensor] = []
        self._least, self._first = math.inf, ("", math.inf, self._rows)
        self.bits: dict[str, float] = {}  # by step
        self.reached = math.inf  # the fewest after the first step, of rows that the result can have
        self.kept = ""  # the step whose rows are best; the last one where no passages are put aside

    def measure(self, step: str, same_states: bool = False) -> None:
        """Measure the rows as they are now, and keep a copy of them if they are the best so far.

        `same_states`: since the last time only rows of the head have changed, so the passages are not read again.
        """
        if not self._passages:
            self.kept, self._rows = step, self._now()
            return
        if self._states is None or not same_states:
            self._states = held_out_states(self._distiller, self._passages, step)
        bits = bits_per_byte(self._distiller, self._passages, self._states)
        if bits < self._least:
            self.kept, self._least, self._rows = step, bits, self._now()
        if self.bits:
            self.reached = min(self.reached, bits)
        else:
            self._first = (step, bits, self._rows)
        self.bits[step] = bits

    def start_over(self) -> None:
        """Leave all rows but those of the first step out of the choice."""
        self.kept, self._least, self._rows = self._first
        self.reached = math.inf

    def restore(self) -> None:
        """Put the best rows back."""
        with torch.no_grad():
            for parameter, rows in zip(self._parameters(), self._rows, strict=True):
                parameter.copy_(rows)

    def _parameters(self) -> list[torch.Tensor]:
        distiller = self._distiller
        return [distiller.embedding.rows, distiller.head.rows, *distiller.low_rank.values()]

    def _now(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self._parameters()]


def held_out_states(distiller: Distiller, passages: list[Alignment], step: str) -> HeadStates:
    """Read passages; `step` stands at the bar."""
    return collect_states(distiller, passages, BATCH, f"measuring held-out passages ({step}), batches")


def bits_per_byte(distiller: Distiller, passages: list[Alignment], states: HeadStates) -> float:
    """Bits per byte of passages, whose last hidden states are given, with the rows of the head as they are now."""
    head = distiller.head
    with torch.no_grad():
        nats = float(states.cross_entropy(states.logits(head.rows, distiller.rule, head.bias)).sum())
    return nats / math.log(2) / sum(passage.size for passage in passages)


def bits_of_original(distiller: Distiller, passages: list[Alignment]) -> float:
    """Bits per byte of passages by the original, in its own tokens."""
    nats = losses_of_original(distiller, passages, BATCH, "measuring held-out passages (original), batches")
    return nats / math.log(2) / sum(passage.size for passage in passages)
