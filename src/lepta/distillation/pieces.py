"""New tokens as a tree of the old tokens that they split into.

The original model gives a probability to each next old token, so to each branch of this tree; the adapted model gives
one to each token, so to each branch the sum over the tokens below it. Both speak of the same text, so they can be
compared branch by branch: a target for the head that knows more than which token came next.
"""

from collections.abc import Sequence

import numpy as np
import torch

LEAST = 1e-4  # probability of a branch below which it is left out of the targets


class PieceTree:
    """Which tokens lie below which sequence of old tokens.

    Attributes
    ----------
    parent : int64 tensor, shape (nodes,)
        -1 for first pieces, which are the nodes from 0 to `firsts` - 1.
    first_pieces : int64 tensor, shape (firsts,)
        Their old ids.
    below : sparse float32 CSR tensor, shape (nodes, tokens)
        1 where a token lies below a node.
    """

    def __init__(self, paths: Sequence[Sequence[int]], device: torch.device) -> None:
        """Build the tree.

        Parameters
        ----------
        paths : sequence of sequences of int
            Old ids that each token splits into, in the order of the rows of its logits.
        device : torch.device
        """
        firsts = sorted({path[0] for path in paths})
        found: dict[tuple[int, int], int] = {(-1, piece): node for node, piece in enumerate(firsts)}
        parents, pieces = [-1] * len(firsts), list(firsts)
        ends = []
        for path in paths:
            node = -1
            for piece in path:
                known = found.get((node, piece))
                if known is None:
                    known = found[node, piece] = len(parents)
                    parents.append(node)
                    pieces.append(piece)
                node = known
            ends.append(node)
        inner = set(parents)
        # A token that is the beginning of others has a leaf of its own: the text goes on with something else.
        leaves = list(ends)
        for token, end in enumerate(ends):
            if end in inner:
                leaves[token] = len(parents)
                parents.append(end)
                pieces.append(-1)
        self._found = found
        self.parent = torch.tensor(parents, device=device)
        self.first_pieces = torch.tensor(firsts, device=device)
        self.below = self._below(parents, leaves, device)
        self._children(np.asarray(parents), np.asarray(pieces))

    @staticmethod
    def _below(parents: list[int], leaves: list[int], device: torch.device) -> torch.Tensor:
        places: list[tuple[int, int]] = []
        for token, node in enumerate(leaves):
            while node >= 0:
                places.append((node, token))
                node = parents[node]
        indices = torch.tensor(places, device=device).T
        size = (len(parents), len(leaves))
        return torch.sparse_coo_tensor(indices, torch.ones(indices.shape[1], device=device), size).coalesce().to_sparse_csr()

    def _children(self, parents: np.ndarray, pieces: np.ndarray) -> None:
        """Branches of each node, in one array: those that are old tokens, and the leaf of the node itself."""
        branches = np.flatnonzero((parents >= 0) & (pieces >= 0))
        order = branches[np.argsort(parents[branches], kind="stable")]
        self._branch, self._branch_piece = order, pieces[order]
        self._branch_start = np.searchsorted(parents[order], np.arange(len(parents) + 1))
        self._leaf = np.full(len(parents), -1)
        leaf = np.flatnonzero((parents >= 0) & (pieces < 0))
        self._leaf[parents[leaf]] = leaf

    def path(self, pieces: Sequence[int]) -> list[int]:
        """Nodes with branches that old tokens lead through, from the first piece on."""
        nodes, node = [], -1
        for piece in pieces:
            known = self._found.get((node, piece))
            if known is None:
                break
            node = known
            if self._branch_start[node] < self._branch_start[node + 1]:
                nodes.append(node)
        return nodes

    def targets(
        self, nodes: np.ndarray, places: np.ndarray, states, head, rule, total: torch.Tensor
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Probabilities of the branches below some nodes, each sum 1.

        Parameters
        ----------
        nodes : int64 array, shape (n,)
        places : int64 array, shape (n,)
            Row of `logits` that tells what follows each node.
        logits : tensor, shape (rows, old tokens)
        total : tensor, shape (rows,)
            Their log of the sum of exponentials.

        Returns
        -------
        entry : int64 array
            Which of the nodes each probability belongs to.
        node : int64 array
        probability : float32 array
        """
        start, end = self._branch_start[nodes], self._branch_start[nodes + 1]
        number = end - start
        entry = np.repeat(np.arange(len(nodes)), number)
        within = np.arange(len(entry)) - np.repeat(np.cumsum(number) - number, number)
        place = start[entry] + within
        rows = torch.from_numpy(places[entry]).to(head.device)
        columns = torch.from_numpy(self._branch_piece[place]).to(head.device)
        chance = (rule.apply((states[rows] * head[columns]).float().sum(1)) - total[rows]).exp().cpu().numpy()
        branched = np.bincount(entry, chance, minlength=len(nodes))
        leaf = self._leaf[nodes]
        has_leaf = np.flatnonzero(leaf >= 0)
        whole = np.where(leaf >= 0, 1.0, np.maximum(branched, 1e-9))
        entries = np.concatenate([entry, has_leaf])
        found = np.concatenate([self._branch[place], leaf[has_leaf]])
        chances = np.concatenate([chance / whole[entry], np.maximum(0.0, 1.0 - branched[has_leaf])])
        kept = chances > LEAST
        return entries[kept], found[kept], chances[kept].astype(np.float32)
