"""What self-calibration costs at most: answers, grades, steps, tokens and operations."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

from lepta.calibration.settings import CalibrateSettings
from lepta.models.folder import Checkpoint
from lepta.plan.devices import this_machine

CHARACTERS_PER_TOKEN = 3  # of text in the original vocabulary, for an estimate


def calibration_cost(settings: CalibrateSettings, weights: int) -> dict[str, int]:
    """Count what the calibration of one variant costs at most, from its prompts.

    `weights` are those of the propagated model; the original, which answers, is taken to be as large. A judge is not
    counted. LeptaError if the prompts cannot be read, or all of them are put aside.
    """
    from lepta.calibration.prompts import check_asked, read_prompts  # with transformers, which takes seconds

    counts: Counter[str] = Counter()
    characters = 0
    for prompt in itertools.islice(read_prompts(settings.prompts, settings.limit, counts), settings.shown, None):
        characters += sum(len(message["content"]) for message in prompt.messages)
    asked = max(counts["prompts"] - settings.shown, 0)
    check_asked(settings, counts["prompts"], asked)
    copies, tune, max_tokens = settings.copies, settings.tune, settings.answers.max_tokens
    samples = settings.answers.samples
    prompt_tokens = characters / CHARACTERS_PER_TOKEN
    read, written = prompt_tokens * samples, asked * samples * max_tokens
    copied = copies.number * copies.characters * 2 / CHARACTERS_PER_TOKEN  # once to read and once to repeat
    trained = (prompt_tokens + asked * max_tokens + copied) * tune.epochs  # one answer of each prompt is kept
    grades = asked * samples * (1 + settings.judge.repeat_share) if settings.judge else 0
    return {
        "prompts": counts["prompts"],
        "shown": counts["prompts"] - asked,
        "duplicate": counts["duplicate"],
        "answers": asked * samples,
        "answer_tokens_at_most": written,
        "grades": round(grades),
        "copies": copies.number,
        "steps_at_most": -(-(asked + copies.number) * tune.epochs // tune.batch),
        "training_tokens_at_most": round(trained),
        "answer_flops": round(2 * weights * (read + written)),
        "training_flops": round(6 * weights * trained),
    }


def calibration_cost_here(propagated: Path, settings: CalibrateSettings) -> dict[str, Any]:
    """What calibration costs at most, from the prompts and this machine's speed (one matrix product is timed).

    See `calibration_cost`. The hours count products of matrices at their full speed: answers, written token by token,
    take longer the fewer are written at once.
    """
    counted: dict[str, Any] = dict(calibration_cost(settings, Checkpoint(propagated).weights))
    machine = this_machine()
    for part, name in (("answer", "answers"), ("training", "training")):
        counted[f"hours_of_{name}_at_full_speed"] = round(machine.hours(counted.pop(f"{part}_flops")), 2)
    if machine.busy:
        counted["busy"] = machine.busy
    return counted
