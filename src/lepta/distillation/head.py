"""The head's rows of new tokens, from last hidden states that are computed once.

The body is frozen and input rows are not touched, so last hidden states never change while the head learns: one pass
over the text, then steps in the rows alone, far cheaper than training through the model. Logits of frozen rows enter
as one number for each position.

First, counting puts each row where it is right on average. A direction u whose product with every last hidden state
is 1 adds a constant to a logit in every context. Constants are found by iterative scaling, so that each token gets as
much probability over the text as it has occurrences there. Then rows are fitted to what the original model expects
next (`pieces`), and to the token that came.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lepta.core.progress import progress, step, track
from lepta.distillation.pieces import PieceTree, Targets, branch_targets
from lepta.distillation.student import Distiller
from lepta.models.loss import LogitRule, token_losses
from lepta.vocabulary.alignment import Alignment

RIDGE = 1e-3  # of the mean diagonal
ROUNDS = 4  # of iterative scaling; a fifth changes held-out text by less than 0.001 bits per byte
PRIOR = 0.3  # occurrences that every token is given beside those it has
STATES = 20_000  # that constants are found from
ROWS_AT_ONCE = 1024  # positions of a step, and of a block
COLUMNS_AT_ONCE = 1024  # rows of a head whose logits stay in the processor's cache: 1.7 times as fast as all at once
CLIP = 1.0
# AdamW divides by the root of its second moment, so rows of tokens that a batch does not hold would move as far as the
# others, by gradients of nearly nothing. With this epsilon (of gradients whose norm is at most 1) they nearly stay.
EPSILON = 1e-3
SAMPLE = 2000  # states that likely rows are found from
SHORT = 64  # tokens that a passage has at least, as a rule: so many passages are enough for the sample
UNLIKELY = 1e-3  # probability that all rows left out have together


@dataclass(frozen=True)
class HeadStates:
    """What the rows that learn are fitted to, one entry for each of n predicted tokens."""

    states: torch.Tensor  # (n, d): last hidden states in the precision of the body
    rest: torch.Tensor  # (n,), float32: log of the sum of exponentials of the logits of frozen rows
    slot: torch.Tensor  # (n,), int64: place of the next token among the rows that learn; -1 if its row is frozen
    logit: torch.Tensor  # (n,), float32: logit of the next token where its row is frozen, else 0

    def __len__(self) -> int:
        return len(self.slot)

    def at(self, rows: torch.Tensor | slice) -> "HeadStates":
        """Some of them."""
        return HeadStates(self.states[rows], self.rest[rows], self.slot[rows], self.logit[rows])

    def logits(self, rows: torch.Tensor, rule: LogitRule, bias: torch.Tensor | None) -> torch.Tensor:
        """Logits of the rows that learn, shape (rows, n), float32; products in the precision of the states."""
        products = (rows.to(self.states.dtype) @ self.states.T).float()
        return rule.apply(products if bias is None else products + bias[:, None])

    def cross_entropy(self, logits: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the tokens that follow, by `logits` of the rows that learn; shape (n,), float32, nats."""
        total = torch.logaddexp(self.rest, logits.logsumexp(0))
        learned = logits.gather(0, self.slot.clamp(min=0)[None])[0]
        return total - torch.where(self.slot >= 0, learned, self.logit)


class FrozenRows:
    """Rows of a head, (n, d), as the log of the sum of exponentials of their logits."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, rule: LogitRule) -> None:
        self._weight, self._bias, self._rule = weight, bias, rule
        self._correction = 0.0

    def total(self, states: torch.Tensor) -> torch.Tensor:
        """Log of the sum of exponentials after each state, shape (n,), float32."""
        total = torch.full((len(states),), -math.inf, device=states.device)
        for start in range(0, len(self._weight), COLUMNS_AT_ONCE):
            total = torch.logaddexp(total, self._logits(states, start).logsumexp(1))
        return total + self._correction

    def likely(self, states: torch.Tensor, other: torch.Tensor) -> "FrozenRows":
        """The rows that matter in such states; those left out have the same share of the rest everywhere.

        Of Gemma 3's 262,144 rows 55,000 hold all but a thousandth of the probability in Russian text. `other` is the
        log of the sum of exponentials of all other logits after the states, float32, one for each.
        """
        own = self.total(states)
        total = torch.logaddexp(own, other)
        starts = range(0, len(self._weight), COLUMNS_AT_ONCE)
        shares = [(self._logits(states, start) - total[:, None]).exp().mean(0) for start in starts]
        share, order = torch.cat(shares).sort()
        kept = order[share.cumsum(0) > UNLIKELY].sort().values
        result = FrozenRows(self._weight[kept], None if self._bias is None else self._bias[kept], self._rule)
        weight = (own - total).exp()
        result._correction = float(((own - result.total(states)) * weight).sum() / weight.sum())
        return result

    def _logits(self, states: torch.Tensor, start: int) -> torch.Tensor:
        block = slice(start, start + COLUMNS_AT_ONCE)
        products = (states @ self._weight[block].T).float()
        return self._rule.apply(products if self._bias is None else products + self._bias[block])


@torch.no_grad()
def collect_states(
    distiller: Distiller,
    passages: Sequence[Alignment],
    batch: int,
    purpose: str = "computing last hidden states, batches",
) -> HeadStates:
    """Run the student over passages once; the logits of all frozen rows are computed."""
    head = distiller.head
    frozen = FrozenRows(head.frozen, head.frozen_bias, distiller.rule)
    parts = []
    for chosen in _batches(passages, batch, purpose):
        states = distiller.last_states(_padded(chosen, "new_ids", head.place.device))
        for last, passage in zip(states, chosen, strict=True):
            parts.append(_predicting(distiller, frozen, last, passage))
    return HeadStates(*_joined(parts))


@torch.no_grad()
def collect_targets(
    distiller: Distiller, tree: PieceTree, passages: Sequence[Alignment], batch: int
) -> tuple[HeadStates, Targets]:
    """Run teacher and student over passages once.

    The head has no bias; the tree is of the tokens whose rows are in it. Of rows that are never likely in such text
    only the mean share is known (`FrozenRows.likely`).
    """
    head, rule, device = distiller.head, distiller.rule, distiller.head.place.device
    among_firsts = torch.zeros(len(distiller.old_head), dtype=torch.bool, device=device)
    among_firsts[tree.first_pieces] = True
    firsts = FrozenRows(distiller.old_head[among_firsts], None, rule)
    sample = passages[:: max(1, len(passages) * SHORT // SAMPLE)]
    last = []
    for passage in track(sample, "finding rows that are likely in the text, passages", len(sample)):
        last.append(distiller.last_states(_padded([passage], "new_ids", device))[0])
    states = torch.cat(last)[:SAMPLE]
    own = rule.apply((states @ head.rows.to(states.dtype).T).float()).logsumexp(1)
    with step("leaving out rows that are never likely"):
        frozen = FrozenRows(head.frozen, None, rule).likely(states, own)
        others = FrozenRows(distiller.old_head[~among_firsts], None, rule).likely(states, firsts.total(states))
    parts: list[HeadStates] = []
    found: list[Targets] = []
    for chosen in _batches(passages, batch):
        students = distiller.last_states(_padded(chosen, "new_ids", device))
        teachers = distiller.teacher_last_states(_padded(chosen, "old_ids", device))
        for student, teacher, passage in zip(students, teachers, chosen, strict=True):
            parts.append(_predicting(distiller, frozen, student, passage))
            teacher = teacher[: len(passage.old_ids)]
            total = torch.logaddexp(firsts.total(teacher), others.total(teacher))
            found.append(_expected(distiller, tree, teacher, total, passage))
    return HeadStates(*_joined(parts)), _joined_targets(found)


@torch.no_grad()
def losses_of_original(distiller: Distiller, passages: Sequence[Alignment], batch: int, purpose: str) -> float:
    """Nats that the original takes for passages in its own tokens, in all; its head has no bias."""
    nats = 0.0
    for chosen in _batches(passages, batch, purpose):
        states = distiller.teacher_last_states(_padded(chosen, "old_ids", distiller.head.place.device))
        for last, passage in zip(states, chosen, strict=True):
            labels = torch.from_numpy(passage.old_ids[1:]).to(last.device)
            losses = token_losses(last[: len(labels)], distiller.old_head, labels, rule=distiller.rule)
            nats += float(losses.sum())
    return nats


def _batches(
    passages: Sequence[Alignment], batch: int, purpose: str = "computing last hidden states, batches"
) -> Iterable[list[Alignment]]:
    """Passages of similar length together, in a bar."""
    order = sorted(passages, key=lambda passage: len(passage.new_ids))
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    return track(batches, purpose, len(batches))


def _padded(passages: Sequence[Alignment], name: str, device: torch.device) -> torch.Tensor:
    """`old_ids` or `new_ids` of passages."""
    rows = [torch.from_numpy(getattr(passage, name)) for passage in passages]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)


def _predicting(distiller: Distiller, frozen: FrozenRows, states: torch.Tensor, passage: Alignment) -> HeadStates:
    """States and the tokens that follow them, with the logits of frozen rows."""
    head = distiller.head
    number = len(head.frozen)
    labels = torch.from_numpy(passage.new_ids[1:]).to(states.device)
    states = states[: len(labels)]
    places = head.place[labels]
    is_frozen = places < number
    at = places.clamp(max=number - 1)
    products = (states * head.frozen[at]).sum(1).float()
    logit = distiller.rule.apply(products if head.frozen_bias is None else products + head.frozen_bias[at])
    slots = torch.where(is_frozen, -1, places - number)
    return HeadStates(states, frozen.total(states), slots, torch.where(is_frozen, logit, 0.0))


def _expected(
    distiller: Distiller, tree: PieceTree, states: torch.Tensor, total: torch.Tensor, passage: Alignment
) -> Targets:
    """What the original expects after each new token of a passage but the last."""
    number = len(passage.new_ids) - 1
    old_end = np.full(number + 1, -1)
    old_end[passage.new_ends] = passage.old_ends
    nodes: list[int] = []
    places: list[int] = []
    entries: list[int] = []
    for position in np.flatnonzero(old_end[:-1] >= 0).tolist():
        before, after = int(old_end[position]), int(old_end[position + 1])
        after = max(after, before + 1)  # the next token ends inside an old one: its first piece alone is followed
        path = tree.inner_nodes(passage.old_ids[before + 1 : after + 1].tolist())
        nodes.extend(path)
        places.extend(range(before + 1, before + 1 + len(path)))
        entries.extend([position] * len(path))
    at = torch.tensor(places, dtype=torch.int64, device=states.device)
    entry, branch, probability = branch_targets(
        tree, np.asarray(nodes, dtype=np.int64), states[at], total[at], distiller.old_head, distiller.rule
    )
    position = np.asarray(entries, dtype=np.int64)[entry]
    order = np.argsort(position, kind="stable")
    start = np.searchsorted(position[order], np.arange(number + 1))
    known = old_end[:-1] >= 0
    ends = torch.from_numpy(np.maximum(old_end[:-1], 0)).to(states.device)
    device = states.device
    return Targets(
        states[ends],
        total[ends],
        torch.from_numpy(known).to(device),
        torch.from_numpy(start).to(device),
        torch.from_numpy(branch[order]).to(device),
        torch.from_numpy(probability[order]).to(device),
    )


def _joined(parts: Sequence[HeadStates] | Sequence[Targets]) -> list[torch.Tensor]:
    """Each field of all parts as one tensor."""
    fields = zip(*(vars(part).values() for part in parts), strict=True)
    return list(map(torch.cat, fields))


def _joined_targets(parts: Sequence[Targets]) -> Targets:
    starts, offset = [], 0
    for part in parts:
        starts.append(part.start[:-1] + offset)
        offset += len(part.branch)
    starts.append(torch.tensor([offset], device=parts[0].start.device))
    return replace(Targets(*_joined(parts)), start=torch.cat(starts))


def constant_direction(states: torch.Tensor) -> torch.Tensor:
    """The vector u for which `states @ u` is nearest to 1, by ridge regression; shape (d,), float32."""
    states = states.double()
    gram = states.T @ states
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram, states.sum(0)).float()


@torch.no_grad()
def calibrate(
    rows: torch.Tensor, found: HeadStates, rule: LogitRule, bias: torch.Tensor | None, moves: torch.Tensor
) -> torch.Tensor:
    """Add a constant to each row's logits, so that the row gets as much probability as its token has occurrences.

    `rows` and the result are float32, (n, d); `bias`, (n,), is the head's where the family has one. Rows that are not
    in `moves`, bool (n,), stay as they are.
    """
    some = found.at(slice(0, len(found), max(1, len(found) // STATES)))
    counts = torch.bincount(found.slot[found.slot >= 0], minlength=len(rows)).float() * (len(some) / len(found))
    direction = constant_direction(some.states) / rule.scale
    for _ in range(ROUNDS):
        expected = torch.zeros(len(rows), device=rows.device)
        for start in range(0, len(some), ROWS_AT_ONCE):
            block = some.at(slice(start, start + ROWS_AT_ONCE))
            logits = block.logits(rows, rule, bias)
            total = torch.logaddexp(block.rest, logits.logsumexp(0))
            expected += (logits - total).exp().sum(1)
        change = torch.log((counts + PRIOR) / (expected + PRIOR)) * moves
        rows = rows + change[:, None] * direction
    return rows


@dataclass(frozen=True)
class Expectations:
    """What the original model expects, with all that the loss of `fit` needs."""

    targets: Targets
    tree: PieceTree
    old_rows: torch.Tensor  # rows of the original's head for first pieces
    text_weight: float  # of the token that came


def fit(
    rows: torch.nn.Parameter,
    found: HeadStates,
    expected: Expectations | None,
    rule: LogitRule,
    bias: torch.Tensor | None,
    rate: float,
    epochs: float,
    seed: int,
) -> None:
    """Train rows of a head, float32 (n, d), on cached states, in place; `rate` is the peak learning rate.

    Without `expected` they learn from the tokens that came alone.
    """
    size = min(ROWS_AT_ONCE, len(found))
    steps = round(epochs * len(found) / size)
    optimizer = torch.optim.AdamW([rows], lr=rate, betas=(0.9, 0.99), eps=EPSILON, weight_decay=0.0)
    draw = np.random.default_rng(seed)
    order = np.zeros(0, dtype=np.int64)
    with progress("learning rows of the head, steps", steps) as bar:
        for step in range(steps):
            if len(order) < size:
                order = np.concatenate([order, draw.permutation(len(found))])
            chosen, order = torch.from_numpy(order[:size]).to(rows.device), order[size:]
            # Ten steps of warm-up, then half a cosine.
            share = min(1.0, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.param_groups[0]["lr"] = rate * share
            loss = _loss(rows, found, expected, chosen, rule, bias)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([rows], CLIP)
            optimizer.step()
            bar.set(step + 1, f"loss {loss.detach():.3f}")


def _loss(
    rows: torch.Tensor,
    found: HeadStates,
    expected: Expectations | None,
    chosen: torch.Tensor,
    rule: LogitRule,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    block = found.at(chosen)
    logits = block.logits(rows, rule, bias)
    labels = block.cross_entropy(logits)
    if expected is None:
        return labels.mean()
    targets = expected.targets
    branches = targets.cross_entropy(chosen, expected.tree, expected.old_rows, rule, logits, block.rest)
    mixed = expected.text_weight * labels + (1 - expected.text_weight) * branches
    return torch.where(targets.known[chosen], mixed, labels).mean()
