"""Charts as inline SVG, styled by the page they are on: a value along training, and scores with their intervals.

The geometry is here, the drawing in `curve.svg.j2` and `scores.svg.j2`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from lepta.report.page import render

Point = tuple[float, float]  # tokens seen, value

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 640, 76, 22, 14, 62  # of a chart and its margins, in its own units
NAMES, ROW, SCALE = 190, 26, 28  # of a chart of scores: width of the names, height of a row and of the scale below
SMOOTH_OVER = 40  # the bold loss line is a mean over one part in so many of the steps
MOST_DOTS = 60  # that can be told apart
APART = 16  # between two labels


@dataclass(frozen=True)
class Axes:
    """Where values stand: from left to right 0 to `end`, from top to floor the last to the first of `levels`."""

    height: int
    end: float
    levels: list[float]
    width: int = WIDTH
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP

    @property
    def floor(self) -> int:
        """Height of the horizontal axis."""
        return self.height - BOTTOM

    def x(self, value: float) -> float:
        """Place of a value on the horizontal axis."""
        return round(self.left + value / self.end * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """Place of a value on the vertical axis."""
        low, high = self.levels[0], self.levels[-1]
        return round(self.top + (high - value) / (high - low) * (self.floor - self.top), 1)


def curve_chart(points: Sequence[Point], label: str, height: int, smooth: bool = False) -> Markup:
    """Draw values against tokens seen: measurements as dots on a line, or with `smooth` their mean over a thin line.

    The chart is empty if there are fewer than two.
    """
    if len(points) < 2:
        return Markup()
    values, end = [value for _, value in points], points[-1][0]
    axes = Axes(height, end or 1.0, _ticks(min(values), max(values), 4))
    view = {
        "axes": axes,
        "below": "tokens seen",
        "beside": label,
        "ticks": [tick for tick in _ticks(0, end, 5) if tick <= axes.end * 1.001],
        "thin": [],
        "curve": points,
        "dots": [],
        "first": values[0],
        "last": values[-1],
    }
    if not smooth and len(points) <= MOST_DOTS:
        view["dots"] = points
    if smooth and (mean := _smoothed(points)):
        view |= {"thin": points, "curve": mean}
    return Markup(render("curve.svg.j2", view))


def density_chart(models: Sequence[tuple[str, float, float]]) -> Markup:
    """Draw models, each with its name, by characters per token (right is cheaper) and bits per byte (low is better)."""
    _, densities, bits = zip(*models, strict=True)
    ticks = _ticks(0, max(densities) * 1.05, 5)
    axes = Axes(320, ticks[-1], _ticks(min(bits), max(bits), 4))
    view = {
        "axes": axes,
        "below": "characters per token",
        "beside": "bits per byte",
        "ticks": ticks,
        "models": models,
        "labels": _apart(list(map(axes.y, bits))),
    }
    return Markup(render("density.svg.j2", view))


def _apart(places: Sequence[float]) -> list[float]:
    """Where labels stand that would be at these heights, moved down so that none covers another."""
    moved = [0.0] * len(places)
    last = -math.inf
    for number in sorted(range(len(places)), key=lambda number: places[number]):
        last = moved[number] = max(places[number], last + APART)
    return moved


def score_chart(rows: Sequence[Mapping[str, Any]], models: Sequence[str]) -> Markup:
    """Draw scores with their 95 % intervals, a row for each, of one model or two.

    A row has `title`, `kind` ("task" or what stands for several) and `scores`: for each model `value`, `low` and `high`
    (None without an interval), or None. Rows without a score are left out, and the chart is empty without any. The
    names of the `models` show when one points at a mark.
    """
    shown = [row for row in rows if any(row["scores"])]
    if not shown:
        return Markup()
    low, high = 0.0, 1.0
    for row in shown:
        for score in filter(None, row["scores"]):
            start, end = _interval(score)
            low, high = min(low, start), max(high, end)
    ticks = _ticks(low, high, 5)

    def x(value: float) -> float:
        return round(NAMES + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (WIDTH - NAMES - RIGHT), 1)

    middle = [TOP + ROW * (row + 0.5) for row in range(len(shown))]

    def y(row: int, place: int) -> float:
        """Where the mark of a model is; those of two models are a third of a row apart."""
        return middle[row] + (place - (len(models) - 1) / 2) * ROW / 3

    view = {
        "rows": shown,
        "models": models,
        "width": WIDTH,
        "height": TOP + ROW * len(shown) + SCALE + 2,
        "top": TOP,
        "scale": SCALE,
        "names": NAMES,
        "middle": middle,
        "x": x,
        "y": y,
        "interval": _interval,
        "ticks": ticks,
    }
    return Markup(render("scores.svg.j2", view))


def _interval(score: Mapping[str, Any]) -> tuple[float, float]:
    """Where an interval starts and ends; the value itself if there is none."""
    if score["low"] is None:
        return score["value"], score["value"]
    return score["low"], score["high"]


def _smoothed(points: Sequence[Point]) -> list[Point]:
    """Mean of the values around each point; empty if there are too few points for that."""
    reach = len(points) // (2 * SMOOTH_OVER)
    smooth: list[Point] = []
    if reach:
        for place, (tokens, _) in enumerate(points):
            near = [value for _, value in points[max(place - reach, 0) : place + reach + 1]]
            smooth.append((tokens, sum(near) / len(near)))
    return smooth


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers that cover the range, about so many."""
    span = (high - low) or abs(high) or 1.0
    rough = span / wanted
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]
