"""From sample scores to tasks, columns and Micro-Avg, with intervals; two models on the same samples.

Nothing is left out silently: a total needs all 17 tasks, each with every sample and no error.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lepta.core.errors import LeptaError
from lepta.darumeru.data import Dataset
from lepta.darumeru.measures import SampleScore, Units
from lepta.darumeru.metrics import COLUMN_SIZES, Counts
from lepta.darumeru.tasks import Definition, Task, tasks

DRAWS = 1000
CONFIDENCE = 0.95
CHUNK = 1 << 22  # numbers drawn at once


@dataclass(frozen=True)
class TaskResult:
    """Scores of all samples of one task, and what they depend on.

    Attributes
    ----------
    task : str
    definition : Definition
    expected : int
        How many samples the task has.
    scores : sequence of SampleScore
    errors : sequence of str
        Samples that failed, and why.
    conditions : mapping
        What must be equal for two results to be compared: hashes of data and prompt, version, number of shots.
    """

    task: str
    definition: Definition
    expected: int
    scores: Sequence[SampleScore]
    errors: Sequence[str] = ()
    conditions: Mapping[str, str | int] = field(default_factory=dict)


def task_result(
    task: Task, dataset: Dataset, scores: Sequence[SampleScore], shots: int, errors: Sequence[str] = ()
) -> TaskResult:
    """Put together what a runner has of one task.

    Parameters
    ----------
    task : Task
    dataset : Dataset
        As it was asked (after `Dataset.first`, if only a part was).
    scores : sequence of SampleScore
    shots : int
        Examples asked for.
    errors : sequence of str
        Samples that failed, and why.
    """
    conditions: dict[str, str | int] = {
        "version": task.version,
        "prompt": task.prompt_sha256,
        "data": dataset.sha256,
        "shots": shots,
    }
    return TaskResult(task.name, task.definition, len(task.samples(dataset)), scores, errors, conditions)


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; no interval if there are fewer than two independent units.

    Attributes
    ----------
    value : float
    low, high : float or None
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class TaskSummary:
    """A task's score.

    Attributes
    ----------
    score : Estimate
    parts : dict
        Numbers that the score is the mean of, and numbers beside it, as far as they are known.
    samples, units : int
        Samples, and independent units that they make.
    """

    score: Estimate
    parts: dict[str, float]
    samples: int
    units: int


@dataclass(frozen=True)
class Summary:
    """Scores of one model.

    Attributes
    ----------
    definition : Definition
    tasks : dict
        Task -> TaskSummary, of the tasks that are whole.
    columns : dict
        Column -> Estimate, of the columns all of whose tasks are whole.
    micro_avg : Estimate or None
        None if a task is missing or has errors.
    refused : dict
        Task -> why it does not count.
    """

    definition: Definition
    tasks: dict[str, TaskSummary]
    columns: dict[str, Estimate]
    micro_avg: Estimate | None
    refused: dict[str, str]


@dataclass(frozen=True)
class Difference:
    """Second model less first.

    Attributes
    ----------
    first, second : float
        Scores.
    difference : Estimate
    p : float or None
        Two-sided, from the share of draws on the other side of zero; never below 1 / (draws + 1).
    """

    first: float
    second: float
    difference: Estimate
    p: float | None


@dataclass(frozen=True)
class _Drawn:
    """A score and its values over draws, shape (draws,); none if there are too few units to draw."""

    value: float
    draws: Counts | None


def summarise(results: Sequence[TaskResult], draws: int = DRAWS, seed: int = 1, partial: bool = False) -> Summary:
    """Scores of tasks, columns and Micro-Avg with bootstrap intervals over independent units.

    Parameters
    ----------
    results : sequence of TaskResult
        One for each task.
    draws, seed : int
        Of the bootstrap. Tasks on the same units (both summaries, MMLU in two languages) are drawn together.
    partial : bool
        Give what is whole if something is missing; Micro-Avg is None then.

    Raises
    ------
    LeptaError
        If a task is missing, incomplete or has errors and `partial` is not set; if definitions are mixed; if a task is
        there twice or unknown.
    """
    definition, whole, refused = _checked(results)
    if refused and not partial:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise LeptaError(f"no total from part of the tasks: {reasons}")
    known = tasks(definition)
    drawn, summaries = {}, {}
    for name, result in whole.items():
        task = known[name]
        units = task.measure.units(result.scores)
        drawn[name] = _draw(task, units, draws, seed)
        parts = task.measure.parts(units.vectors.sum(0)).items()
        known_parts = {part: float(value) for part, value in parts if not np.isnan(value)}
        summaries[name] = TaskSummary(_estimate(drawn[name]), known_parts, len(result.scores), len(units.names))
    columns, total = _totals(drawn, known)
    return Summary(
        definition,
        summaries,
        {name: _estimate(column) for name, column in columns.items()},
        _estimate(total) if total else None,
        refused,
    )


def compare(
    first: Sequence[TaskResult], second: Sequence[TaskResult], draws: int = DRAWS, seed: int = 1
) -> dict[str, Difference]:
    """Compare two models on the same samples: both get the same draws, so what samples have in common cancels.

    Returns
    -------
    dict
        Name of each task that is whole in both, then of each column and "Micro-Avg" if all their tasks are, to a
        Difference.

    Raises
    ------
    LeptaError
        If definitions, samples or conditions differ, or no task is whole in both.
    """
    definition, mine, _ = _checked(first)
    other, theirs, _ = _checked(second)
    if definition != other:
        raise LeptaError(f"one result is {definition}, the other {other}; run one of the models anew")
    known = tasks(definition)
    both = [name for name in known if name in mine and name in theirs]
    if not both:
        raise LeptaError("no task is whole in both results; there is nothing to compare")
    sides: tuple[dict[str, _Drawn], dict[str, _Drawn]] = ({}, {})
    for name in both:
        _refuse_unlike(mine[name], theirs[name])
        for side, result in zip(sides, (mine[name], theirs[name]), strict=True):
            side[name] = _draw(known[name], known[name].measure.units(result.scores), draws, seed)
    pairs = {name: (sides[0][name], sides[1][name]) for name in both}
    totals = [_totals(side, known) for side in sides]
    pairs |= {name: (totals[0][0][name], totals[1][0][name]) for name in totals[0][0]}
    if totals[0][1] and totals[1][1]:
        pairs["Micro-Avg"] = (totals[0][1], totals[1][1])
    return {name: _difference(*pair) for name, pair in pairs.items()}


def _checked(results: Sequence[TaskResult]) -> tuple[Definition, dict[str, TaskResult], dict[str, str]]:
    """The definition all share, results that are whole in the order of the tasks, and why the others are not."""
    definitions = sorted({result.definition for result in results})
    if len(definitions) > 1:
        raise LeptaError("legacy and current scores are mixed; a table holds one definition only")
    definition: Definition = definitions[0] if definitions else "current"
    by_name: dict[str, TaskResult] = {}
    known = tasks(definition)
    for result in results:
        if result.task not in known or result.task in by_name:
            raise LeptaError(f"{result.task}: {'there twice' if result.task in by_name else 'no such task'}")
        by_name[result.task] = result
    refused = {name: _why_not(task, by_name.get(name)) for name, task in known.items()}
    whole = {name: by_name[name] for name, reason in refused.items() if not reason}
    return definition, whole, {name: reason for name, reason in refused.items() if reason}


def _why_not(task: Task, result: TaskResult | None) -> str:
    """Why a task's result does not count; empty if it does."""
    if result is None:
        return "missing"
    if result.errors:
        return f"{len(result.errors)} errors, the first: {result.errors[0]}"
    different = len({score.id for score in result.scores})
    if different < len(result.scores):
        return f"{len(result.scores) - different} samples are there twice"
    if len(result.scores) != result.expected or not result.expected:
        return f"{len(result.scores)} of {result.expected} samples"
    try:
        task.measure.score(task.measure.units(result.scores).vectors.sum(0))
    except LeptaError as error:  # a part of MMLU that lacks a category
        return str(error)
    return ""


def _refuse_unlike(first: TaskResult, second: TaskResult) -> None:
    keys = {*first.conditions, *second.conditions}
    unlike = sorted(key for key in keys if first.conditions.get(key) != second.conditions.get(key))
    if unlike:
        raise LeptaError(f"{first.task}: the results differ in {', '.join(unlike)}; compare runs of the same settings")
    if {score.id for score in first.scores} != {score.id for score in second.scores}:
        raise LeptaError(f"{first.task}: the results are of different samples; compare runs on the same data")


def _draw(task: Task, units: Units, draws: int, seed: int) -> _Drawn:
    """Score of a task, and of draws of as many units with replacement, within each stratum."""
    value = float(task.measure.score(units.vectors.sum(0)))
    if len(units.names) < 2:
        return _Drawn(value, None)
    sums = [weights @ units.vectors for weights in _weights(units, draws, seed, _group(task))]
    return _Drawn(value, task.measure.score(np.concatenate(sums)))


def _group(task: Task) -> str:
    """What units of equal names are the same in: the dataset, and MMLU in both languages."""
    return "mmlu" if task.dataset in ("mmlu_ru", "mmlu_en") else task.dataset


def _weights(units: Units, draws: int, seed: int, group: str) -> Iterator[Counts]:
    """How often each unit is drawn, a few draws at a time, shape (part of draws, units).

    The numbers depend on seed, group and units alone: whoever scores the same units is drawn alike, and units of other
    groups are drawn by themselves, though published ids are the same numbers in many datasets.
    """
    key = json.dumps([seed, group, units.names, units.strata], ensure_ascii=False)
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))
    strata = np.array(units.strata)
    places = [np.flatnonzero(strata == stratum) for stratum in dict.fromkeys(units.strata)]
    size = len(units.names)
    step = max(1, CHUNK // size)
    for start in range(0, draws, step):
        number = min(step, draws - start)
        offsets = np.arange(number)[:, None] * size
        chosen = [place[generator.integers(0, len(place), (number, len(place)))] + offsets for place in places]
        flat = np.concatenate([part.ravel() for part in chosen])
        yield np.bincount(flat, minlength=number * size).reshape(number, size).astype(float)


def _totals(drawn: Mapping[str, _Drawn], known: Mapping[str, Task]) -> tuple[dict[str, _Drawn], _Drawn | None]:
    """Columns that are whole, and the mean of all tasks if all are there."""
    columns = {}
    for column in COLUMN_SIZES:
        names = [name for name, task in known.items() if task.column == column]
        if all(name in drawn for name in names):
            columns[column] = _mean([drawn[name] for name in names])
    return columns, _mean(list(drawn.values())) if len(drawn) == len(known) else None


def _mean(parts: Sequence[_Drawn]) -> _Drawn:
    draws = [part.draws for part in parts if part.draws is not None]
    value = float(np.mean([part.value for part in parts]))
    return _Drawn(value, np.mean(draws, axis=0) if len(draws) == len(parts) else None)


def _estimate(drawn: _Drawn) -> Estimate:
    if drawn.draws is None:
        return Estimate(drawn.value, None, None)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(drawn.draws, [tail, 100 - tail])
    return Estimate(drawn.value, float(low), float(high))


def _difference(first: _Drawn, second: _Drawn) -> Difference:
    value = second.value - first.value
    if first.draws is None or second.draws is None:
        return Difference(first.value, second.value, Estimate(value, None, None), None)
    draws = second.draws - first.draws
    tails = [(np.sum(draws <= 0) + 1) / (len(draws) + 1), (np.sum(draws >= 0) + 1) / (len(draws) + 1)]
    return Difference(first.value, second.value, _estimate(_Drawn(value, draws)), float(min(1.0, 2 * min(tails))))
