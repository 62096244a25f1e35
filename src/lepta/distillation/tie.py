"""One row for both ends of a model whose head is its embeddings, from rows that learned each by themselves.

A head sees of a row what it has in the directions in which last hidden states vary; the lower layers see all of it. So
the row is that of the head in those directions, and that of the embeddings elsewhere.
"""

import torch

from lepta.distillation.best import BestRows
from lepta.distillation.head import STATES
from lepta.distillation.student import Distiller

# Of the pull towards input rows, in units of the mean square of last hidden states. Gemma 3 270M with 8,000 tokens,
# held-out bits per byte: two matrices 0.710; input rows alone 0.835, those of the head 0.867, their mean 0.757; pull
# 0.1 0.752, 0.3 0.743, 1 0.745, 3 0.752. After less text 0.1 1.134, 0.3 1.119, 1 1.116, two matrices 1.086. Without
# held-out passages the last one stays.
PULLS = (0.25, 1.0, 0.5)


@torch.no_grad()
def tie(distiller: Distiller, states: torch.Tensor, best: BestRows) -> None:
    """Make rows of embeddings and head, of the same tokens, one row each; of several pulls the best is kept.

    `states`, (n, d), are last hidden states that the head has been fitted to.
    """
    inputs, outputs = distiller.embedding.rows.clone(), distiller.head.rows.clone()
    some = states[:STATES].float()
    second = some.T @ some / len(some)
    best.start_over()
    for pull in PULLS:
        rows = shared_rows(inputs, outputs, second, pull)
        distiller.embedding.rows.copy_(rows)
        distiller.head.rows.copy_(rows)
        best.measure(f"one matrix, pull {pull:g}")


def shared_rows(inputs: torch.Tensor, outputs: torch.Tensor, second: torch.Tensor, pull: float) -> torch.Tensor:
    """The rows r, (n, d), that serve as `inputs` and as `outputs`; all float32.

    `second`, (d, d), is C, the mean of h h^T over last hidden states h. For each row the mean of (h (r - output))^2,
    plus `pull` times the mean square of the states times |r - input|^2, is least. With p the pull in those units:
    r = (C + pI)^-1 (C output + p input).
    """
    weight = pull * second.diagonal().mean()
    system = second + weight * torch.eye(len(second), device=second.device)
    return torch.linalg.solve(system, second @ outputs.T + weight * inputs.T).T.contiguous()
