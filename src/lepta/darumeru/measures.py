"""From the scores of samples to the score of a task, in a form that a bootstrap can draw thousands of times.

A measure turns the samples of each unit (a pair, a document, a variant of the exam) into a vector of counts and sums;
the score is a function of the sum of these vectors over units. A bootstrap over units is then one matrix product.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lepta.darumeru.metrics import Counts, accuracy, category_mean, macro_f1, matthews
from lepta.darumeru.subjects import CATEGORIES, SUBJECTS


@dataclass(frozen=True)
class SampleScore:
    """The score of one sample."""

    id: str  # unique in the task
    unit: str  # samples of one unit are not independent of each other
    stratum: str  # group of units that keeps its size in a bootstrap
    values: Mapping[str, float]  # that the task's measure reads


def _sums(scores: Sequence[SampleScore], names: Iterable[str]) -> list[float]:
    """Sum of each value over samples; not a number if a sample has none."""
    sums = []
    for name in names:
        sums.append(sum(score.values.get(name, math.nan) for score in scores))
    return sums


@dataclass(frozen=True)
class Units:
    """Independent units of a task: names, strata, and vectors of shape (units, width)."""

    names: tuple[str, ...]
    strata: tuple[str, ...]
    vectors: Counts


@dataclass(frozen=True, kw_only=True)
class Measure(ABC):
    """How samples become a task's score: the unweighted mean of the parts named in `headline`.

    `side` names values whose mean over samples is reported beside the score (not a number if a sample has none).
    """

    headline: tuple[str, ...]
    side: tuple[str, ...] = ()

    @abstractmethod
    def vector(self, scores: Sequence[SampleScore]) -> Sequence[float]:
        """Numbers of one unit, to be summed over units."""

    @abstractmethod
    def parts_of(self, totals: Counts) -> dict[str, Counts]:
        """Named numbers from sums of vectors, shape (..., width)."""

    def units(self, scores: Iterable[SampleScore]) -> Units:
        """Group samples by unit, sorted: the order in which samples were answered changes nothing."""
        groups: dict[tuple[str, str], list[SampleScore]] = {}
        for score in scores:
            groups.setdefault((score.stratum, score.unit), []).append(score)
        keys = sorted(groups)
        vectors = []
        for group in map(groups.__getitem__, keys):
            vectors.append([*self.vector(group), *_sums(group, self.side), len(group)])
        return Units(tuple(unit for _, unit in keys), tuple(stratum for stratum, _ in keys), np.array(vectors, float))

    def parts(self, totals: Counts) -> dict[str, Counts]:
        """All named numbers, those of `side` last, from sums of vectors of shape (..., width)."""
        samples = totals[..., -1]
        own = totals.shape[-1] - len(self.side) - 1
        side = {name: totals[..., own + i] / samples for i, name in enumerate(self.side)}
        return self.parts_of(totals[..., :own]) | side

    def score(self, totals: Counts) -> Counts:
        """The task's score, from sums of vectors of shape (..., width)."""
        parts = self.parts(totals)
        return np.mean([parts[name] for name in self.headline], axis=0)


@dataclass(frozen=True, kw_only=True)
class Means(Measure):
    """Means of values over samples."""

    def vector(self, scores: Sequence[SampleScore]) -> list[float]:
        """Sums of the values, and the number of samples."""
        return [*_sums(scores, self.headline), len(scores)]

    def parts_of(self, totals: Counts) -> dict[str, Counts]:
        """One mean for each name."""
        return {name: totals[..., i] / totals[..., -1] for i, name in enumerate(self.headline)}


@dataclass(frozen=True, kw_only=True)
class UnitShares(Measure):
    """Mean over units of the points reached in a unit by the points to be had there (USE)."""

    headline: tuple[str, ...] = ("grade",)

    def vector(self, scores: Sequence[SampleScore]) -> list[float]:
        """Share of the unit's points, and 1."""
        return [sum(s.values["points"] for s in scores) / sum(s.values["most"] for s in scores), 1]

    def parts_of(self, totals: Counts) -> dict[str, Counts]:
        """Mean over units."""
        return {self.headline[0]: totals[..., 0] / totals[..., 1]}


@dataclass(frozen=True, kw_only=True)
class AllRight(UnitShares):
    """Share of units with no wrong answer (PARus: both orders of the options)."""

    headline: tuple[str, ...] = ("pairs",)
    side: tuple[str, ...] = ("correct",)

    def vector(self, scores: Sequence[SampleScore]) -> list[float]:
        """Whether all are right, and 1."""
        return [min(score.values["correct"] for score in scores), 1]


@dataclass(frozen=True, kw_only=True)
class Labels(Measure):
    """Accuracy, macro-F1 and Matthews correlation of labels, from their confusion matrix."""

    labels: int

    def vector(self, scores: Sequence[SampleScore]) -> list[float]:
        """Confusion matrix of the unit, row by row; its last column counts answers that are no label."""
        matrix = [0.0] * self.labels * (self.labels + 1)
        for score in scores:
            matrix[int(score.values["gold"]) * (self.labels + 1) + int(score.values["answer"])] += 1
        return matrix

    def parts_of(self, totals: Counts) -> dict[str, Counts]:
        """All three, whichever are in the headline."""
        matrix = totals.reshape(*totals.shape[:-1], self.labels, self.labels + 1)
        return {"accuracy": accuracy(matrix), "macro_f1": macro_f1(matrix), "matthews": matthews(matrix)}


@dataclass(frozen=True, kw_only=True)
class SubjectMeans(Measure):
    """Mean per subject, then per category, then of the categories; a sample's stratum is its subject (MMLU)."""

    headline: tuple[str, ...] = CATEGORIES

    def vector(self, scores: Sequence[SampleScore]) -> list[float]:
        """Right answers of each subject, then questions of each subject."""
        right, asked = [0.0] * len(SUBJECTS), [0.0] * len(SUBJECTS)
        for score in scores:
            place = SUBJECTS.index(score.stratum)
            right[place] += score.values["correct"]
            asked[place] += 1
        return right + asked

    def parts_of(self, totals: Counts) -> dict[str, Counts]:
        """Mean of each category, and the plain accuracy over questions."""
        right, asked = np.split(totals, 2, axis=-1)
        return category_mean(right, asked, SUBJECTS) | {"accuracy": right.sum(-1) / asked.sum(-1)}
