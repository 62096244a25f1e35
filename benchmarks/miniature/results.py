"""The numbers of all seeds together: collected from the stages, with means and intervals over seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t

from benchmarks.miniature.measures import COPIES
from benchmarks.miniature.settings import ScaleSettings
from benchmarks.miniature.stages import LEP, MODELS, SCENARIOS, SCORES, SHARED_MODELS, SPEED, scores_of
from lepta.core.output import MANIFEST
from lepta.core.reading import read_json
from lepta.stages import environment
from lepta.training.distributed import CURVE

RESULTS = "results.json"
CONFIDENCE = 0.95
HIGHER_IS_BETTER = {"accuracy", *COPIES}


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, and the half width of its 95 % interval by Student's t (NaN for one seed)."""

    mean: float
    half_width: float

    @staticmethod
    def of(values: Sequence[float]) -> "Estimate":
        """From one value for each seed."""
        number = len(values)
        if number < 2:
            return Estimate(statistics.fmean(values), math.nan)
        quantile = float(t.ppf(0.5 + CONFIDENCE / 2, number - 1))
        return Estimate(statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(number))

    @property
    def differs_from_zero(self) -> bool:
        """Whether the interval leaves 0 out."""
        return abs(self.mean) > self.half_width


def collect(name: str, scale: ScaleSettings, work: Path) -> dict[str, Any]:
    """Gather what the stages of all seeds measured."""
    seeds = range(1, scale.seeds + 1)
    return {
        "scale": name,
        "settings": scale.model_dump(),
        "environment": environment(),
        "seeds": {str(seed): _seed(work / f"seed-{seed}") for seed in seeds},
        "stage_seconds": sum(read_json(file)["seconds"] for file in work.glob(f"seed-*/**/{MANIFEST}")),
    }


def _seed(folder: Path) -> dict[str, Any]:
    return {
        "weights": read_json(folder / "random" / MANIFEST)["facts"]["weights"],
        "models": scores(folder, SHARED_MODELS),
        "foundation_curve": _measured(folder / "foundation"),
        "vocabularies": {scenario: _vocabulary(folder / scenario) for scenario in SCENARIOS},
    }


def _vocabulary(folder: Path) -> dict[str, Any]:
    maps = read_json(folder / "auto" / MANIFEST)["facts"]["maps"]
    return {
        "models": scores(folder, MODELS),
        "speed": read_json(folder / "speed" / SPEED),
        "size": read_json(folder / "vocabulary" / MANIFEST)["facts"]["new_size"],
        "kept": read_json(folder / "vocabulary" / MANIFEST)["facts"]["kept"],
        "curve": _measured(folder / "adapted"),
        "auto": {name: fit["method"] for name, fit in maps.items()},
        "held_out_errors": {name: fit["held_out"].get("errors", {}) for name, fit in maps.items()},
    }


def scores(folder: Path, models: dict[str, str]) -> dict[str, Any]:
    """What was measured of each model, by name; `folder` has their stages."""
    return {name: read_json(folder / scores_of(stage) / SCORES) for name, stage in models.items()}


def _measured(folder: Path) -> list[dict[str, float]]:
    """The measurements along a training, without the losses of its steps."""
    return [entry for entry in read_json(folder / CURVE)["curve"] if "loss" not in entry]


@dataclass(frozen=True)
class Table:
    """Access to the results by vocabulary, model, language and measure."""

    results: dict[str, Any]

    def values(self, scenario: str | None, model: str, language: str, measure: str) -> list[float]:
        """One value for each seed; scenario None: a model that all vocabularies share."""
        seeds = self.results["seeds"].values()
        places = (seed if scenario is None else seed["vocabularies"][scenario] for seed in seeds)
        return [place["models"][model][language][measure] for place in places]

    def estimate(self, scenario: str | None, model: str, language: str, measure: str) -> Estimate:
        """Mean and interval over seeds."""
        return Estimate.of(self.values(scenario, model, language, measure))

    def difference(self, scenario: str, model: str, other: str, language: str, measure: str) -> Estimate:
        """`model` less `other`, seed by seed."""
        return Estimate.of(self.differences(scenario, model, other, language, measure))

    def differences(self, scenario: str, model: str, other: str, language: str, measure: str) -> list[float]:
        """`model` less `other`, a number for each seed."""
        pairs = zip(*(self.values(scenario, name, language, measure) for name in (model, other)), strict=True)
        return [one - two for one, two in pairs]

    def speed(self, scenario: str, work: str) -> Estimate:
        """Characters per second of Russian, as times those of the original."""
        return Estimate.of([seed["vocabularies"][scenario]["speed"][work] for seed in self.results["seeds"].values()])

    def best(self, scenario: str, language: str = "ru", measure: str = "answers") -> str:
        """The map with the best mean: the fewest bits, or of other measures the highest."""
        sign = -1 if measure in HIGHER_IS_BETTER else 1
        return min(LEP, key=lambda method: sign * self.estimate(scenario, method, language, measure).mean)

    def gap_closed(self, scenario: str, method: str, language: str = "ru", measure: str = "answers") -> float:
        """How much of the way from `swap` to the upper bound a map goes; NaN if `swap` is not worse than that."""
        swap, upper, own = (
            self.estimate(scenario, name, language, measure).mean for name in ("swap", "upper bound", method)
        )
        sign = -1 if measure in HIGHER_IS_BETTER else 1
        return (swap - own) / (swap - upper) if sign * (swap - upper) > 0 else math.nan
