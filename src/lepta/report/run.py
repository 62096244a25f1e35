"""The report of a recipe's run: one self-contained HTML page, and the same main numbers for a terminal."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lepta.core.errors import LeptaError
from lepta.core.reading import read_json
from lepta.core.tables import number_table
from lepta.report.chart import Point, curve_chart, density_chart, score_chart
from lepta.report.page import decimal, percent, rate, signed, times, write_page

REPORT, NUMBERS, TEMPLATE = "report.html", "report.json", "report.html.j2"
SHOWN_ANSWERS, SHOWN_SEED = 8, 1  # answers side by side are drawn, never picked
SAME = 0.005  # relative difference of bits per byte that is none
BENCHMARK = "darumeru/"  # what names of its scores in the curve start with
# Parts of the data that a recipe need not ask for.
OPTIONAL = ("initialised", "pretrained", "propagated", "darumeru", "curve", "seconds", "environment")


def write_report(data: dict[str, Any], folder: Path) -> None:
    """Write `report.html` into a folder: one file with its styles and charts inside, which fetches nothing.

    `data` is what the run measured: `name`, `languages`, `evaluation`, and those of `OPTIONAL` that there are;
    `darumeru` as `lepta.report.darumeru.side_by_side` gives it.
    """
    write_page(TEMPLATE, _view(_complete(data)), folder / REPORT)


def report_data(output: Path) -> dict[str, Any]:
    """The numbers of a finished run; LeptaError if the run has not come to its report."""
    file = output / "report" / NUMBERS
    if not file.is_file():
        raise LeptaError(f"{output}: no report yet; run `lepta adapt RECIPE` to its end")
    return read_json(file)


def _complete(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data with an empty value for each part that is not there."""
    whole: dict[str, Any] = {part: data.get(part) or {} for part in OPTIONAL}
    evaluation = dict(data["evaluation"])
    for part in ("continuations", "behaviour"):
        evaluation[part] = evaluation.get(part) or {}
    return {**data, **whole, "evaluation": evaluation}


def _view(data: dict[str, Any]) -> dict[str, Any]:
    """Everything that the template shows."""
    bits, loss, scores = _curves(data)
    pairs = []
    for pair in data["darumeru"]:
        scored = any(any(row["scores"]) for row in pair["rows"])
        pairs.append(pair | {"chart": score_chart(pair["rows"], pair["names"]) if scored else None})
    return data | {
        "target": data["languages"]["target"],
        "languages": _languages(data),
        "headline": _headline(data),
        "density": _of_pair(data, "characters_per_token"),
        "trained_bits": _trained_bits(data),
        "speed": _speed_rows(data),
        "shown_answers": _drawn(data),
        "verdict": _verdict(data),
        "density_chart": density_chart(_densities(data)),
        "bits": bits,
        "bits_chart": curve_chart(bits, "held-out bits per byte", 300) if len(bits) > 1 else None,
        "loss_chart": curve_chart(loss, "training loss", 210, smooth=True) if len(loss) > 1 else None,
        "score_charts": scores,
        "darumeru": pairs,
    }


def print_summary(data: dict[str, Any], console: Console) -> None:
    """Print the main numbers of a report, of the same data, as tables."""
    data = _complete(data)
    for line in data["pretrained"].get("warnings", ()):
        console.print(f"warning: {line}", style="yellow", highlight=False, markup=False)
    console.print(escape(f"{_verdict(data)} {_headline(data)}"), highlight=False)
    for title, columns, rows in _tables(data):
        console.print(_table(title, columns, rows))
    for name, facts in data["propagated"].items():
        for line in facts.get("warnings", ()):
            console.print(f"warning: propagated {name}: {line}", style="yellow", highlight=False, markup=False)
    for pair in data["darumeru"]:
        rows = [_scores(row) for row in pair["rows"] if any(row["scores"])]
        console.print(_table("Darumeru", ["", *pair["names"], "difference", "95 %", "p"], rows))
        for line in pair["refused"]:
            console.print(escape(f"not whole: {line}"), highlight=False)


def _tables(data: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Titles, columns and rows of what the evaluation measured."""
    evaluation = data["evaluation"]
    columns, rows = ["model"], [[name] for name in evaluation["text"]]
    for language in _languages(data):
        columns += [f"bits/byte, {language}", f"characters/token, {language}"]
        for row, scores in zip(rows, evaluation["text"].values(), strict=True):
            row += [decimal(scores[language]["bits_per_byte"], 3), decimal(scores[language]["characters_per_token"])]
    yield "Held-out text", columns, rows
    names = [evaluation["pair"][side] for side in ("original", "adapted")]
    rows = [[row["name"], *map(rate, row["rates"]), times(row["ratio"])] for row in _speed_rows(data)]
    yield "Characters per second, same text", ["", *names, "ratio"], rows
    if written := evaluation["continuations"]:
        rows = [[name, rate(e["characters_per_second"]), percent(e["new_token_share"])] for name, e in written.items()]
        yield "Free generation", ["model", "characters/s", "new tokens"], rows
    if behaviour := evaluation["behaviour"]:
        rows = []
        for name, entry in behaviour.items():
            kept = f"{entry['kept']} of {entry['prompts']}"
            whole = f"{entry['whole']} of {entry['prompts']}" if "whole" in entry else ""
            rows.append([name, kept, whole, percent(entry["new_token_share"])])
        yield "Behaviour", ["model", "opens in its style", "and goes on in text", "new tokens"], rows


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = number_table(*columns, title=title)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _scores(row: Mapping[str, Any]) -> list[str]:
    """A row of the benchmark: both scores, their difference with its interval, p."""
    cells = [row["title"], *(decimal(score and score["value"], 3) for score in row["scores"])]
    change = row["difference"]
    if change is None:
        return [*cells, "", "", ""]
    interval = "" if change["low"] is None else f"{signed(change['low'])} to {signed(change['high'])}"
    return [*cells, signed(change["value"]), interval, decimal(change["p"], 3)]


def _languages(data: Mapping[str, Any]) -> list[str]:
    """Target and source language, once if they are the same."""
    return list(dict.fromkeys([data["languages"]["target"], data["languages"]["source"]]))


# --- main numbers -----------------------------------------------------------------------------------------------------


def _measure(before: float, after: float) -> dict[str, Any]:
    """Two numbers and the second over the first."""
    return {"rates": [before, after], "ratio": after / before if before else None}


def _of_pair(data: Mapping[str, Any], measure: str) -> dict[str, Any]:
    """A measure of the target language's text, under the original and the adapted model of the pair."""
    pair, text = data["evaluation"]["pair"], data["evaluation"]["text"]
    target = data["languages"]["target"]
    return _measure(text[pair["original"]][target][measure], text[pair["adapted"]][target][measure])


def _speed_rows(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Characters per second of the two models of the pair."""
    pair, speed = data["evaluation"]["pair"], data["evaluation"]["speed"]
    rows = []
    for key, name in (("read", "reading"), ("write", "writing")):
        rows.append({"name": name} | _measure(speed[key][pair["original"]], speed[key][pair["adapted"]]))
    return rows


def _trained_bits(data: Mapping[str, Any]) -> list[float]:
    """Bits per byte of the target language: original, initialised and adapted base model."""
    text, target = data["evaluation"]["text"], data["languages"]["target"]
    return [text[f"{name} base"][target]["bits_per_byte"] for name in ("original", "initialised", "adapted")]


def _verdict(data: Mapping[str, Any]) -> str:
    """What a reader wants to know first: better or worse, by how much, at what speed."""
    pair, text = data["evaluation"]["pair"], data["evaluation"]["text"]
    said = []
    for language in _languages(data):
        before, after = (text[pair[side]][language]["bits_per_byte"] for side in ("original", "adapted"))
        change = after / before - 1
        if abs(change) <= SAME:
            said.append(f"as good as the original at “{language}”")
        else:
            said.append(f"{'worse' if change > 0 else 'better'} at “{language}” by {abs(change):.1%}")
    reading = _speed_rows(data)[0]["ratio"]
    return f"{pair['adapted']} is {' and '.join(said)} (bits per byte), and reads {times(reading)} as fast."


def _drawn(data: Mapping[str, Any]) -> list[int]:
    """Numbers of the answers that are shown side by side, drawn with a fixed seed."""
    behaviour = data["evaluation"]["behaviour"]
    if not behaviour:
        return []
    number = next(iter(behaviour.values()))["prompts"]
    return sorted(random.Random(SHOWN_SEED).sample(range(number), min(number, SHOWN_ANSWERS)))


def _densities(data: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Characters per token and bits per byte of each model on the target language's text."""
    target = data["languages"]["target"]
    rows = [(name, scores[target]) for name, scores in data["evaluation"]["text"].items()]
    return [(name, score["characters_per_token"], score["bits_per_byte"]) for name, score in rows]


def _headline(data: Mapping[str, Any]) -> str:
    """The result in two plain sentences."""
    density = _of_pair(data, "characters_per_token")["ratio"]
    reading, writing = (row["ratio"] for row in _speed_rows(data))
    original, first, last = _trained_bits(data)
    return (
        f"With the new vocabulary a token carries {times(density)} as many characters of "
        f"“{data['languages']['target']}” text, and the same text is read {times(reading)} as fast and written "
        f"{times(writing)} as fast. Training took the base model from {first:.3f} to {last:.3f} bits per byte of "
        f"held-out text; the original, with all its training, is at {original:.3f}."
    )


# --- along the training -----------------------------------------------------------------------------------------------


def _curves(data: Mapping[str, Any]) -> tuple[list[Point], list[Point], list[Markup]]:
    """Held-out bits per byte and training loss, and a chart of each score of the benchmark, the total first."""
    curves: dict[str, list[Point]] = {}
    for entry in data["curve"]:
        for name, value in entry.items():
            if isinstance(value, int | float) and (name.startswith(BENCHMARK) or math.isfinite(value)):
                curves.setdefault(name, []).append((float(entry["tokens"]), float(value)))
    charts = []
    asked = [name for name in curves if name.startswith(BENCHMARK)]
    for name in sorted(asked, key=lambda name: (name != f"{BENCHMARK}Micro-Avg", name)):
        if len(curves[name]) > 1:
            charts.append(curve_chart(curves[name], name.removeprefix(BENCHMARK), 260))
    bits = curves.get(f"{data['languages']['target']}_bits_per_byte", [])
    return bits, curves.get("loss", []), charts
