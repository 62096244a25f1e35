"""One frozen body, read by teacher and student: the original's rows for old tokens, learned rows for new ones.

Initialisation changes rows alone, so both models share their body: it is loaded once, and the teacher costs one more
matrix of embeddings. (Where the body has been trained since, and the head learns alone, the teacher has its own.)
Learned rows are one compact float32 parameter; nothing else has a gradient.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional as F

from lepta.core.errors import LeptaError
from lepta.models.language_model import decoder_layers, language_model
from lepta.models.loss import logit_rule
from lepta.models.states import hidden_distance, last_states
from lepta.training.settings import Lora
from lepta.training.trainable import add_lora


class LearnedEmbedding(nn.Module):
    """A frozen table of which some rows are replaced by `rows`, float32 (n, d); `scale` multiplies each row (Gemma)."""

    table: torch.Tensor  # (V, d), in the precision of the body
    slot: torch.Tensor  # (V,), int64: place of each token in `rows`; -1 for tokens that do not learn

    def __init__(self, weight: torch.Tensor, learned: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.register_buffer("table", weight.detach(), persistent=False)
        slot = torch.full((len(weight),), -1, dtype=torch.int64, device=weight.device)
        slot[learned] = torch.arange(len(learned), device=weight.device)
        self.register_buffer("slot", slot, persistent=False)
        self.rows = nn.Parameter(weight.detach()[learned].float())
        self.scale = scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the tokens, shape (*ids.shape, d), in the dtype of the table."""
        frozen, slot = F.embedding(ids, self.table), self.slot[ids]
        learned = F.embedding(slot.clamp(min=0), self.rows).to(frozen.dtype)
        return torch.where((slot >= 0)[..., None], learned, frozen) * self.scale


class LearnedHead(nn.Module):
    """A head of which some rows learn: frozen rows first, then `rows`, float32 (n, d)."""

    frozen: torch.Tensor  # (V - n, d)
    place: torch.Tensor  # (V,), int64: where the logit of each token stands
    frozen_bias: torch.Tensor | None  # (V - n,)
    bias: torch.Tensor | None  # (n,), of the rows that learn; it does not

    def __init__(self, weight: torch.Tensor, learned: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        keeps = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
        keeps[learned] = False
        order = torch.cat([keeps.nonzero()[:, 0], learned.to(weight.device)])
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        self.register_buffer("frozen", weight.detach()[keeps].contiguous(), persistent=False)
        self.register_buffer("place", place, persistent=False)
        self.register_buffer("frozen_bias", None if bias is None else bias.detach()[keeps], persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach()[learned], persistent=False)
        self.rows = nn.Parameter(weight.detach()[learned].float())


class _Reached(Exception):  # not an error: the layer that was asked for has its states
    """Ends a forward pass early."""


class Distiller(nn.Module):
    """Teacher and student over one frozen body, and the distance of their hidden states after `layer` layers.

    `model` has the new vocabulary; `old_rows` and `old_head`, (old rows, d), are the original's embeddings and head
    (None: the same). `inputs` and `outputs` are ids of the tokens whose rows learn in the embeddings and in the head,
    each by themselves, also where the model has one matrix for both. `lora_rank` is that of low-rank changes of the
    student's layers up to `layer`; 0 for none. `teacher` is the original itself if its body is another one.
    """

    has_chunked_loss = True  # as `patch_chunked_loss` leaves a model: the loss is computed here

    old_rows: torch.Tensor
    old_head: torch.Tensor

    def __init__(
        self,
        model: Any,
        old_rows: torch.Tensor,
        inputs: torch.Tensor,
        outputs: torch.Tensor,
        layer: int,
        old_head: torch.Tensor | None = None,
        lora_rank: int = 0,
        teacher: Any = None,
    ) -> None:
        super().__init__()
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        model.requires_grad_(False)
        rule = logit_rule(model)
        if rule is None:
            raise LeptaError(
                f"{type(model).__name__}: its logits are not products of its head, scaled and capped, or hold NaN; "
                "expected weights that are numbers, and no further layer"
            )
        self.rule = rule
        weight, scale = embedding.weight.detach(), float(getattr(embedding, "embed_scale", 1.0))
        self._check_embedding(embedding, weight, scale)
        self.embedding = LearnedEmbedding(weight, inputs, scale)
        self.head = LearnedHead(head.weight, outputs, head.bias)
        self.register_buffer("old_rows", old_rows.to(weight.dtype), persistent=False)
        if old_head is None:
            old_head = self.old_rows
        self.register_buffer("old_head", old_head.to(weight.dtype), persistent=False)
        self.low_rank: dict[str, torch.Tensor] = {}  # name in the model -> factor of a low-rank change, float32
        if lora_rank:
            add_lora(model, Lora(rank=lora_rank, alpha=lora_rank, layers=list(range(layer))))
            self.low_rank = {name: p for name, p in model.named_parameters() if p.requires_grad}
            for parameter in self.low_rank.values():
                parameter.data = parameter.data.float()
        self.teacher = teacher
        self._adapters = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        self.model = model
        self._ends_at_layer = True
        self._states: list[torch.Tensor] = []
        decoder_layers(model)[layer - 1].register_forward_hook(self._keep)

    def train(self, mode: bool = True) -> "Distiller":
        """Go into training, all but the body: where it has dropout (GPT-2, OPT, Phi), teacher and student would be told
        apart by chance.
        """
        super().train(mode)
        self.model.eval()
        return self

    @staticmethod
    def _check_embedding(embedding: Any, weight: torch.Tensor, scale: float) -> None:
        ids = torch.arange(min(4, len(weight)), device=weight.device)
        if not torch.allclose(embedding(ids).float(), weight[ids].float() * scale, rtol=1e-2):
            raise LeptaError(
                f"{type(embedding).__name__}: does more than look rows up and scale them; train it instead"
            )

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, tuple):
            output = output[0]
        self._states.append(output.flatten(2))  # DeepSeek-V4 and HY4 have several streams: (B, N, 4, d)
        if self._ends_at_layer:
            raise _Reached

    @contextmanager
    def _original_body(self) -> Iterator[None]:
        """The body without low-rank changes; peft freezes their factors as long."""
        for adapter in self._adapters:
            adapter.enable_adapters(False)
        try:
            yield
        finally:
            for adapter in self._adapters:
                adapter.enable_adapters(True)

    def _states_of(self, rows: torch.Tensor) -> torch.Tensor:
        """States after the layer, of rows of embeddings; what follows the layer is not computed."""
        self._ends_at_layer = True
        with suppress(_Reached):
            language_model(self.model)(inputs_embeds=rows, use_cache=False)
        return self._states.pop()

    @torch.no_grad()
    def last_states(self, ids: torch.Tensor) -> torch.Tensor:
        """Last hidden states on new tokens, shape (B, N_new, d)."""
        return self._last(self.embedding(ids))

    @torch.no_grad()
    def teacher_last_states(self, ids: torch.Tensor) -> torch.Tensor:
        """Last hidden states of the original model on old tokens, shape (B, N_old, d)."""
        if self.teacher is not None:
            return last_states(self.teacher, input_ids=ids)
        with self._original_body():
            return self._last(self._old_embedding(ids))

    def _last(self, rows: torch.Tensor) -> torch.Tensor:
        self._ends_at_layer = False
        last = last_states(self.model, inputs_embeds=rows)
        self._states.clear()
        return last

    def _old_embedding(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.old_rows) * self.embedding.scale

    def forward(
        self,
        old_ids: torch.Tensor,
        new_ids: torch.Tensor,
        old_ends: torch.Tensor,
        new_ends: torch.Tensor,
        weights: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The loss (see `hidden_distance`) of B aligned passages, ids padded on the right.

        `old_ends` and `new_ends`, (B, E), are positions where tokens of both end at the same byte; `weights`, float32
        (B, E), those of the hidden states there: 0 for padding, and before the first learned token.
        """
        with torch.no_grad(), self._original_body():
            target = at(self._states_of(self._old_embedding(old_ids)), old_ends)
        found = at(self._states_of(self.embedding(new_ids)), new_ends)
        return {"loss": hidden_distance(target, found, weights)}


def at(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """States at some positions of each row, shape (B, E, d), float32."""
    return states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1])).float()
