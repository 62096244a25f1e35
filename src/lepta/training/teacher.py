"""A second loss from the original model, which reads the same text in its old tokens.

Where tokens of both vocabularies end at the same byte, one of two things is compared. Likelihoods: both models have
given the text since the last such place one (ALM, arXiv 2503.20083); p = likelihood ^ (1 / 100) is taken as the chance
of one of two outcomes, and the loss is the Kullback-Leibler divergence of the teacher's from the student's, times 100.
States: the last hidden states there, whose distance is the loss, so the body stays as variants of the original know it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.modeling_outputs import CausalLMOutput

from lepta.core.errors import LeptaError
from lepta.models.load import load_model
from lepta.models.loss import (
    IGNORED,
    linear_cross_entropy,
    logit_rule,
    patch_chunked_loss,
    predictions,
    predictions_of,
    token_losses,
)
from lepta.models.precision import config_of
from lepta.models.states import hidden_distance, last_states
from lepta.training.blocks import Blocks
from lepta.training.precision import bits_of, compute_dtype
from lepta.training.settings import PretrainSettings, TeacherLoss
from lepta.vocabulary.alignment import Aligner
from lepta.vocabulary.source import vocabulary_of

TEMPERATURE = 100.0
LEAST = 1e-6  # of a chance, and of its opposite


@dataclass(frozen=True)
class Teacher:
    """A frozen model, and how its tokens lie beside those of the student."""

    model: Any
    aligner: Aligner
    weight: float  # of its loss beside the usual one
    loss: TeacherLoss = "likelihoods"

    @classmethod
    def load(cls, folder: Path, student: Path, settings: PretrainSettings) -> "Teacher":
        """Load a model folder in the precision that the student's body is trained in."""
        dtype = compute_dtype(settings.body_dtype, config_of(student))
        model = load_model(folder, dtype, bits_of(settings.body_dtype)).requires_grad_(False)
        aligner = Aligner(vocabulary_of(folder), vocabulary_of(student))
        return cls(model, aligner, settings.teacher_weight, settings.teacher_loss)


class TaughtBlocks:
    """Blocks with what the teacher reads: `old_ids`, and which piece of text each token of either belongs to.

    Pieces (`chunks`, `old_chunks`) are numbered within a block; -1 is what both cannot be compared on.
    """

    def __init__(self, blocks: Blocks, aligner: Aligner) -> None:
        self.blocks, self.aligner = blocks, aligner

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each block, in the new vocabulary."""
        return self.blocks.sizes

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        taught: dict[str, list[np.ndarray]] = {"old_ids": [], "chunks": [], "old_chunks": [], "old_position_ids": []}
        pieces = 0
        for place, section in enumerate(self.blocks.sections_of(number)):
            old_ids, old_ends, new_ends = self.aligner.align_ids(section.tolist())
            # A token that opens a text, or that nothing stands before, is not predicted, so neither is its piece.
            first = 1 if place == 0 or self.blocks.documents_apart or self.blocks.start else 0
            taught["old_ids"].append(np.asarray(old_ids, dtype=np.int64))
            taught["chunks"].append(_chunks(new_ends, len(section), first, pieces))
            taught["old_chunks"].append(_chunks(old_ends, len(old_ids), first, pieces))
            taught["old_position_ids"].append(np.arange(len(old_ids)))
            pieces += len(new_ends)
        example = self.blocks[number] | {name: np.concatenate(parts) for name, parts in taught.items()}
        if not self.blocks.documents_apart:
            del example["old_position_ids"]
        return example


def _chunks(ends: np.ndarray, length: int, first: int, offset: int) -> np.ndarray:
    """Which piece each of some tokens belongs to, by where pieces end; pieces before `first` do not count."""
    piece = np.searchsorted(ends, np.arange(length))
    return np.where((piece >= first) & (piece < len(ends)), piece + offset, -1)


def teach(model: Any, teacher: Teacher) -> None:
    """Have a model that is called with examples of `TaughtBlocks` add the teacher's loss to its own, in place.

    LeptaError if the logits of either are no `LogitRule` of its head, or states that are to be compared differ in size.
    """
    patch_chunked_loss(model)
    rule, rule_of_teacher = logit_rule(model), logit_rule(teacher.model)
    for one, found in ((model, rule), (teacher.model, rule_of_teacher)):
        if found is None:
            raise LeptaError(
                f"pretrain.teacher: {type(one).__name__} does more with its head than multiply, scale and cap, so "
                "likelihoods cannot be compared; train without a teacher"
            )
    width, width_of_teacher = (one.get_input_embeddings().weight.shape[1] for one in (model, teacher.model))
    if teacher.loss == "states" and width != width_of_teacher:
        raise LeptaError(
            f"pretrain.teacher: its hidden states have {width_of_teacher} dimensions, those of the model {width}; "
            "expected the original model, or teacher_loss: likelihoods"
        )
    plain = model.forward

    def forward(*args: Any, old_ids: torch.Tensor | None = None, **inputs: Any) -> Any:
        if old_ids is None:
            return plain(*args, **inputs)
        chunks, old_chunks = inputs.pop("chunks"), inputs.pop("old_chunks")
        labels, divisor = inputs.pop("labels"), inputs.pop("num_items_in_batch", None)
        old_inputs = {"input_ids": old_ids, "position_ids": inputs.pop("old_position_ids", None)}
        divisor = (labels[:, 1:] != IGNORED).sum() if divisor is None else divisor
        if teacher.loss == "states":
            with torch.no_grad():
                expected = last_states(teacher.model, **old_inputs)[_ends(old_chunks)]
            states = last_states(model, **inputs)
            loss = linear_cross_entropy(*predictions_of(model, states, labels), divisor, rule)
            return CausalLMOutput(loss=loss + teacher.weight * _apart(expected, states[_ends(chunks)]) / divisor)
        with torch.no_grad():
            of_teacher = token_losses(*predictions(teacher.model, old_ids, **old_inputs), rule_of_teacher)
        predicted = predictions(model, labels, **inputs)
        losses = token_losses(*predicted, rule)
        divergence, shares = compared(losses, of_teacher, chunks[:, 1:], old_chunks[:, 1:])
        # Gradients by the chain rule: in a piece all tokens have the same, so it is a share of their cross-entropy.
        loss = linear_cross_entropy(*predicted, divisor, rule, 1 + teacher.weight * shares)
        value = (losses.sum() + teacher.weight * divergence) / divisor
        return CausalLMOutput(loss=loss + (value - loss).detach())

    model.forward = forward


def _ends(chunks: torch.Tensor) -> torch.Tensor:
    """Whether a token is the last of its piece, shape (B, N); both models have the same pieces in the same order."""
    following = torch.nn.functional.pad(chunks[:, 1:], (0, 1), value=-1)
    return (chunks >= 0) & (chunks != following)


def _apart(expected: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Sum of the distances of hidden states, shapes (E, d)."""
    weights = torch.ones(1, len(expected), device=expected.device)
    return len(expected) * hidden_distance(expected[None].float(), found[None].float(), weights)


def compared(
    losses: torch.Tensor, of_teacher: torch.Tensor, chunks: torch.Tensor, old_chunks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Divergence of the likelihoods of all pieces, and its derivative by the loss of each token of the student.

    Losses are in nats, flat; chunks have the shapes (B, N) and (B, N_old).
    """
    number = 1 + int(max(chunks.max(), old_chunks.max()))
    pieces = len(chunks) * number
    found = -_sums(losses, _places(chunks, number), pieces) / TEMPERATURE
    expected = -_sums(of_teacher, _places(old_chunks, number), pieces) / TEMPERATURE
    # expm1: most pieces are likely, so their p is nearly 1.
    p, t = found.exp().clamp(min=LEAST), expected.exp().clamp(min=LEAST)
    q, u = (-torch.expm1(found)).clamp(min=LEAST), (-torch.expm1(expected)).clamp(min=LEAST)
    divergence = t * (t / p).log() + u * (u / q).log()
    slopes = torch.cat([(q - u) / q, losses.new_zeros(1)])  # by the loss of a piece; nothing for what is in none
    return TEMPERATURE * divergence.sum(), slopes[_places(chunks, number)]


def _places(chunks: torch.Tensor, number: int) -> torch.Tensor:
    """Numbers of pieces over all rows, flat; -1 stays."""
    rows = torch.arange(len(chunks), device=chunks.device)[:, None] * number
    return torch.where(chunks < 0, -1, rows + chunks).flatten()


def _sums(losses: torch.Tensor, places: torch.Tensor, number: int) -> torch.Tensor:
    kept = places >= 0
    return losses.new_zeros(number).index_add(0, places[kept], losses[kept])
