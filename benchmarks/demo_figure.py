"""The figure of the README: bits per byte and reading speed of the demo's variant, before and after.

python -m benchmarks.demo_figure runs/demo/report/report.json docs/figures/demo.svg
"""

import json
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 600, 312, 80, 560, 40, 250
SPEEDS, BITS = (0.5, 2.5), (1.5, 1.9)
INK, GRID, BEFORE, AFTER, GREY = "#26241f", "#ddd6c8", "#5d559e", "#b0611f", "#6b6457"


def x_of(speed: float) -> float:
    """Place of a speed, in units of the original's."""
    return round(LEFT + (speed - SPEEDS[0]) / (SPEEDS[1] - SPEEDS[0]) * (RIGHT - LEFT), 1)


def y_of(bits: float) -> float:
    """Place of a number of bits per byte."""
    return round(BOTTOM - (bits - BITS[0]) / (BITS[1] - BITS[0]) * (BOTTOM - TOP), 1)


def text(x: float, y: float, words: str, anchor: str = "middle", rest: str = "") -> str:
    """A line of text."""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" {rest}>{words}</text>'


def figure(before: float, after: float, speed: float) -> str:
    """SVG of two points: bits per byte of the variant before and after, and how many times as fast it reads."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif" '
        'font-size="14">',
        "<title>The demo, before and after: bits per byte of Russian against reading speed</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#fffdf8"/>',
        f'<g fill="{INK}">',
    ]
    for bits in (1.5, 1.6, 1.7, 1.8, 1.9):
        parts.append(f'<line x1="{LEFT}" y1="{y_of(bits)}" x2="{RIGHT}" y2="{y_of(bits)}" stroke="{GRID}"/>')
        parts.append(text(LEFT - 10, y_of(bits) + 5, f"{bits}", "end"))
    for times in (0.5, 1, 1.5, 2, 2.5):
        parts.append(text(x_of(times), BOTTOM + 22, f"{times:g}×"))
    parts += [
        text((LEFT + RIGHT) / 2, HEIGHT - 14, "speed of reading Russian (characters per second, original = 1)"),
        text(24, 145, "bits per byte (lower is better)", rest='transform="rotate(-90 24 145)"'),
        f'<line x1="{x_of(1)}" y1="{y_of(before)}" x2="{x_of(speed)}" y2="{y_of(after)}" stroke="{AFTER}" '
        'stroke-dasharray="5 4"/>',
        f'<circle cx="{x_of(1)}" cy="{y_of(before)}" r="7" fill="{BEFORE}"/>',
        text(x_of(1) - 12, y_of(before) - 12, f"before: {before:.3f}", "end"),
        f'<circle cx="{x_of(speed)}" cy="{y_of(after)}" r="7" fill="{AFTER}"/>',
        text(x_of(speed), y_of(after) - 14, f"after: {after:.3f} at {speed:.2f}×"),
        text(330, BOTTOM - 12, "the demo: SmolLM2-135M, minutes of training on 2 cores", rest=f'fill="{GREY}"'),
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main() -> None:
    """Read the report of a run and write the figure."""
    report, result = map(Path, sys.argv[1:])
    evaluation = json.loads(report.read_text(encoding="utf-8"))["evaluation"]
    original, adapted = evaluation["speed"]["read"]  # in this order
    bits = {name: evaluation["text"][name]["ru"]["bits_per_byte"] for name in (original, adapted)}
    read = evaluation["speed"]["read"]
    result.write_text(figure(bits[original], bits[adapted], read[adapted] / read[original]), encoding="utf-8")


if __name__ == "__main__":
    main()
