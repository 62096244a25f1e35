"""`lepta calibrate`: the stages of self-calibration and a report, in one folder."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lepta.calibration.calibrate import SHOWN, Place, calibration_stages, counts_of
from lepta.calibration.effect import EffectSettings, measure_effect
from lepta.calibration.prompts import read_prompts
from lepta.calibration.rows import stored_rows
from lepta.calibration.settings import CalibrateSettings
from lepta.checkpoints.folder import Checkpoint
from lepta.errors import LeptaError
from lepta.pipeline import MANIFEST, Stage
from lepta.plan.devices import this_machine
from lepta.training.alone import facts_of, run_stages
from lepta.training.distributed import processes

CHARACTERS_PER_TOKEN = 3  # of text in the original vocabulary, for an estimate


def calibrate_folder(
    propagated: Path,
    original: Place,
    settings: CalibrateSettings,
    effect: EffectSettings,
    apart_from: Sequence[str],
    seed: int,
    output: Path,
    force: bool,
) -> dict[str, Any]:
    """Calibrate a model folder; goes on where an earlier run of the same command stopped.

    Parameters
    ----------
    propagated : Path
    original : Place
        The instruct model with its own vocabulary.
    settings : CalibrateSettings
    effect : EffectSettings
        What the report measures.
    apart_from : sequence of str
        Text that copies must not be from.
    seed : int
    output : Path
        For a folder of each stage: `answers`, `grades`, `examples`, `model`, `report`.
    force : bool
        Start over.

    Returns
    -------
    dict
        Counts of all stages, and what the report measured.

    Raises
    ------
    LeptaError
        If the output holds folders of these names that are no stages.
    """
    Checkpoint(propagated)
    stages = calibration_stages(output, str, propagated, original, settings, apart_from, seed)
    models = {"propagated": propagated, "calibrated": output / "model"}
    stages.append(
        Stage(
            "report",
            models | {"answers": output / "answers"} | original.inputs,
            effect.model_dump(exclude={"target", "source"}),
            partial(_report, models, original, output, effect),
            {label: names for label, names in (("target", effect.target), ("source", effect.source)) if names},
        )
    )
    for stage in stages:
        folder = output / stage.name
        if folder.exists() and not (folder / MANIFEST).is_file():
            raise LeptaError(f"{folder}: exists and is none of this command's; give another --output")
    run_stages(output, stages, force)
    if not processes().is_main_process:
        return {}
    return counts_of(output, str) | facts_of(output / "report")


def _report(
    models: dict[str, Path], original: Place, output: Path, settings: EffectSettings, folder: Path
) -> dict[str, Any]:
    shown = [row["messages"] for row in stored_rows(output / "answers" / SHOWN)]
    files = original.inputs.get("model")
    found = measure_effect(models, files, shown, settings, {"counts": counts_of(output, str)}, folder)
    measured = ("bits_per_byte", "tasks", "new_token_share")
    return {name: {measure: model[measure] for measure in measured} for name, model in found.items()}


def cost(propagated: Path, settings: CalibrateSettings) -> dict[str, Any]:
    """Tell what calibration costs at most, from the prompts and this machine's speed (one matrix product is timed).

    The original model is taken to be as large as the propagated one; a judge is not in the hours. They count products
    of matrices at their full speed: answers, written token by token, take longer the fewer are written at once.
    """
    counts: Counter[str] = Counter()
    prompts = itertools.islice(read_prompts(settings.prompts, settings.limit, counts), settings.shown, None)
    characters = sum(len(message["content"]) for prompt in prompts for message in prompt.messages)
    asked = max(counts["prompts"] - settings.shown, 0)
    checkpoint, machine = Checkpoint(propagated), this_machine()
    weights = sum(math.prod(entry.shape) for entry in checkpoint.entries.values())
    answers = asked * settings.answers.samples
    read = characters / CHARACTERS_PER_TOKEN * settings.answers.samples
    written = answers * settings.answers.max_tokens
    copied = settings.copies.number * settings.copies.characters * 2 / CHARACTERS_PER_TOKEN
    trained = (characters / CHARACTERS_PER_TOKEN + asked * settings.answers.max_tokens) + copied
    trained *= settings.tune.epochs
    per_second = machine.tflops * 1e12 * (machine.share or 0.4)
    examples = asked + settings.copies.number
    return {
        "prompts": counts["prompts"],
        "shown": counts["prompts"] - asked,
        "duplicate": counts["duplicate"],
        "answers": answers,
        "answer_tokens_at_most": written,
        "grades": round(answers * (1 + settings.judge.repeat_share)) if settings.judge else 0,
        "copies": settings.copies.number,
        "steps_at_most": -(-examples * settings.tune.epochs // settings.tune.batch),
        "training_tokens_at_most": round(trained),
        "hours_of_answers_at_full_speed": round(2 * weights * (read + written) / per_second / 3600, 2),
        "hours_of_training_at_full_speed": round(6 * weights * trained / per_second / 3600, 2),
    }
