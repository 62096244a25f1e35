"""Charts as inline SVG, styled by the page they are on: a value along training, and scores with their intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

Point = tuple[float, float]

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 640, 76, 22, 14, 62  # of a chart, in its own units
LABELS, ROW = 190, 26  # of a chart of scores: width of the names, height of a row
SMOOTH_OVER = 40  # the bold loss line is a mean over one part in so many of the steps


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Mean of the values around each point."""
    reach = len(points) // (2 * SMOOTH_OVER)
    if not reach:
        return []
    around = [points[max(n - reach, 0) : n + reach + 1] for n in range(len(points))]
    return [(x, sum(y for _, y in near) / len(near)) for (x, _), near in zip(points, around, strict=True)]


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers that cover the range, about so many."""
    span = (high - low) or abs(high) or 1.0
    rough = span / wanted
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def with_dots(points: Sequence[Point]) -> list[Point]:
    """Mark measurements with dots where there are few enough to tell apart."""
    return list(points) if len(points) <= 60 else []


def curve_chart(points: Sequence[Point], label: str, height: int, second: Sequence[Point]) -> Markup:
    """Draw values against tokens seen as inline SVG.

    Parameters
    ----------
    points : sequence of (tokens, value)
    label : str
        Of the vertical axis.
    height : int
        In the chart's units; its width is `WIDTH`.
    second : sequence of (tokens, value)
        A bold line over a thin one; where it equals `points`, these become a bold line with dots.

    Returns
    -------
    Markup
    """
    across = _ticks(0, points[-1][0], 5)
    x_end = points[-1][0] or 1.0
    values = [value for _, value in points]
    down = _ticks(min(values), max(values), 4)
    low, high = down[0], down[-1]

    def place(point: Point) -> Point:
        x = LEFT + point[0] / x_end * (WIDTH - LEFT - RIGHT)
        y = TOP + (high - point[1]) / (high - low) * (height - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    marked = bool(second) and list(second) == list(points)
    body = _axes([tick for tick in across if tick <= x_end * 1.001], down, place, label, height)
    body.append(_line(points, place, "curve" if marked or not second else "thin"))
    if marked:
        body += [_dot(point, place, label) for point in points]
    elif second:
        body.append(_line(second, place, "curve"))
    title = escape(f"{label} against tokens seen, from {values[0]:.3f} to {values[-1]:.3f}")
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">{"".join(body)}</svg>'
    )


def score_chart(rows: Sequence[Mapping[str, Any]], models: Sequence[str]) -> Markup:
    """Draw scores with their 95 % intervals as inline SVG, a row for each, of one model or two.

    Parameters
    ----------
    rows : sequence of mappings
        With `title`, `kind` ("task" or what stands for several) and `scores`: for each model `value`, `low` and `high`
        (None without an interval), or None. Rows without a score are left out.
    models : sequence of str
        Names, for what shows when one points at a mark.

    Returns
    -------
    Markup
    """
    shown = [row for row in rows if any(row["scores"])]
    known = [score for row in shown for score in row["scores"] if score]
    ticks = _ticks(
        min([0.0, *(_end(score, "low") for score in known)]), max([1.0, *(_end(s, "high") for s in known)]), 5
    )
    height = TOP + ROW * len(shown) + 30

    def across(value: float) -> float:
        return round(LABELS + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (WIDTH - LABELS - RIGHT), 1)

    parts = []
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{across(tick)}" x2="{across(tick)}" y1="{TOP}" y2="{height - 28}"/>')
        parts.append(f'<text x="{across(tick)}" y="{height - 12}" text-anchor="middle">{tick:g}</text>')
    for number, row in enumerate(shown):
        middle = TOP + ROW * (number + 0.5)
        style = "" if row["kind"] == "task" else ' class="label strong"'
        title = escape(row["title"])
        parts.append(f'<text{style} x="{LABELS - 12}" y="{middle}" dy="0.34em" text-anchor="end">{title}</text>')
        for place, (model, score) in enumerate(zip(models, row["scores"], strict=True)):
            if score:
                y = middle + (place - (len(models) - 1) / 2) * ROW / 3
                parts.append(_scored(score, y, across, place, f"{row['title']}, {model}"))
    label = escape(f"scores of {' and '.join(models)} with 95 % intervals")
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def _end(score: Mapping[str, float | None], end: str) -> float:
    """Where an interval ends; the value itself if there is none."""
    place = score[end]
    return float(score["value"] if place is None else place)  # type: ignore[arg-type]  # a value is never None


def _scored(score: Mapping[str, Any], y: float, across: Any, place: int, label: str) -> str:
    """A dot in its interval."""
    style = f"model{place}"
    ends = [across(_end(score, end)) for end in ("low", "high")]
    interval = "" if score["low"] is None else f", {score['low']:.3f} to {score['high']:.3f}"
    return (
        f'<g class="{style}"><title>{escape(label)}: {score["value"]:.3f}{interval}</title>'
        f'<line class="whisker" x1="{ends[0]}" x2="{ends[1]}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<circle class="dot" cx="{across(score["value"])}" cy="{y:.1f}" r="4"/></g>'
    )


def _axes(across: Sequence[float], down: Sequence[float], place: Any, label: str, height: int) -> list[str]:
    floor, middle = height - BOTTOM, TOP + (height - BOTTOM - TOP) / 2
    parts = []
    for tick in down:
        y = place((0.0, tick))[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 9}" y="{y}" dy="0.34em" text-anchor="end">{tick:g}</text>')
    for tick in across:
        x = place((tick, down[0]))[0]
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{floor}" y2="{floor + 5}"/>')
        parts.append(f'<text x="{x}" y="{floor + 9}" dy="0.8em" text-anchor="middle">{_short(tick)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
    centre = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(f'<text class="label" x="{centre}" y="{height - 8}" text-anchor="middle">tokens seen</text>')
    turn = f"rotate(-90 16 {middle})"
    parts.append(
        f'<text class="label" x="16" y="{middle}" dy="0.2em" text-anchor="middle" transform="{turn}">'
        f"{escape(label)}</text>"
    )
    return parts


def _line(points: Sequence[Point], place: Any, style: str) -> str:
    corners = " ".join(f"{x},{y}" for x, y in map(place, points))
    return f'<polyline class="{style}" points="{corners}"/>'


def _dot(point: Point, place: Any, label: str) -> str:
    x, y = place(point)
    return (
        f'<circle class="dot" cx="{x}" cy="{y}" r="3.5">'
        f"<title>{escape(label)} {point[1]:.3f} after {point[0]:,.0f} tokens</title></circle>"
    )


def _short(value: float) -> str:
    """Write a tick with k, M or G for its thousands."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
