"""Two kinds of figure as small SVG files: lines against tokens seen, and dots with intervals."""

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from benchmarks.miniature.results import Estimate

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#666666")  # told apart by all eyes (Okabe and Ito)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 340, 70, 130, 34, 46
ROW = 17  # height of a line of dots
HEAD = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {0} {1}' font-family='sans-serif' font-size='12'>"
GROUND = "<rect width='100%' height='100%' fill='white'/>"
Point = tuple[float, float]


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers within a range, about so many."""
    rough = (high - low or 1.0) / wanted
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    return [
        round(number * step, 10) for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def lines(title: str, across: str, curves: Mapping[str, Sequence[Point]], level: tuple[str, float]) -> str:
    """Curves against tokens seen, and a level to compare with.

    Parameters
    ----------
    title, across : str
        What is drawn, and what against.
    curves : mapping
        Name -> points.
    level : (str, float)
        Name and height of a dashed line.
    """
    points = [point for curve in curves.values() for point in curve]
    right = max(x for x, _ in points) or 1.0
    heights = [y for _, y in points] + [level[1]]
    low, high = min(heights), max(heights)
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)

    def place(point: Point) -> tuple[float, float]:
        x = LEFT + point[0] / right * (WIDTH - LEFT - RIGHT)
        return round(x, 1), round(TOP + (high - point[1]) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    parts = [HEAD.format(WIDTH, HEIGHT), GROUND, _text(LEFT, 18, title, "start", bold=True)]
    for y in ticks(low, high):
        height = place((0, y))[1]
        parts += [_rule(LEFT, height, WIDTH - RIGHT, height), _text(LEFT - 8, height + 4, f"{y:g}", "end")]
    for x in ticks(0, right):
        parts.append(_text(place((x, low))[0], HEIGHT - BOTTOM + 18, f"{x:,.0f}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, across, "middle"))
    ends = []
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
        corners = " ".join(f"{x},{y}" for x, y in map(place, curve))
        parts.append(f"<polyline points='{corners}' fill='none' stroke='{colour}' stroke-width='2'/>")
        ends.append((place(curve[-1])[1], name, colour))
    height = place((0, level[1]))[1]
    parts.append(_rule(LEFT, height, WIDTH - RIGHT, height, "#000", "5 4"))
    parts += _labels([*ends, (height, level[0], "#000")])
    return "\n".join([*parts, "</svg>\n"])


def _labels(ends: Sequence[tuple[float, str, str]]) -> list[str]:
    """Names beside the ends of curves, moved apart where they would touch."""
    parts, last = [], HEIGHT - BOTTOM + 14.0
    for height, name, colour in sorted(ends, reverse=True):
        last = min(height + 4, last - 14)
        parts.append(_text(WIDTH - RIGHT + 8, last, name, "start", colour))
    return parts


def dots(title: str, groups: Mapping[str, Mapping[str, Estimate]], level: tuple[str, float]) -> str:
    """Estimates with their intervals, a line for each, in groups that share a colour; and a level to compare with."""
    rows = [(group, name, estimate) for group, members in groups.items() for name, estimate in members.items()]
    ends = [level[1]]
    for _, _, estimate in rows:
        half = 0.0 if math.isnan(estimate.half_width) else estimate.half_width
        ends += [estimate.mean - half, estimate.mean + half]
    low, high = min(ends), max(ends)
    left, height = 190, TOP + ROW * (len(rows) + len(groups)) + BOTTOM

    def place(value: float) -> float:
        return round(left + (value - low) / ((high - low) or 1.0) * (WIDTH - left - 30), 1)

    floor = height - BOTTOM + 4
    parts = [HEAD.format(WIDTH, height), GROUND, _text(8, 18, title, "start", bold=True)]
    for value in ticks(low, high):
        parts += [
            _rule(place(value), TOP, place(value), floor),
            _text(place(value), floor + 16, f"{value:g}", "middle"),
        ]
    parts.append(_rule(place(level[1]), TOP, place(level[1]), floor, "#000", "5 4"))
    parts.append(_text(place(level[1]), floor + 32, level[0], "middle"))
    y = TOP + 4.0
    for colour, (group, members) in zip(COLOURS, groups.items(), strict=False):
        for number, (name, estimate) in enumerate(members.items()):
            y += ROW
            if not number:
                parts.append(_text(8, y, group, "start", colour, bold=True))
            parts.append(_text(left - 10, y, name, "end"))
            if not math.isnan(estimate.half_width):
                one, two = (place(estimate.mean + sign * estimate.half_width) for sign in (-1, 1))
                parts.append(_rule(one, y - 4, two, y - 4, colour))
            parts.append(f"<circle cx='{place(estimate.mean)}' cy='{y - 4}' r='4' fill='{colour}'/>")
        y += ROW
    return "\n".join([*parts, "</svg>\n"])


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#000", *, bold: bool = False) -> str:
    weight = " font-weight='bold'" if bold else ""
    return f"<text x='{x}' y='{y}' text-anchor='{anchor}' fill='{colour}'{weight}>{escape(text)}</text>"


def _rule(x1: float, y1: float, x2: float, y2: float, colour: str = "#ddd", dashes: str = "none") -> str:
    return f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='{colour}' stroke-dasharray='{dashes}'/>"
