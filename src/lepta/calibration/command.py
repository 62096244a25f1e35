"""`lepta calibrate`: the stages of self-calibration and a report, in one folder."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lepta.calibration.calibrate import SHOWN, Place, calibration_stages, counts_of
from lepta.calibration.effect import measure_effect
from lepta.calibration.settings import CalibrateSettings, EffectSettings
from lepta.core.errors import LeptaError
from lepta.core.journal import read_rows
from lepta.core.output import MANIFEST
from lepta.core.stages import Stage
from lepta.models.folder import Checkpoint
from lepta.plan.calibration import calibration_cost
from lepta.plan.devices import this_machine
from lepta.plan.plan import MFU
from lepta.training.alone import facts_of, run_stages
from lepta.training.distributed import processes


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
    shown = [row["messages"] for row in read_rows(output / "answers" / SHOWN)]
    files = original.inputs.get("model")
    found = measure_effect(models, files, shown, settings, {"counts": counts_of(output, str)}, folder)
    measured = ("bits_per_byte", "tasks", "new_token_share")
    return {name: {measure: model[measure] for measure in measured} for name, model in found.items()}


def cost(propagated: Path, settings: CalibrateSettings) -> dict[str, Any]:
    """Tell what calibration costs at most, from the prompts and this machine's speed (one matrix product is timed).

    See `calibration_cost`. The hours count products of matrices at their full speed: answers, written token by token,
    take longer the fewer are written at once.
    """
    weights = sum(math.prod(entry.shape) for entry in Checkpoint(propagated).entries.values())
    counted: dict[str, Any] = dict(calibration_cost(settings, weights))
    machine = this_machine()
    per_hour = machine.tflops * 1e12 * (machine.share or MFU) * 3600
    for part, name in (("answer", "answers"), ("training", "training")):
        counted[f"hours_of_{name}_at_full_speed"] = round(counted.pop(f"{part}_flops") / per_hour, 2)
    return counted
