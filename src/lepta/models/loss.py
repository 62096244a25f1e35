"""Cross-entropy of a language model without its logits: a few rows of them exist at a time.

For 2,000 tokens and a vocabulary of 55,000 the logits alone are 440 MB, and stock training holds them three times: in
the model's dtype, in float32, and as their gradient.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutput

from lepta.models.language_model import language_model
from lepta.models.precision import autocast_of
from lepta.models.split import IGNORED, among_parts, bias_of, parts_of
from lepta.models.states import last_states

LOGITS_BYTES = 1 << 26  # of logits that exist at the same time


@dataclass(frozen=True)
class LogitRule:
    """What a family does to the products of last hidden states and head: scale them, then cap them softly."""

    scale: float = 1.0  # Cohere multiplies, Granite divides
    cap: float | None = None  # logits become cap * tanh(logit / cap) (Gemma 2)

    def apply(self, products: torch.Tensor) -> torch.Tensor:
        """Logits of the products of hidden states and head."""
        logits = products * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def patch_chunked_loss(model: Any) -> None:
    """Have a causal LM compute its loss without all logits whenever it is called with `labels`.

    Models whose logits are no `LogitRule` of their head keep their own loss.
    """
    if getattr(model, "has_chunked_loss", False):
        return
    model.has_chunked_loss = True
    rule = logit_rule(model)
    model.keeps_own_loss = rule is None
    if rule is None:
        return
    forward = model.forward

    def forward_with_loss(*args: Any, labels: Any = None, num_items_in_batch: Any = None, **inputs: Any) -> Any:
        if labels is None:
            return forward(*args, **inputs)
        predicted = predictions(model, labels, *args, **inputs)
        return CausalLMOutput(loss=linear_cross_entropy(*predicted, num_items_in_batch, rule))

    # Replaced on the instance, so that whatever wraps the model (DDP, FSDP2) has gathered its weights when it runs.
    model.forward = forward_with_loss
    model.accepts_loss_kwargs = True  # the Trainer then says by how many tokens of the whole step to divide


def predictions(
    model: Any, labels: torch.Tensor, *args: Any, **inputs: Any
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor, torch.Tensor | None]:
    """Last hidden states, head, labels of the tokens after them and bias, as `linear_cross_entropy` takes them."""
    return predictions_of(model, last_states(model, *args, **inputs), labels)


def predictions_of(
    model: Any, states: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor, torch.Tensor | None]:
    """As `predictions`, from last hidden states that are computed already."""
    head = model.get_output_embeddings()
    return states[:, :-1].flatten(0, 1), parts_of(head), among_parts(head, labels[:, 1:].flatten()), bias_of(head)


@torch.no_grad()
def logit_rule(model: Any) -> LogitRule | None:
    """How a model's logits follow from its head and its last hidden states; None if they follow in another way.

    The config names scale and cap; that nothing else is done is seen on a few tokens.
    """
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    rule = LogitRule(scale, getattr(config, "final_logit_softcapping", None))
    inputs = torch.arange(min(16, model.get_input_embeddings().weight.shape[0]), device=model.device)[None]
    with autocast_of(model):
        expected = model(input_ids=inputs).logits
        found = rule.apply(model.get_output_embeddings()(language_model(model)(input_ids=inputs).last_hidden_state))
    same = found.shape == expected.shape and torch.allclose(found.float(), expected.float(), rtol=1e-3, atol=1e-3)
    return rule if same else None


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor | Sequence[torch.Tensor],
    labels: torch.Tensor,
    bias: torch.Tensor | None = None,
    divisor: torch.Tensor | int | None = None,
    rule: LogitRule | None = None,
    shares: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy of `rule(hidden @ weight.T + bias)`, with gradients computed along with it.

    Shapes: hidden (n, d); weight (V, d), or several tensors that are its rows in order, of which those without
    `requires_grad` cost no gradient; labels (n,), -100 where there is nothing to predict. The sum is divided by
    `divisor`, by default the number of labels that are predicted. `shares` (n,) says how often each label counts. A
    rule with a scale is not for heads with a bias.

    Returns a float32 scalar (float64 for float64 weights), in nats per token.
    """
    loss, _ = _applied(hidden, weight, labels, bias, divisor, rule, shares)
    return loss


@torch.no_grad()
def token_losses(
    hidden: torch.Tensor,
    weight: torch.Tensor | Sequence[torch.Tensor],
    labels: torch.Tensor,
    bias: torch.Tensor | None = None,
    rule: LogitRule | None = None,
) -> torch.Tensor:
    """Cross-entropy of each label, nats, shape (n,), as `linear_cross_entropy` has it; 0 if nothing is predicted."""
    _, losses = _applied(hidden, weight, labels, bias, None, rule, None)
    return losses


def _applied(
    hidden: torch.Tensor,
    weight: torch.Tensor | Sequence[torch.Tensor],
    labels: torch.Tensor,
    bias: torch.Tensor | None,
    divisor: torch.Tensor | int | None,
    rule: LogitRule | None,
    shares: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and that of each label."""
    parts = (weight,) if isinstance(weight, torch.Tensor) else tuple(weight)
    if not torch.is_grad_enabled():  # a Function is told what could have gradients, not whether anybody wants them
        hidden, bias, parts = hidden.detach(), None if bias is None else bias.detach(), tuple(p.detach() for p in parts)
    rule = rule or LogitRule()
    if rule.scale != 1.0:
        hidden = hidden * rule.scale
    return _LinearCrossEntropy.apply(hidden, labels, bias, _Sum(divisor, rule.cap, shares), *parts)


@dataclass(frozen=True)
class _Sum:
    """How losses are computed and added up; see `linear_cross_entropy`."""

    divisor: torch.Tensor | int | None
    cap: float | None
    shares: torch.Tensor | None


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients follow from the probabilities, which are at hand in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, labels: torch.Tensor, bias: torch.Tensor | None, how: _Sum, *parts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = hidden.device.type
        products = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        with torch.autocast(device, enabled=False):
            loss, losses = _sum_up(ctx, hidden, labels, bias, how, parts, products)
        ctx.mark_non_differentiable(losses)
        return loss, losses

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale = outputs[0]
        of_hidden, of_bias, *of_parts = ctx.gradients
        del ctx.gradients  # autograd takes a gradient that nobody else holds without a copy
        scale = scale * ctx.left
        for gradient in (of_hidden, of_bias, *of_parts):
            if gradient is not None and gradient.dtype == torch.float16:
                gradient.copy_(gradient.float().mul_(scale))  # the scale alone may be beyond float16
            elif gradient is not None:
                gradient.mul_(scale.to(gradient.dtype))
        return of_hidden, None, of_bias, None, *of_parts


def _sum_up(
    ctx: Any,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None,
    how: _Sum,
    parts: tuple[torch.Tensor, ...],
    products: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss, that of each label, and gradients.

    Matrix products are in the given dtype, sums of the weight's gradient in the weight's own.
    """
    divisor, cap = how.divisor, how.cap
    kept = labels != IGNORED
    states, targets = hidden[kept].to(products), labels[kept]
    head = _Head([part.to(products) for part in parts], None if bias is None else bias.to(products))
    sums = torch.promote_types(parts[0].dtype, torch.float32)
    scale = 1 / torch.as_tensor(max(len(states), 1) if divisor is None else divisor, dtype=sums, device=hidden.device)
    # 1 / num_tokens underflows in float16, so there the backward pass divides, after loss scaling.
    ctx.left, factor = (scale, torch.ones_like(scale)) if products == torch.float16 else (1.0, scale)
    gradients = _Gradients.of(ctx.needs_input_grad, states, parts, bias)
    # One buffer serves all logits, and is overwritten by their gradient: fresh memory for each chunk cost as much time
    # as a fourth matrix product (the system hands it out page by page). Logits in 16 bits have a 32-bit buffer beside.
    rows = min(max(1, LOGITS_BYTES // (head.size * sums.itemsize)), max(len(states), 1))
    buffer = torch.empty(rows, head.size, dtype=products, device=hidden.device)
    wide = buffer if products == sums else torch.empty_like(buffer, dtype=sums)
    found = torch.zeros(len(states), dtype=sums, device=hidden.device)  # loss of each label that is predicted
    counts = torch.ones_like(found) if how.shares is None else how.shares[kept].to(sums)
    for start in range(0, len(states), rows):
        part, target = states[start : start + rows], targets[start : start + rows, None]
        logits = head.logits(part, buffer[: len(part)])
        if products != sums:
            logits = wide[: len(part)].copy_(logits)
        slope = None
        if cap is not None:
            logits = logits.div_(cap).tanh_()
            slope = 1 - logits.square()  # of the logits in the products
            logits = logits.mul_(cap)
        of_target = logits.gather(1, target)
        highest = logits.amax(dim=1, keepdim=True)
        exponentials = logits.sub_(highest).exp_()
        total = exponentials.sum(dim=1, keepdim=True)
        found[start : start + rows] = (total.log() + highest - of_target)[:, 0]
        if not any(ctx.needs_input_grad):
            continue
        # The gradient of the logits, probabilities less 1 at the target, is `change / total`. Dividing states (n, d)
        # is cheaper than dividing `change` (n, V); but in 16 bits `change` would overflow without the division.
        change, narrow = exponentials.scatter_add_(1, target, -total), factor / total
        if slope is not None:
            change = change.mul_(slope)
        if products != sums:
            change, narrow = buffer[: len(part)].copy_(change.div_(total)), factor
        narrow = narrow * counts[start : start + rows, None]
        gradients.add(head, slice(start, start + len(part)), part, change, narrow.to(products))
    of_hidden = None
    if gradients.of_states is not None:
        of_hidden = torch.zeros_like(hidden)
        of_hidden[kept] = gradients.of_states.to(hidden.dtype)
    ctx.gradients = of_hidden, gradients.of_bias, *gradients.of_parts
    losses = torch.zeros(len(labels), dtype=sums, device=hidden.device)
    losses[kept] = found
    return (counts * found).sum() * scale, losses


class _Head:
    """Rows of a head in parts, with where each part's logits stand among all."""

    def __init__(self, parts: list[torch.Tensor], bias: torch.Tensor | None) -> None:
        self.parts, self.bias, self.size = parts, bias, sum(map(len, parts))
        ends = itertools.accumulate(map(len, parts))
        self.columns = [slice(end - len(part), end) for part, end in zip(parts, ends, strict=True)]

    def logits(self, states: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        for part, columns in zip(self.parts, self.columns, strict=True):
            torch.mm(states, part.T, out=out[:, columns])
        return out if self.bias is None else out.add_(self.bias)


@dataclass(frozen=True)
class _Gradients:
    """Gradients of hidden states, of each part of the head and of its bias; None where there is nothing to train."""

    of_states: torch.Tensor | None
    of_parts: list[torch.Tensor | None]
    of_bias: torch.Tensor | None

    @classmethod
    def of(
        cls, needed: Sequence[bool], states: torch.Tensor, parts: Sequence[torch.Tensor], bias: torch.Tensor | None
    ) -> "_Gradients":
        """What is needed, of hidden, labels, bias, how and parts: the arguments of `_LinearCrossEntropy`."""
        return cls(
            torch.empty_like(states) if needed[0] else None,
            [torch.zeros_like(part) if wanted else None for part, wanted in zip(parts, needed[4:], strict=True)],
            torch.zeros_like(bias) if bias is not None and needed[2] else None,
        )

    def add(self, head: _Head, rows: slice, states: torch.Tensor, change: torch.Tensor, narrow: torch.Tensor) -> None:
        """Add what some rows give: the gradient of their logits is `change * narrow`."""
        if self.of_states is not None:
            of_rows = self.of_states[rows].zero_()
            for part, columns in zip(head.parts, head.columns, strict=True):
                of_rows.addmm_(change[:, columns], part)
            of_rows.mul_(narrow)
        weighted = states * narrow
        for gradient, columns in zip(self.of_parts, head.columns, strict=True):
            if gradient is not None and gradient.dtype == change.dtype:
                gradient.addmm_(change[:, columns].T, weighted)
            elif gradient is not None:
                gradient += change[:, columns].T @ weighted
        if self.of_bias is not None:
            self.of_bias.add_((change * narrow).sum(dim=0))
