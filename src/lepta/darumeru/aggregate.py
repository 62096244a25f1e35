"""From sample scores to tasks, columns and Micro-Avg, with intervals; two models on the same samples.

Nothing is left out silently: a total needs all 17 tasks, each with every sample and no error.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lepta.core.errors import LeptaError
from lepta.core.intervals import wilson
from lepta.darumeru.data import Dataset
from lepta.darumeru.measures import SampleScore, Units
from lepta.darumeru.metrics import COLUMN_SIZES, Counts
from lepta.darumeru.tasks import Definition, Task, tasks

TOTAL = "Micro-Avg"
DRAWS = 1000
CONFIDENCE = 0.95
FEW = 30  # units below which draws of the units alone give intervals that are too narrow, or none wide at all
CHUNK = 1 << 22  # numbers drawn at once: 32 MB


@dataclass(frozen=True)
class TaskResult:
    """Scores of all samples of one task, and what they depend on."""

    task: str
    definition: Definition
    expected: int  # samples that the task has
    scores: Sequence[SampleScore]
    errors: Sequence[str] = ()  # samples that failed, and why
    conditions: Mapping[str, str | int] = field(default_factory=dict)  # as of `conditions_of`

    @property
    def ids(self) -> set[str]:
        """Of the samples."""
        return {score.id for score in self.scores}


def conditions_of(task: Task, dataset: Dataset, shots: int) -> dict[str, str | int]:
    """What must be equal for two results to be compared."""
    return {"version": task.version, "prompt": task.prompt_sha256, "data": dataset.sha256, "shots": shots}


def task_result(task: Task, dataset: Dataset, scores: Sequence[SampleScore], shots: int) -> TaskResult:
    """Put together what a runner has of one task, from the dataset as it was asked and the examples asked for."""
    expected = len(task.samples(dataset))
    return TaskResult(task.name, task.definition, expected, scores, conditions=conditions_of(task, dataset, shots))


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; no interval if there are fewer than two independent units."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class TaskSummary:
    """A task's score, the known numbers that it is the mean of or that stand beside it, and how much it rests on."""

    score: Estimate
    parts: dict[str, float]
    samples: int
    units: int


@dataclass(frozen=True)
class Summary:
    """Scores of one model: of whole tasks, of columns all of whose tasks are whole, and Micro-Avg if all 17 are.

    `refused` maps the other tasks to the reason why they do not count.
    """

    definition: Definition
    tasks: dict[str, TaskSummary]
    columns: dict[str, Estimate]
    micro_avg: Estimate | None
    refused: dict[str, str]


@dataclass(frozen=True)
class Difference:
    """Scores of two models, and the second less the first.

    p is two-sided, from the share of draws on the other side of zero, and never below 1 / (draws + 1).
    """

    first: float
    second: float
    difference: Estimate
    p: float | None


@dataclass(frozen=True)
class _Bootstrap:
    """A score and its values over draws, shape (draws,); none if there are too few units to draw.

    `unseen` is the largest share of units, by Wilson's interval, that may differ from all that were seen.
    """

    value: float
    draws: Counts | None
    unseen: float

    @property
    def estimate(self) -> Estimate:
        if self.draws is None:
            return Estimate(self.value, None, None)
        tail = 100 * (1 - CONFIDENCE) / 2
        low, high = np.percentile(self.draws, [tail, 100 - tail])
        return Estimate(self.value, float(low), float(high))


def summarise(results: Sequence[TaskResult], seed: int = 1, partial: bool = False) -> Summary:
    """Scores of tasks, columns and Micro-Avg with bootstrap intervals over independent units.

    Tasks on the same units (both summaries, MMLU in two languages) are drawn together. LeptaError if a task is missing,
    incomplete or has errors, unless what is whole is asked for (`partial`); if definitions are mixed; if a task is
    there twice or unknown.
    """
    definition, whole, refused = _checked(results)
    if refused and not partial:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise LeptaError(f"no total from part of the tasks: {reasons}")
    known = tasks(definition)
    scores, summaries = {}, {}
    for name, result in whole.items():
        measure = known[name].measure
        units = measure.units(result.scores)
        scores[name] = _bootstrap(known[name], units, seed)
        parts = measure.parts(units.vectors.sum(0)).items()
        known_parts = {part: float(value) for part, value in parts if not np.isnan(value)}
        summaries[name] = TaskSummary(
            _honest(scores[name].estimate, len(units.names)), known_parts, len(result.scores), len(units.names)
        )
    scores = _with_totals(scores, known)
    columns = {name: scores[name].estimate for name in (*COLUMN_SIZES, TOTAL) if name in scores}
    total = columns.pop(TOTAL, None)
    return Summary(definition, summaries, columns, total, refused)


def compare(first: Sequence[TaskResult], second: Sequence[TaskResult], seed: int = 1) -> dict[str, Difference]:
    """Compare two models on the same samples: both get the same draws, so what samples have in common cancels.

    Gives the tasks that are whole in both, then the columns and "Micro-Avg" whose tasks all are. LeptaError if
    definitions, samples or conditions differ, or no task is whole in both.
    """
    definition, whole_first, _ = _checked(first)
    other, whole_second, _ = _checked(second)
    if definition != other:
        raise LeptaError(f"one result is {definition}, the other {other}; run one of the models anew")
    known = tasks(definition)
    both = [name for name in known if name in whole_first and name in whole_second]
    if not both:
        raise LeptaError("no task is whole in both results; there is nothing to compare")
    for name in both:
        _refuse_unlike(whole_first[name], whole_second[name])
    sides = []
    for whole in (whole_first, whole_second):
        scores = {}
        for name in both:
            scores[name] = _bootstrap(known[name], known[name].measure.units(whole[name].scores), seed)
        sides.append(_with_totals(scores, known))
    return {name: _difference(sides[0][name], sides[1][name]) for name in sides[0]}


def _checked(results: Sequence[TaskResult]) -> tuple[Definition, dict[str, TaskResult], dict[str, str]]:
    """The definition all share, results that are whole in the order of the tasks, and why the others are not."""
    definitions: set[Definition] = {result.definition for result in results} or {"current"}
    if len(definitions) > 1:
        raise LeptaError("legacy and current scores are mixed; a table holds one definition only")
    [definition] = definitions
    by_name: dict[str, TaskResult] = {}
    known = tasks(definition)
    for result in results:
        if result.task in by_name:
            raise LeptaError(f"{result.task}: there twice")
        if result.task not in known:
            raise LeptaError(f"{result.task}: no such task")
        by_name[result.task] = result
    whole, refused = {}, {}
    for name, task in known.items():
        if reason := _reason_not_whole(task, by_name.get(name)):
            refused[name] = reason
        else:
            whole[name] = by_name[name]
    return definition, whole, refused


def _reason_not_whole(task: Task, result: TaskResult | None) -> str:
    """Why a task's result does not count; empty if it does."""
    if result is None:
        return "missing"
    if result.errors:
        return f"{len(result.errors)} errors, the first: {result.errors[0]}"
    if len(result.ids) < len(result.scores):
        return f"{len(result.scores) - len(result.ids)} samples are there twice"
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
    if first.ids != second.ids:
        raise LeptaError(f"{first.task}: the results are of different samples; compare runs on the same data")


def _bootstrap(task: Task, units: Units, seed: int) -> _Bootstrap:
    """Score of a task, and of draws of as many units with replacement, within each stratum."""
    value = float(task.measure.score(units.vectors.sum(0)))
    number = len(units.names)
    unseen = wilson(0, number)[1] if number else 1.0
    if number < 2:
        return _Bootstrap(value, None, unseen)
    # Units of equal names are the same units within a dataset, and in MMLU of both languages.
    group = task.dataset
    if group in ("mmlu_ru", "mmlu_en"):
        group = "mmlu"
    sums = [weights @ units.vectors for weights in _weights(units, DRAWS, seed, group)]
    return _Bootstrap(value, task.measure.score(np.concatenate(sums)), unseen)


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
        flat = np.concatenate(chosen, axis=1).ravel()
        yield np.bincount(flat, minlength=number * size).reshape(number, size).astype(float)


def _with_totals(scores: Mapping[str, _Bootstrap], known: Mapping[str, Task]) -> dict[str, _Bootstrap]:
    """Scores of tasks, then of the columns that are whole, then Micro-Avg if all tasks are there."""
    result = dict(scores)
    for column in COLUMN_SIZES:
        names = [name for name, task in known.items() if task.column == column]
        if scores.keys() >= set(names):
            result[column] = _mean([scores[name] for name in names])
    if len(scores) == len(known):
        result[TOTAL] = _mean(list(scores.values()))
    return result


def _honest(estimate: Estimate, units: int) -> Estimate:
    """An interval that is no narrower than Wilson's for a share of so many units, if they are few.

    Draws of four wrong answers are all wrong, which looks certain. Scores of a unit lie between 0 and 1, so a share
    of right ones varies most.
    """
    if units >= FEW or estimate.low is None or estimate.high is None or not 0 <= estimate.value <= 1:
        return estimate
    low, high = wilson(estimate.value, units)
    return Estimate(estimate.value, min(estimate.low, low), max(estimate.high, high))


def _mean(parts: Sequence[_Bootstrap]) -> _Bootstrap:
    value = float(np.mean([part.value for part in parts]))
    draws = [part.draws for part in parts if part.draws is not None]
    unseen = float(np.mean([part.unseen for part in parts]))
    return _Bootstrap(value, np.mean(draws, axis=0) if len(draws) == len(parts) else None, unseen)


def _difference(first: _Bootstrap, second: _Bootstrap) -> Difference:
    value = second.value - first.value
    if first.draws is None or second.draws is None:
        return Difference(first.value, second.value, Estimate(value, None, None), None)
    draws = second.draws - first.draws
    fewer = min(np.sum(draws <= 0), np.sum(draws >= 0))
    p = float(min(1.0, 2 * ((fewer + 1) / (len(draws) + 1))))
    estimate = _Bootstrap(value, draws, first.unseen).estimate
    if np.ptp(draws) == 0:
        # Two models that answered ten units alike need not answer the eleventh alike.
        estimate = Estimate(value, max(-1.0, value - first.unseen), min(1.0, value + first.unseen))
    return Difference(first.value, second.value, estimate, p)
