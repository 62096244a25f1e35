"""New tokens as a tree of the old tokens that they split into, and what the original model says of its branches.

The original model gives a probability to each next old token, so to each branch of this tree. The adapted model gives
one to each token, so to each branch the sum over the tokens below it. Both speak of the same text, so they can be
compared branch by branch. Such a target knows more than which token came next: of a text of 40,000 tokens, most new
tokens occur a few times at best.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lepta.models.loss import LogitRule

LEAST = 1e-4  # probability of a branch below which it is left out of the targets
TINY = 1e-30  # float32 probabilities below this are 0


class PieceTree:
    """Which tokens lie below which sequence of old tokens.

    Nodes from 0 to `len(first_pieces) - 1` are first pieces. A token that is the beginning of others has a leaf of its
    own below its node: the text goes on with something else. `paths` are the old ids that each token splits into, in
    the order of its logits.
    """

    def __init__(self, paths: Sequence[Sequence[int]], device: torch.device) -> None:
        firsts = sorted({path[0] for path in paths})
        parents, pieces = [-1] * len(firsts), list(firsts)
        self._node = {(-1, piece): node for node, piece in enumerate(firsts)}
        ends = []
        for path in paths:
            node = -1
            for piece in path:
                branch = (node, piece)
                if branch not in self._node:
                    self._node[branch] = len(parents)
                    parents.append(node)
                    pieces.append(piece)
                node = self._node[branch]
            ends.append(node)
        inner = set(parents)
        for token, end in enumerate(ends):
            if end in inner:
                ends[token] = len(parents)
                parents.append(end)
                pieces.append(-1)
        self.first_pieces = torch.tensor(firsts, device=device)  # old ids, int64
        self.parent = torch.tensor(parents, device=device)  # node of each node, int64; -1 for first pieces
        # Sparse float32 CSR, (nodes, tokens): 1 where a token lies below a node.
        self.below = _incidence(parents, ends).to(device)
        self._above = self.below.to_sparse_coo().t().to_sparse_csr()
        self._index_branches(np.asarray(parents), np.asarray(pieces))

    def _index_branches(self, parents: np.ndarray, pieces: np.ndarray) -> None:
        """Branches of each node in one array, and its leaf (-1 where no token ends)."""
        branches = np.flatnonzero((parents >= 0) & (pieces >= 0))
        self._branch = branches[np.argsort(parents[branches], kind="stable")]
        self._piece = pieces[self._branch]
        self._start = np.searchsorted(parents[self._branch], np.arange(len(parents) + 1))
        leaves = np.flatnonzero(pieces < 0)
        self.leaf = np.full(len(parents), -1)
        self.leaf[parents[leaves]] = leaves

    def inner_nodes(self, pieces: Sequence[int]) -> list[int]:
        """Nodes with branches that old tokens lead through, from the first piece on."""
        nodes, node = [], -1
        for piece in pieces:
            node = self._node.get((node, int(piece)), -1)
            if node < 0 or self._start[node] == self._start[node + 1]:
                break
            nodes.append(node)
        return nodes

    def branches(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Number of a node in `nodes`, branch, and old token of each branch of some nodes, leaves apart."""
        number = self._start[nodes + 1] - self._start[nodes]
        entry = np.repeat(np.arange(len(nodes)), number)
        before = np.repeat(np.cumsum(number) - number, number)
        place = self._start[nodes][entry] + np.arange(len(entry)) - before
        return entry, self._branch[place], self._piece[place]

    def log_mass(self, logits: torch.Tensor) -> torch.Tensor:
        """Log of the summed exponentials of the tokens below each node: (tokens, positions) to (nodes, positions)."""
        top = logits.detach().max(0).values
        mass: torch.Tensor = _SparseProduct.apply(self.below, self._above, (logits - top).exp())
        return mass.clamp(min=TINY).log() + top


class _SparseProduct(torch.autograd.Function):
    """A constant sparse matrix times a dense one; torch would build the transpose anew for every gradient."""

    @staticmethod
    def forward(ctx: Any, matrix: torch.Tensor, transposed: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        ctx.transposed = transposed
        return matrix @ dense

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, ctx.transposed @ outputs[0]


def _incidence(parents: list[int], ends: list[int]) -> torch.Tensor:
    nodes, tokens = [], []
    for token, end in enumerate(ends):
        node = end
        while node >= 0:
            nodes.append(node)
            tokens.append(token)
            node = parents[node]
    size = (len(parents), len(ends))
    places = torch.tensor([nodes, tokens])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "Sparse CSR tensor support is in beta state"
        return torch.sparse_coo_tensor(places, torch.ones(len(nodes)), size).coalesce().to_sparse_csr()


@dataclass(frozen=True)
class Targets:
    """What the original model expects after each of n positions, as far as the tree tells it apart."""

    states: torch.Tensor  # (n, d): last hidden states of the original where it has read the same text
    total: torch.Tensor  # (n,), float32: log of the sum of exponentials of its logits
    known: torch.Tensor  # (n,), bool: False where no old token ends at this byte
    start: torch.Tensor  # (n + 1,), int64: where the branches of each position begin
    branch: torch.Tensor  # (m,), int64: nodes, the branches that leave the path of the text
    probability: torch.Tensor  # (m,), float32: their probabilities; those below the same node sum to 1

    def cross_entropy(
        self,
        rows: torch.Tensor,
        tree: PieceTree,
        old_rows: torch.Tensor,
        rule: LogitRule,
        logits: torch.Tensor,
        rest: torch.Tensor,
    ) -> torch.Tensor:
        """Cross-entropy of branches in some positions, nats, shape (len(rows),); at first pieces and along the path.

        `old_rows`, (firsts, d), are those of the original's head for first pieces; `logits`, float32 (tokens,
        len(rows)), the student's; `rest` the log of the sum of exponentials of all its other logits.
        """
        mass = tree.log_mass(logits)
        firsts = len(tree.first_pieces)
        total = torch.logaddexp(mass[:firsts].logsumexp(0), rest)
        expected = (rule.apply((old_rows @ self.states[rows].T).float()) - self.total[rows]).exp()
        others = (1 - expected.sum(0)).clamp(min=0.0)
        of_firsts = -(expected * (mass[:firsts] - total)).sum(0) - others * (rest - total)
        number = self.start[rows + 1] - self.start[rows]
        column = torch.repeat_interleave(number)
        before = torch.repeat_interleave(number.cumsum(0) - number, number)
        place = self.start[rows][column] + torch.arange(len(column), device=column.device) - before
        branch = self.branch[place]
        share = mass[branch, column] - mass[tree.parent[branch], column]
        return of_firsts.index_add(0, column, -self.probability[place] * share)


def branch_targets(
    tree: PieceTree, nodes: np.ndarray, states: torch.Tensor, total: torch.Tensor, head: torch.Tensor, rule: LogitRule
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the original model expects below n nodes: place in `nodes`, branch and probability of each branch.

    `states`, (n, d), are its last hidden states after the old tokens that lead to each node, `total` the logs of the
    sums of exponentials of its logits there, `head` its rows, (old rows, d).
    """
    entry, branch, piece = tree.branches(nodes)
    at, columns = torch.from_numpy(entry).to(head.device), torch.from_numpy(piece).to(head.device)
    logits = rule.apply((states[at] * head[columns]).sum(1).float())
    chance = (logits - total[at]).exp().cpu().numpy()
    branched = np.bincount(entry, chance, minlength=len(nodes))
    leaf = tree.leaf[nodes]
    ends = np.flatnonzero(leaf >= 0)
    # Where no token ends, text that takes none of the branches is not told apart here.
    whole = np.where(leaf >= 0, 1.0, np.maximum(branched, TINY))
    entries = np.concatenate([entry, ends])
    branches = np.concatenate([branch, leaf[ends]])
    chances = np.concatenate([chance / whole[entry], np.maximum(0.0, 1.0 - branched[ends])])
    kept = chances > LEAST
    return entries[kept], branches[kept], chances[kept].astype(np.float32)
