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
    numbers = _Numbers(data)
    bits, loss, scores = _curves(data)
    return data | {
        "target": numbers.target,
        "languages": numbers.languages,
        "headline": numbers.headline(),
        "density": numbers.change(numbers.target, "characters_per_token"),
        "trained_bits": numbers.trained_bits(),
        "speed": numbers.speed(),
        "shown_answers": _drawn(data),
        "verdict": numbers.verdict(),
        "density_chart": density_chart(numbers.densities()),
        "bits": bits,
        "bits_chart": curve_chart(bits, "held-out bits per byte", 300),
        "loss_chart": curve_chart(loss, "training loss", 210, smooth=True),
        "score_charts": scores,
        "darumeru": [pair | {"chart": score_chart(pair["rows"], pair["names"])} for pair in data["darumeru"]],
    }


def print_summary(data: dict[str, Any], console: Console) -> None:
    """Print the main numbers of a report, of the same data, as tables."""
    data = _complete(data)
    for line in data["pretrained"].get("warnings", ()):
        console.print(f"warning: {line}", style="yellow", highlight=False, markup=False)
    numbers = _Numbers(data)
    console.print(escape(f"{numbers.verdict()} {numbers.headline()}"), highlight=False)
    for title, columns, rows in _tables(data):
        console.print(_table(title, columns, rows))
    for name, facts in data["propagated"].items():
        for line in facts.get("warnings", ()):
            console.print(f"warning: propagated {name}: {line}", style="yellow", highlight=False, markup=False)
    for pair in data["darumeru"]:
        rows = [_scores(row) for row in pair["rows"] if any(row["scores"])]
        console.print(_table("Darumeru", ["task", *pair["names"], "difference", "95 %", "p"], rows))
        for line in pair["refused"]:
            console.print(escape(f"not whole: {line}"), highlight=False)


def _tables(data: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Titles, columns and rows of what the evaluation measured."""
    evaluation, numbers = data["evaluation"], _Numbers(data)
    columns, rows = ["model"], [[name] for name in evaluation["text"]]
    for language in numbers.languages:
        columns += [f"bits per byte, {language}", f"characters per token, {language}"]
        for row, scores in zip(rows, evaluation["text"].values(), strict=True):
            row += [decimal(scores[language]["bits_per_byte"], 3), decimal(scores[language]["characters_per_token"])]
    yield "Held-out text", columns, rows
    rows = [[row["name"], *map(rate, row["rates"]), times(row["ratio"])] for row in numbers.speed()]
    busy = f" (the machine was busy: {numbers.busy})" if numbers.busy else ""
    yield f"Characters per second, same text{busy}", ["", *numbers.pair, "ratio"], rows
    if written := evaluation["continuations"]:
        rows = []
        for name, entry in written.items():
            shares = [percent(entry["new_token_share"]), decimal(entry.get("over_canonical"))]
            rows.append([name, rate(entry["characters_per_second"]), *shares])
        yield "Free generation", ["model", "characters/s", "new tokens", "tokens / canonical"], rows
    if behaviour := evaluation["behaviour"]:
        rows = []
        for name, entry in behaviour.items():
            kept = f"{entry['kept']} of {entry['prompts']}"
            whole = f"{entry['whole']} of {entry['prompts']}" if "whole" in entry else ""
            rows.append([name, kept, whole, percent(entry["new_token_share"])])
        yield "Behaviour", ["model", "opens in its style", "and passes for text", "new tokens"], rows


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
    interval = ""
    if change["low"] is not None:
        interval = f"{signed(change['low'])} to {signed(change['high'])}"
    return [*cells, signed(change["value"]), interval, decimal(change["p"], 3)]


class _Numbers:
    """The main numbers: of the original and the adapted model that stand side by side, and of the base model."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        evaluation, languages = data["evaluation"], data["languages"]
        self.pair = [evaluation["pair"]["original"], evaluation["pair"]["adapted"]]
        self.target = languages["target"]
        self.languages = list(dict.fromkeys([languages["target"], languages["source"]]))  # once if they are the same
        self._text, self._speed = evaluation["text"], evaluation["speed"]
        self.busy = self._speed.get("busy", "")  # with what other work, when the speed was measured

    def change(self, language: str, measure: str) -> dict[str, Any]:
        """A measure of a language's text under both models, and the second over the first."""
        return _measure([self._text[model][language][measure] for model in self.pair])

    def speed(self) -> list[dict[str, Any]]:
        """Characters per second of both models."""
        rows = []
        for key, name in (("read", "reading"), ("write", "writing")):
            rows.append({"name": name} | _measure([self._speed[key][model] for model in self.pair]))
        return rows

    def trained_bits(self) -> list[float]:
        """Bits per byte of the target language: original, initialised and adapted base model."""
        names = ("original base", "initialised base", "adapted base")
        return [self._text[name][self.target]["bits_per_byte"] for name in names]

    def densities(self) -> list[tuple[str, float, float]]:
        """Characters per token and bits per byte of each model on the target language's text."""
        rows = [(name, scores[self.target]) for name, scores in self._text.items()]
        return [(name, score["characters_per_token"], score["bits_per_byte"]) for name, score in rows]

    def verdict(self) -> str:
        """What a reader wants to know first: better or worse, by how much, at what speed."""
        said = []
        for language in self.languages:
            change = self.change(language, "bits_per_byte")["ratio"] - 1
            if abs(change) <= SAME:
                said.append(f"as good as the original at “{language}”")
            else:
                said.append(f"{'worse' if change > 0 else 'better'} at “{language}” by {abs(change):.1%}")
        reading = times(self.speed()[0]["ratio"])
        return f"{self.pair[1]} is {' and '.join(said)} (bits per byte), and reads {reading} as fast."

    def headline(self) -> str:
        """The result in two plain sentences."""
        density = self.change(self.target, "characters_per_token")["ratio"]
        reading, writing = self.speed()
        original, first, last = self.trained_bits()
        busy = f" Speeds may be far off: the machine was busy ({self.busy})." if self.busy else ""
        return (
            f"With the new vocabulary a token carries {times(density)} as many characters of “{self.target}” text, and "
            f"the same text is read {times(reading['ratio'])} as fast and written {times(writing['ratio'])} as fast. "
            f"Training took the base model from {first:.3f} to {last:.3f} bits per byte of held-out text; the "
            f"original, with all its training, is at {original:.3f}.{busy}"
        )


def _measure(values: Sequence[float]) -> dict[str, Any]:
    """Two numbers and the second over the first."""
    before, after = values
    return {"rates": [before, after], "ratio": after / before if before else None}


def _drawn(data: Mapping[str, Any]) -> list[int]:
    """Numbers of the answers that are shown side by side, drawn with a fixed seed."""
    behaviour = data["evaluation"]["behaviour"]
    if not behaviour:
        return []
    number = next(iter(behaviour.values()))["prompts"]
    return sorted(random.Random(SHOWN_SEED).sample(range(number), min(number, SHOWN_ANSWERS)))


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
        if chart := curve_chart(curves[name], name.removeprefix(BENCHMARK), 260):
            charts.append(chart)
    bits = curves.get(f"{data['languages']['target']}_bits_per_byte", [])
    return bits, curves.get("loss", []), charts
