"""What token distillation costs: operations of its two phases, and memory."""

import math
from dataclasses import dataclass

from lepta.distillation.settings import HELD_OUT, HELD_OUT_SHARE, DistillSettings
from lepta.plan.shapes import Shape
from lepta.plan.training import activation_bytes_per_token, lora_weights, overhead
from lepta.training.settings import Lora, PretrainSettings, Trains

CHARACTERS_PER_TOKEN = 4  # of a vocabulary made for the language
READ = 2  # times held-out passages are read by the student: with the first rows, and with the inputs that were learned
PULLS = 3  # of a tied model, each measured: lepta.distillation.tie
TRAINED_BYTES = 16  # of a float32 number that trains: itself, its gradient and AdamW's two moments
LEAST_CHARACTERS = 2  # in a token, of the longest passage of a batch: what fills memory
FITTED_AT_ONCE, COPIES = 1024, 4  # positions of a step of the head; logits, exponentials and gradients, float32
# Bytes of a token of both vocabularies in Python. SmolLM2 with 1,000 new tokens on a CPU: 0.18 GiB beside the modules,
# and 1.4 to 1.6 GiB at most of all (1.3 by these formulas).
TOKEN_BYTES = 1_900
BYTES = {"float32": 4}  # of a number of the body; the other precisions have 2


@dataclass(frozen=True)
class DistillationCost:
    """Operations of the whole run, and bytes that one process holds at most.

    `memory` is what is on the GPU, if there is one, without torch itself; `vocabularies` are in main memory.
    """

    input_flops: int
    head_flops: int
    measuring_flops: int
    memory: int
    vocabularies: int

    @property
    def operations(self) -> int:
        """Of both phases, with what is measured between their steps."""
        return self.input_flops + self.head_flops + self.measuring_flops

    def needs(self, cpu: bool) -> float:
        """Bytes that one process takes of the device that computes, Python and torch among them."""
        return self.memory + overhead(self.memory, cpu) + (self.vocabularies if cpu else 0)


NO_DISTILLATION = DistillationCost(0, 0, 0, 0, 0)


def distillation_cost(
    settings: DistillSettings, after: Shape, old_rows: int, new_rows: int, old_per_new: float
) -> DistillationCost:
    """Count products of matrices; attention is left out, since passages of 400 characters need little of it.

    `after` has the new vocabulary, the original model `old_rows` rows; `new_rows` learn. `old_per_new` is the number of
    old tokens that a new token replaces in the text.
    """
    layer = settings.layer or math.ceil(after.layers / 3)
    lower = after.body * min(layer, after.layers) // after.layers
    inputs = settings.tokens * lower * (4 + 2 * old_per_new)  # the student forward and back, the teacher forward
    if settings.head_only:
        inputs = 0
    positions = min(settings.tokens, settings.head_tokens)
    row = 2 * after.width
    states: float = positions * (2 * after.body + after.rows * row)
    weights = settings.text_weights
    if min(weights) < 1:
        states += positions * old_per_new * (2 * after.body + old_rows * row)
    epochs = settings.epochs_over(positions)
    fits = len(weights) * epochs * positions * new_rows * row * 3
    held_out = min(HELD_OUT * settings.passage / CHARACTERS_PER_TOKEN, settings.tokens * HELD_OUT_SHARE)
    measuring = measurements(settings, after.tied) * held_out * (2 * after.body + after.rows * row)
    measuring += held_out * old_per_new * (2 * after.body + old_rows * row)  # by the original, once
    memory = _memory(settings, after, old_rows, new_rows, min(layer, after.layers))
    vocabularies = (after.rows + old_rows) * TOKEN_BYTES
    return DistillationCost(round(inputs), round(states + fits), round(measuring), memory, vocabularies)


def _memory(settings: DistillSettings, after: Shape, old_rows: int, new_rows: int, layers: int) -> int:
    """Bytes of both models, of what learns, and of the phase that takes more: inputs through `layers`, or the head."""
    size = BYTES.get(settings.body_dtype, 2)
    matrices = after.matrices + (1 if settings.untie and after.tied else 0)
    tables = (matrices * (after.rows + old_rows) + after.rows) * after.width * size  # frozen rows of the head twice
    low_rank = Lora(rank=settings.lora_rank or 1, layers=list(range(layers)))
    learned = matrices * new_rows * after.width
    if settings.lora_rank:
        learned += lora_weights(after, low_rank)
    trains: Trains = "new-rows+lora" if settings.lora_rank else "new-rows"
    training = PretrainSettings(tokens=settings.tokens, trains=trains, lora=low_rank)
    read = (settings.micro_batch or settings.batch) * settings.passage // LEAST_CHARACTERS
    inputs = read * layers * activation_bytes_per_token(after, training, size)
    states = 2 * min(settings.tokens, settings.head_tokens) * after.width * size
    head = states + FITTED_AT_ONCE * new_rows * BYTES["float32"] * COPIES
    bodies = after.body * (2 if settings.head_only else 1)
    return bodies * size + tables + learned * TRAINED_BYTES + max(inputs, head)


def measurements(settings: DistillSettings, tied: bool) -> int:
    """How often held-out passages are read by the student, those of the source language among them."""
    if settings.head_only:
        return 3  # both languages once, and the source language after the last step
    of_target = READ + PULLS if tied and not settings.untie else READ
    return of_target + 2 if settings.lora_rank else of_target
