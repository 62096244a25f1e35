"""The head's rows of new tokens, from last hidden states that are computed once.

The body is frozen and input rows are not touched, so last hidden states never change while the head learns: one pass
over the text, then cross-entropy in the rows that learn alone, far cheaper than training through the model. Logits of
frozen rows enter as one number for each position.

Before that, counting puts each row where it is right on average. A direction u whose product with every last hidden
state is 1 adds a constant to a logit in every context. Constants are found by iterative scaling, so that each token
gets as much probability over the text as it has occurrences there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lepta.core.progress import progress, track
from lepta.distillation.alignment import Alignment
from lepta.distillation.student import Distiller, LearnedHead
from lepta.models.loss import LogitRule

RIDGE = 1e-3  # of the mean diagonal
ROUNDS = 4  # of iterative scaling; a fifth changes held-out text by less than 0.001 bits per byte
PRIOR = 0.3  # occurrences that every token is given beside those it has
STATES = 20_000  # that constants are found from
ROWS_AT_ONCE = 2048  # positions of a step, and of a block
CLIP = 1.0
# AdamW divides by the root of its second moment, so rows of tokens that a batch does not hold would move as far as the
# others, by gradients of nearly nothing. With this epsilon (of gradients whose norm is at most 1) they nearly stay.
EPSILON = 1e-3


@dataclass(frozen=True)
class HeadStates:
    """What the rows that learn are fitted to, one entry for each predicted token.

    Attributes
    ----------
    states : tensor, shape (n, d)
        Last hidden states in the precision of the body.
    rest : float32 tensor, shape (n,)
        Log of the sum of exponentials of the logits of frozen rows.
    slot : int64 tensor, shape (n,)
        Place of the next token among the rows that learn; -1 if its row is frozen.
    logit : float32 tensor, shape (n,)
        Logit of the next token where its row is frozen, else 0.
    """

    states: torch.Tensor
    rest: torch.Tensor
    slot: torch.Tensor
    logit: torch.Tensor

    def __len__(self) -> int:
        return len(self.slot)

    def at(self, rows: torch.Tensor | slice) -> "HeadStates":
        """Some of them."""
        return HeadStates(self.states[rows], self.rest[rows], self.slot[rows], self.logit[rows])


@torch.no_grad()
def collect_states(distiller: Distiller, passages: Sequence[Alignment], batch: int) -> HeadStates:
    """Run the student over passages once.

    Parameters
    ----------
    distiller : Distiller
    passages : sequence of Alignment
    batch : int
        Passages at a time.
    """
    device = distiller.embedding.table.device
    order = sorted(range(len(passages)), key=lambda number: len(passages[number].new_ids))
    parts: list[HeadStates] = []
    for start in track(range(0, len(order), batch), "last hidden states", -(-len(order) // batch)):
        ids = [torch.from_numpy(passages[number].new_ids) for number in order[start : start + batch]]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(device)
        last = distiller.last_states(padded)
        for row, one in zip(last, ids, strict=True):
            parts.append(_predicting(distiller.head, row[: len(one) - 1], one[1:].to(device), distiller.rule))
    return HeadStates(
        torch.cat([part.states for part in parts]),
        torch.cat([part.rest for part in parts]),
        torch.cat([part.slot for part in parts]),
        torch.cat([part.logit for part in parts]),
    )


def _predicting(head: LearnedHead, states: torch.Tensor, labels: torch.Tensor, rule: LogitRule) -> HeadStates:
    """States and the tokens that follow them, with the logits of frozen rows."""
    frozen = len(head.frozen)
    logits = states @ head.frozen.T
    if head.bias is not None:
        logits = logits + head.bias[:frozen]
    logits = rule.apply(logits.float())
    places = head.place[labels]
    of_label = logits.gather(1, places.clamp(max=frozen - 1)[:, None])[:, 0]
    slots = torch.where(places < frozen, -1, places - frozen)
    return HeadStates(states, logits.logsumexp(1), slots, torch.where(places < frozen, of_label, 0.0))


def constant_direction(states: torch.Tensor) -> torch.Tensor:
    """The vector u for which `states @ u` is nearest to 1, by ridge regression.

    Parameters
    ----------
    states : tensor, shape (n, d)
        Last hidden states.

    Returns
    -------
    tensor, shape (d,), float32
    """
    states = states.double()
    gram = states.T @ states
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram, states.sum(0)).float()


@torch.no_grad()
def calibrate(rows: torch.Tensor, found: HeadStates, rule: LogitRule, bias: torch.Tensor | None) -> torch.Tensor:
    """Add a constant to each row's logits, so that the row gets as much probability as its token has occurrences.

    Parameters
    ----------
    rows : tensor, shape (n, d), float32
    found : HeadStates
    rule : LogitRule
    bias : tensor, shape (n,), or None
        Of the head, where the family has one.

    Returns
    -------
    tensor, shape (n, d), float32
    """
    some = found.at(slice(0, len(found), max(1, len(found) // STATES)))
    counts = torch.bincount(found.slot[found.slot >= 0], minlength=len(rows)).float() * (len(some) / len(found))
    direction = constant_direction(some.states) / rule.scale
    for _ in range(ROUNDS):
        expected = torch.zeros(len(rows), device=rows.device)
        for start in range(0, len(some), ROWS_AT_ONCE):
            block = some.at(slice(start, start + ROWS_AT_ONCE))
            logits = _logits(rows, block, rule, bias)
            total = torch.logaddexp(block.rest, logits.logsumexp(1))
            expected += (logits - total[:, None]).exp().sum(0)
        change = torch.log((counts + PRIOR) / (expected + PRIOR))
        rows = rows + change[:, None] * direction
    return rows


def fit(
    rows: torch.nn.Parameter,
    found: HeadStates,
    rule: LogitRule,
    bias: torch.Tensor | None,
    rate: float,
    epochs: float,
    seed: int,
) -> None:
    """Train rows of a head on cached states, in place.

    Parameters
    ----------
    rows : parameter, shape (n, d), float32
    found : HeadStates
    rule : LogitRule
    bias : tensor, shape (n,), or None
    rate : float
        Peak learning rate.
    epochs : float
        Times that each position is gone through.
    seed : int
    """
    size = min(ROWS_AT_ONCE, len(found))
    steps = round(epochs * len(found) / size)
    optimizer = torch.optim.AdamW([rows], lr=rate, betas=(0.9, 0.99), eps=EPSILON, weight_decay=0.0)
    draw = np.random.default_rng(seed)
    order = np.zeros(0, dtype=np.int64)
    with progress("head", steps) as bar:
        for step in range(steps):
            if len(order) < size:
                order = np.concatenate([order, draw.permutation(len(found))])
            chosen, order = torch.from_numpy(order[:size]).to(rows.device), order[size:]
            optimizer.param_groups[0]["lr"] = rate * _cosine(step, steps)
            loss = cross_entropy(rows, found.at(chosen), rule, bias).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([rows], CLIP)
            optimizer.step()
            bar.set(step + 1, f"loss {loss.detach():.3f}")


def cross_entropy(
    rows: torch.Tensor, found: HeadStates, rule: LogitRule, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy of the tokens that follow, shape (n,), float32, nats."""
    logits = _logits(rows, found, rule, bias)
    total = torch.logaddexp(found.rest, logits.logsumexp(1))
    learned = logits.gather(1, found.slot.clamp(min=0)[:, None])[:, 0]
    return total - torch.where(found.slot >= 0, learned, found.logit)


def _logits(rows: torch.Tensor, found: HeadStates, rule: LogitRule, bias: torch.Tensor | None) -> torch.Tensor:
    """Logits of the rows that learn, shape (positions, rows), float32; products in the precision of the states."""
    products = (found.states @ rows.to(found.states.dtype).T).float()
    return rule.apply(products if bias is None else products + bias)


def _cosine(step: int, steps: int) -> float:
    """Share of the peak rate: ten steps of warm-up, then half a cosine."""
    return min(1.0, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / steps))
