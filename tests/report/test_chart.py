"""Charts: what is drawn where."""

import itertools
import re

import pytest

from lepta.report.chart import curve_chart, density_chart, score_chart

CURVE = [(1000.0 * step, 5 - step / 50) for step in range(200)]


def test_few_measurements_are_dots_on_a_line():
    chart = curve_chart(CURVE[:20], "bits <per> byte", 300)
    assert chart.count("<circle") == 20 and chart.count("<polyline") == 1 and 'class="curve"' in chart
    assert "bits &lt;per&gt; byte against tokens seen, from 5.000 to 4.620" in chart
    assert "<circle" not in curve_chart(CURVE, "bits", 300)


def test_many_steps_are_a_thin_line_with_their_mean():
    chart = curve_chart(CURVE, "loss", 210, smooth=True)
    lines = dict(re.findall(r'<polyline class="(\w+)" points="([^"]+)"', chart))
    assert list(lines) == ["thin", "curve"] and all(len(points.split()) == 200 for points in lines.values())
    assert "thin" not in curve_chart(CURVE[:20], "loss", 210, smooth=True)  # too few for a mean


def test_scores_stand_in_their_intervals():
    whole = {"value": 0.5, "low": 0.25, "high": 0.75}
    rows = [
        {"title": "PARus", "kind": "task", "scores": [whole, {"value": 0.75, "low": None, "high": None}]},
        {"title": "all", "kind": "total", "scores": [whole, None]},
        {"title": "nothing", "kind": "task", "scores": [None, None]},
    ]
    chart = score_chart(rows, ["old", "new"])
    assert "nothing" not in chart and chart.count("<circle") == 3 and chart.count("strong") == 1
    assert "PARus, old: 0.500, 0.250 to 0.750" in chart and "PARus, new: 0.750</title>" in chart
    starts, ends = (
        list(map(float, re.findall(rf'class="whisker".*? {end}="([\d.]+)"', chart))) for end in ("x1", "x2")
    )
    dots = list(map(float, re.findall(r'cx="([\d.]+)"', chart)))
    assert dots[0] == pytest.approx((starts[0] + ends[0]) / 2, abs=0.1)
    assert starts[1] == ends[1] == dots[1]


def test_models_stand_by_density_and_bits_and_their_names_apart():
    models = [
        ("original", 1.29, 1.682),
        ("initialised", 2.98, 2.239),
        ("adapted", 2.98, 1.804),
        ("variant", 2.98, 1.801),
    ]
    chart = density_chart(models)
    dots = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)]
    assert dots[0][0] < dots[1][0] == dots[2][0]  # more characters per token: further right
    assert dots[0][1] > dots[3][1] > dots[1][1]  # more bits per byte: higher up
    labels = sorted(float(y) for y in re.findall(r'y="([\d.]+)" dy="0.34em" text-anchor="end">[a-z]', chart))
    assert all(below - above >= 15.9 for above, below in itertools.pairwise(labels))
