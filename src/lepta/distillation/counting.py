"""A head by counting: what the rows of new tokens must be for their probabilities to be right on average.

A token t whose first old piece is a1 stands where the original would have begun to spell it, so its probability there is
a share r of a1's: the logit of t is that of a1 plus log r. A constant is added to a logit in every context by a direction
u whose product with every last hidden state is 1.
"""

import numpy as np
import torch

from lepta.distillation.student import LearnedHead

RIDGE = 1e-3  # of the mean diagonal
SHARE_LIMIT = 0.95


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


def begun_shares(counts: np.ndarray, first_counts: np.ndarray, ids: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Share of the occurrences of a first piece that go on to each token.

    Parameters
    ----------
    counts : int64 array, shape (V,)
        Occurrences of tokens.
    first_counts : int64 array, shape (old V,)
        Occurrences of old tokens where a token begins.
    ids, first : int64 arrays, shape (n,)
        Tokens, and the first old piece of each.

    Returns
    -------
    float64 array, shape (n,)
        At most 0.95 in all for a first piece, so that the piece itself stays possible. Tokens that the text does not
        have count as a tenth of an occurrence.
    """
    shares = (counts[ids] + 0.1) / (first_counts[first] + 1.0)
    totals = np.zeros(len(first_counts))
    np.add.at(totals, first, shares)
    return shares * np.minimum(1.0, SHARE_LIMIT / np.maximum(totals, 1e-12))[first]


@torch.no_grad()
def counted_head(
    head: LearnedHead, states: torch.Tensor, ids: np.ndarray, first: np.ndarray, shares: np.ndarray, lower: bool
) -> None:
    """Put rows of a head where counting wants them, in place.

    Parameters
    ----------
    head : LearnedHead
        All `ids` learn.
    states : tensor, shape (n, d)
        Last hidden states.
    ids, first : int64 arrays, shape (n,)
        Tokens, and the id that the first old piece of each has in the new vocabulary.
    shares : float64 array, shape (n,)
        See `begun_shares`.
    lower : bool
        The rows of the first pieces learn too: take from their probability what the tokens get.
    """
    device = head.rows.device
    direction = constant_direction(states).to(device)
    places = head.place[torch.from_numpy(ids).to(device)]
    logs = torch.from_numpy(np.log(shares)).float().to(device)
    rows = head.row(torch.from_numpy(first).to(device)) + logs[:, None] * direction
    if lower:
        distinct, group = np.unique(first, return_inverse=True)
        left = np.log1p(-np.bincount(group, weights=shares))
        change = torch.from_numpy(left).float().to(device)[:, None] * direction
        head.rows[head.place[torch.from_numpy(distinct).to(device)] - len(head.frozen)] += change
    head.rows[places - len(head.frozen)] = rows
