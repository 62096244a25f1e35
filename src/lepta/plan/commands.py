"""What commands that train cost on this machine: steps, tokens, operations and time, for their `--dry-run`."""

import tempfile
from pathlib import Path
from typing import Any

from lepta.distillation.settings import DistillSettings
from lepta.models.load import load_tokenizer, opened
from lepta.plan.devices import this_machine
from lepta.plan.distillation import distillation_cost
from lepta.plan.outline import plan_stages
from lepta.plan.plan import amounts
from lepta.plan.shapes import Shape, shape_of
from lepta.plan.training import OLD_TOKENS
from lepta.training.settings import PretrainSettings
from lepta.training.tune import TuneCommand
from lepta.vocabulary.change import new_ids


def pretraining_cost(model: Path, original: str | Path | None, settings: PretrainSettings) -> dict[str, Any]:
    """Cost of pre-training from a model folder; without the `original` all its rows are taken to be new."""
    shape = shape_of(str(model))
    first_new = 0
    if original:
        first_new = shape.rows - len(new_ids(original, model))
    [stage] = plan_stages([settings], shape, first_new)
    return _cost(shape, stage.steps, settings.tokens + stage.swept, stage.operations)


def distilling_cost(model: Path, original: Path, settings: DistillSettings) -> dict[str, Any]:
    """Cost of distillation from one model folder to another; the original is taken to need twice as many tokens."""
    shape, old_rows = shape_of(str(model)), shape_of(str(original)).rows
    cost = distillation_cost(settings, shape, old_rows, len(new_ids(original, model)), OLD_TOKENS)
    return _cost(shape, None, settings.tokens, cost.operations)


def tuning_cost(model: str, command: TuneCommand) -> dict[str, Any]:
    """Cost of tuning at most, without a preference step: its conversations are read and tokenised."""
    with tempfile.TemporaryDirectory() as work, opened(model) as source:
        tokenizer, shape = load_tokenizer(source.folder), shape_of(str(source.folder))
        tokens, steps = command.size(tokenizer, Path(work))
    return _cost(shape, steps, tokens, 6 * shape.weights * tokens)  # of a weight: forward, backward, its gradient


def _cost(shape: Shape, steps: int | None, tokens: int, operations: int) -> dict[str, Any]:
    machine = this_machine()
    cost: dict[str, Any] = {"weights": shape.weights, **machine.gigaflops}
    if steps is not None:
        cost["steps"] = steps
    return cost | amounts("", tokens, operations, machine)
