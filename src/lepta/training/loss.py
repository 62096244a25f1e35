"""Cross-entropy of a language model's head without its logits: a few rows of them exist at a time.

For 2,000 tokens and a vocabulary of 55,000 the logits alone are 440 MB, and stock training holds them three times: in
the model's dtype, in float32, and as their gradient.
"""

from typing import Any

import torch

IGNORED = -100  # label of tokens that the loss leaves out
LOGITS_BYTES = 1 << 26  # of logits that exist at the same time


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean cross-entropy of `hidden @ weight.T + bias`, with gradients computed along with it.

    Parameters
    ----------
    hidden : tensor, shape (n, d)
    weight : tensor, shape (V, d)
    labels : int64 tensor, shape (n,)
        -100 where there is nothing to predict.
    bias : tensor, shape (V,), optional

    Returns
    -------
    tensor, float32 (float64 for float64 weights)
        Scalar, nats per token.
    """
    return _LinearCrossEntropy.apply(hidden, weight, labels, bias)


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients follow from the probabilities, which are at hand in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        device = hidden.device.type
        products = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            return _sum_up(ctx, hidden, weight, labels, bias, products)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (scale,) = outputs
        of_hidden, of_weight, of_bias = (
            None if gradient is None else gradient.mul_(scale.to(gradient.dtype)) for gradient in ctx.gradients
        )
        return of_hidden, of_weight, None, of_bias


def _sum_up(
    ctx: Any,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None,
    products: torch.dtype,
) -> torch.Tensor:
    """Loss and gradients; matrix products in the dtype of autocast, sums of the weight's gradient in its own."""
    kept = labels != IGNORED
    states, targets = hidden[kept].to(products), labels[kept]
    head, offset = weight.to(products), None if bias is None else bias.to(products)
    sums = torch.promote_types(weight.dtype, torch.float32)
    of_states, of_weight, of_bias = (
        torch.zeros_like(tensor) if tensor is not None and needed else None
        for tensor, needed in zip(
            (states, weight, bias), (*ctx.needs_input_grad[:2], ctx.needs_input_grad[3]), strict=True
        )
    )
    loss = torch.zeros((), dtype=sums, device=hidden.device)
    rows = max(1, LOGITS_BYTES // (len(weight) * sums.itemsize))
    for start in range(0, len(states), rows):
        part, target = states[start : start + rows], targets[start : start + rows, None]
        logits = torch.nn.functional.linear(part, head, offset).to(sums)
        normaliser = logits.logsumexp(dim=1, keepdim=True)
        loss += (normaliser - logits.gather(1, target)).sum()
        if not any(ctx.needs_input_grad):
            continue
        change = logits.sub_(normaliser).exp_()  # probabilities, less 1 at the target
        change.scatter_add_(1, target, change.new_full(target.shape, -1.0))
        change = change.div_(len(states)).to(products)
        if of_states is not None:
            torch.mm(change, head, out=of_states[start : start + rows])
        if of_weight is not None and of_weight.dtype == products:
            of_weight.addmm_(change.T, part)
        elif of_weight is not None:
            of_weight += change.T @ part
        if of_bias is not None:
            of_bias += change.sum(dim=0)
    of_hidden = None
    if of_states is not None:
        of_hidden = torch.zeros_like(hidden)
        of_hidden[kept] = of_states.to(hidden.dtype)
    ctx.gradients = of_hidden, of_weight, of_bias
    return loss / max(len(states), 1)
