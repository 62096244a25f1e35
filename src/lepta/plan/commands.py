"""What commands that train cost on this machine, for their `--dry-run`: steps, tokens, operations, time and memory."""

import tempfile
from pathlib import Path
from typing import Any

from lepta.core.progress import console
from lepta.distillation.settings import DistillSettings, RepairSettings
from lepta.models.load import device, load_tokenizer, opened
from lepta.plan.devices import this_machine
from lepta.plan.distillation import CHARACTERS_PER_TOKEN, distillation_cost
from lepta.plan.notes import beyond_text
from lepta.plan.outline import plan_stages
from lepta.plan.plan import amounts
from lepta.plan.repair import repair_cost
from lepta.plan.shapes import Shape, shape_of
from lepta.plan.text import count_text
from lepta.plan.training import GIB, OLD_TOKENS, memory, stage_weights
from lepta.training.settings import PretrainSettings, Trains, TuneSettings
from lepta.training.tune import TuneCommand, micro_batch
from lepta.vocabulary.change import new_ids

FEW_STEPS = 10


def pretraining_cost(
    model: Path, original: str | Path | None, settings: PretrainSettings, text: list[str]
) -> dict[str, Any]:
    """Cost of pre-training from a model folder; without the `original` all its rows are taken to be new."""
    for note in beyond_text(None, [settings], count_text(text).characters):
        console.print(f"  note: {note}", highlight=False)
    shape = shape_of(str(model))
    first_new = 0
    if original:
        first_new = shape.rows - len(new_ids(original, model))
    [stage] = plan_stages([settings], shape, first_new)
    cost = _cost(shape, stage.steps, settings.tokens + stage.swept, stage.operations)
    return cost | _memory(shape, settings, first_new)


def distilling_cost(model: Path, original: Path, settings: DistillSettings, text: list[str]) -> dict[str, Any]:
    """Cost of distillation from one model folder to another; the original is taken to need twice as many tokens."""
    shape, old_rows = shape_of(str(model)), shape_of(str(original)).rows
    new_rows = len(new_ids(original, model))
    notes = [settings.too_short_for(new_rows), *beyond_text(settings, [], count_text(text).characters)]
    for note in filter(None, notes):
        console.print(f"  note: {note}", highlight=False)
    steps = round(settings.tokens * CHARACTERS_PER_TOKEN / settings.passage / settings.batch)
    if steps < FEW_STEPS and not settings.head_only:
        console.print(
            f"  note: steps: about {steps}, of {settings.batch} passages each, too few to learn from; more --tokens, a "
            "smaller --batch or a shorter --passage make more",
            highlight=False,
        )
    cost = distillation_cost(settings, shape, old_rows, new_rows, OLD_TOKENS)
    return _cost(shape, None, settings.tokens, cost.operations) | _memory_gib(cost.needs(_on_cpu()))


def repairing_cost(model: Path, original: Path, settings: RepairSettings) -> dict[str, Any]:
    """Cost of repairing a model folder; the original is taken to need twice as many tokens."""
    shape, old_rows = shape_of(str(model)), shape_of(str(original)).rows
    first_new = shape.rows - len(new_ids(original, model))
    cost = repair_cost(settings, shape, old_rows, first_new, OLD_TOKENS)
    machine = this_machine()
    said: dict[str, Any] = {"weights": shape.weights, **machine.gigaflops}
    said |= amounts("states_", settings.tokens, cost.states, machine)
    if settings.head_tokens:
        said |= amounts("head_", settings.head_tokens, cost.head.operations, machine)
    return said | _memory_gib(cost.needs(_on_cpu()))


def tuning_cost(model: str, command: TuneCommand) -> dict[str, Any]:
    """Cost of tuning at most, without a preference step: its conversations are read and tokenised."""
    with tempfile.TemporaryDirectory() as work, opened(model) as source:
        tokenizer, shape = load_tokenizer(source.folder), shape_of(str(source.folder))
        rows, steps = command.size(tokenizer, Path(work))
    tokens, longest = int(rows.sizes.sum()), int(rows.sizes.max())
    cost = _cost(shape, steps, tokens, 6 * shape.weights * tokens)  # of a weight: forward, backward, its gradient
    return cost | _memory(shape, _as_pretraining(command.settings, longest), shape.rows)


def _as_pretraining(settings: TuneSettings, longest: int) -> PretrainSettings:
    """Pre-training that takes the memory of tuning: its blocks are as long as the longest row, and no row is new."""
    trains: Trains = "embeddings+lora"
    if settings.trains == "full":
        trains = "full"
    elif settings.trains == "lora":
        trains = "new-rows+lora"
    return PretrainSettings(
        tokens=longest,
        trains=trains,
        block=max(longest, 8),
        batch=settings.batch,
        micro_batch=micro_batch(settings, settings.batch),
        lora=settings.lora,
        body_dtype=settings.body_dtype,
        gradient_checkpointing=settings.gradient_checkpointing,
    )


def _memory(shape: Shape, settings: PretrainSettings, first_new: int) -> dict[str, float]:
    """What one process takes, with this machine's device; a CPU is taken to compute in float32."""
    return _memory_gib(memory(shape, settings, stage_weights(shape, settings, first_new), cpu=_on_cpu()).total)


def _memory_gib(needed: float) -> dict[str, float]:
    return {"memory_gib": round(needed / GIB, 1)}


def _on_cpu() -> bool:
    return device().type == "cpu"


def _cost(shape: Shape, steps: int | None, tokens: int, operations: int) -> dict[str, Any]:
    machine = this_machine()
    cost: dict[str, Any] = {"weights": shape.weights, **machine.gigaflops}
    if steps is not None:
        cost["steps"] = steps
    return cost | amounts("", tokens, operations, machine)
