"""The report of a run: one self-contained HTML page, and the same main numbers for a terminal."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from rich.console import Console
from rich.markup import escape as plain
from rich.table import Table

from lepta.core.errors import LeptaError
from lepta.core.output import partial_of
from lepta.report.chart import Point, curve_chart, score_chart, smoothed, with_dots

REPORT = "report.html"
TEMPLATE = "report.html.j2"
SHOWN_ANSWERS = 8
MISSING = "–"
BENCHMARK = "darumeru/"  # what names of its scores in the curve start with


def write_report(data: dict[str, Any], folder: Path) -> None:
    """Write `report.html`: one file with its styles and charts inside, which fetches nothing.

    Parameters
    ----------
    data : dict
        What the run measured: `name`, `languages`, `evaluation`, `curve`, `initialised`, `pretrained`, `propagated`,
        `darumeru` (see `lepta.report.darumeru.side_by_side`), `environment` and `seconds`.
    folder : Path
        Existing folder for the page.
    """
    write_page(TEMPLATE, _view(data), folder / REPORT)


def write_page(template: str, view: dict[str, Any], file: Path) -> None:
    """Fill a template (see `render`) and write the page beside its place, then rename it in.

    Raises
    ------
    LeptaError
        If it cannot be written.
    """
    page, partial = render(template, view), partial_of(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8", errors="replace")
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise LeptaError(f"{file}: cannot be written ({error.strerror or error}); nothing was left there") from error


def render(template: str, view: dict[str, Any]) -> str:
    """Fill a template of this folder; what it shows is escaped, numbers are written by the filters below.

    Parameters
    ----------
    template : str
        File name.
    view : dict
        Name -> what the template shows by it.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "count": _count,
        "decimal": _decimal,
        "percent": _percent,
        "signed": _signed,
        "rate": _rate,
        "times": _times,
        "duration": _duration,
    }
    return environment.get_template(template).render(view)


def print_summary(data: dict[str, Any], console: Console) -> None:
    """Print the main numbers of a report as tables.

    Parameters
    ----------
    data : dict
        As for `write_report`.
    console : rich.console.Console
    """
    evaluation, languages = data["evaluation"], _languages(data)
    for warning in (data.get("pretrained") or {}).get("warnings", ()):
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
    console.print(plain(_headline(data)), highlight=False)
    columns = [f"{measure}, {language}" for language in languages for measure in ("bits/byte", "characters/token")]
    console.print(_table("Held-out text", ["model", *columns], _text_rows(evaluation["text"], languages)))
    speed = [[row["name"], *map(_rate, row["rates"]), _times(row["ratio"])] for row in _speed_rows(evaluation)]
    names = [evaluation["pair"][side] for side in ("original", "adapted")]
    console.print(_table("Characters per second, same text", ["", *names, "ratio"], speed))
    if evaluation.get("continuations"):
        rows = [
            [name, _rate(entry["characters_per_second"]), _percent(entry["new_token_share"])]
            for name, entry in evaluation["continuations"].items()
        ]
        console.print(_table("Free generation", ["model", "characters/s", "new tokens"], rows))
    if evaluation.get("behaviour"):
        rows = [
            [
                name,
                f"{entry['kept']} of {entry['prompts']}",
                _percent(entry["share"]),
                _percent(entry["new_token_share"]),
            ]
            for name, entry in evaluation["behaviour"].items()
        ]
        console.print(_table("Behaviour", ["model", "kept", "share", "new tokens"], rows))
    for name, facts in (data.get("propagated") or {}).items():
        for warning in facts.get("warnings", ()):
            console.print(f"warning: propagated {name}: {warning}", style="yellow", highlight=False, markup=False)
    for pair in data.get("darumeru") or ():
        columns = ["", *pair["names"], "difference", "95 %", "p"]
        console.print(_table("Darumeru", columns, [_scores(row) for row in pair["rows"] if any(row["scores"])]))
        for line in pair["refused"]:
            console.print(plain(f"not whole: {line}"), highlight=False)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(plain(column), justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(plain, row))
    return table


def _scores(row: Mapping[str, Any]) -> list[str]:
    """A row of the benchmark: both scores, their difference with its interval, p."""
    cells = [_decimal(score and score["value"], 3) for score in row["scores"]]
    change = row["difference"]
    if change is None:
        return [row["title"], *cells, "", "", ""]
    interval = "" if change["low"] is None else f"{_signed(change['low'])} to {_signed(change['high'])}"
    return [row["title"], *cells, _signed(change["value"]), interval, _decimal(change["p"], 3)]


def _text_rows(text: Mapping[str, Any], languages: Sequence[str]) -> list[list[str]]:
    return [
        [
            name,
            *(
                _decimal(scores[language][measure], places)
                for language in languages
                for measure, places in (("bits_per_byte", 3), ("characters_per_token", 2))
            ),
        ]
        for name, scores in text.items()
    ]


def _view(data: dict[str, Any]) -> dict[str, Any]:
    """Everything that the template shows, in the order of the page."""
    evaluation, languages = data["evaluation"], _languages(data)
    bits, loss = _curves(data)
    behaviour, continuations = evaluation.get("behaviour") or {}, evaluation.get("continuations") or {}
    measured = next(iter(evaluation["text"].values()))
    return {
        "name": data["name"],
        "target": languages[0],
        "languages": languages,
        "pair": evaluation["pair"],
        "headline": _headline(data),
        "tiles": _tiles(data),
        "passages": [_passage(language, evaluation["pieces"][language]) for language in languages],
        "initialised": data.get("initialised") or {},
        "text": evaluation["text"],
        "characters": {language: measured[language]["characters"] for language in languages},
        "speed": _speed_rows(evaluation),
        "speed_characters": evaluation["speed"]["characters"],
        "pretrained": data.get("pretrained") or {},
        "bits": bits,
        "bits_chart": curve_chart(bits, "held-out bits per byte", 300, with_dots(bits)) if len(bits) > 1 else None,
        "loss_chart": curve_chart(loss, "training loss", 210, smoothed(loss)) if len(loss) > 1 else None,
        "behaviour": behaviour,
        "answers": _side_by_side(behaviour, "questions", "answers", SHOWN_ANSWERS),
        "continuations": continuations,
        "continued": _side_by_side(continuations, "prompts", "texts", None),
        "score_charts": _score_charts(data),
        "darumeru": [
            pair
            | {
                "chart": score_chart(pair["rows"], pair["names"])
                if any(any(r["scores"]) for r in pair["rows"])
                else None
            }
            for pair in data.get("darumeru") or ()
        ],
        "maps": [
            {"variant": variant, "matrix": matrix, **fit}
            for variant, facts in (data.get("propagated") or {}).items()
            for matrix, fit in facts["maps"].items()
        ],
        "propagated": data.get("propagated") or {},
        "seconds": data.get("seconds") or {},
        "total_seconds": sum((data.get("seconds") or {}).values()),
        "environment": data.get("environment") or {},
    }


def _languages(data: dict[str, Any]) -> list[str]:
    """Target and source language, once if they are the same."""
    return list(dict.fromkeys([data["languages"]["target"], data["languages"]["source"]]))


# --- main numbers -----------------------------------------------------------------------------------------------------


def _pair_values(data: dict[str, Any], measure: str) -> tuple[float, float]:
    """A measure of the target language's text, under the original and the adapted model of the pair."""
    evaluation, target = data["evaluation"], data["languages"]["target"]
    pair, text = evaluation["pair"], evaluation["text"]
    return text[pair["original"]][target][measure], text[pair["adapted"]][target][measure]


def _ratio(values: Sequence[float]) -> float | None:
    """Second over first."""
    return values[1] / values[0] if values[0] else None


def _speed_rows(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    pair = evaluation["pair"]
    rows = []
    for key, name in (("read", "reading"), ("write", "writing")):
        rates = [evaluation["speed"][key][pair[side]] for side in ("original", "adapted")]
        rows.append({"key": key, "name": name, "rates": rates, "ratio": _ratio(rates)})
    return rows


def _headline(data: dict[str, Any]) -> str:
    """The result in two or three plain sentences."""
    target = data["languages"]["target"]
    density = _ratio(_pair_values(data, "characters_per_token"))
    reading, writing = (row["ratio"] for row in _speed_rows(data["evaluation"]))
    sentences = [
        f"With the new vocabulary a token carries {_times(density)} as many characters of “{target}” text, "
        f"and the same text is read {_times(reading)} as fast and written {_times(writing)} as fast."
    ]
    original, first, last = _trained_bits(data)
    sentences.append(
        f"Training took the base model from {first:.3f} to {last:.3f} bits per byte of held-out text; "
        f"the original, with all its training, is at {original:.3f}."
    )
    return " ".join(sentences)


def _trained_bits(data: dict[str, Any]) -> list[float]:
    """Bits per byte of the target language: original, initialised and adapted base model."""
    text, target = data["evaluation"]["text"], data["languages"]["target"]
    return [text[f"{name} base"][target]["bits_per_byte"] for name in ("original", "initialised", "adapted")]


def _tiles(data: dict[str, Any]) -> list[dict[str, str]]:
    """The numbers worth a large font: value, what it is, and what it was made from."""
    evaluation = data["evaluation"]
    density = _pair_values(data, "characters_per_token")
    tiles = [
        _tile(_times(_ratio(density), "×"), "characters per token", f"{density[0]:.2f} → {density[1]:.2f}"),
        *(
            _tile(
                _times(row["ratio"], "×"),
                f"{row['name']} speed",
                " → ".join(map(_rate, row["rates"])) + " characters/s",
            )
            for row in _speed_rows(evaluation)
        ),
    ]
    original, first, last = _trained_bits(data)
    note = f"{first:.3f} before, original {original:.3f}"
    tiles.append(_tile(f"{last:.3f}", "bits per byte after training", note))
    behaviour, pair = evaluation.get("behaviour") or {}, evaluation["pair"]
    if pair["original"] in behaviour and pair["adapted"] in behaviour:
        before, after = behaviour[pair["original"]], behaviour[pair["adapted"]]
        tiles.append(
            _tile(_percent(after["share"]), "of answers keep the style", f"original {_percent(before['share'])}")
        )
    if initialised := data.get("initialised"):
        rows = f"{_count(initialised['old_rows'])} before"
        tiles.append(_tile(_count(initialised["new_rows"]), "embedding rows", rows))
    return tiles


def _tile(value: str, label: str, note: str) -> dict[str, str]:
    return {"value": value, "label": label, "note": note}


def _side_by_side(models: Mapping[str, Any], asked: str, answered: str, limit: int | None) -> list[dict[str, Any]]:
    """Turn texts of each model into texts of each prompt."""
    if not models:
        return []
    prompts = next(iter(models.values()))[asked][:limit]
    return [
        {
            "prompt": prompt,
            "texts": [
                {
                    "model": name,
                    "text": entry[answered][number],
                    "kept": entry["kept_each"][number] if "kept_each" in entry else None,
                }
                for name, entry in models.items()
            ],
        }
        for number, prompt in enumerate(prompts)
    ]


# --- passages in pieces -----------------------------------------------------------------------------------------------


def _passage(language: str, passage: dict[str, Any]) -> dict[str, Any]:
    """A passage as both tokenizers cut it."""
    before, after = ([piece["parts"] for piece in cut] for cut in passage["cuts"])
    sides = zip(("original vocabulary", "new vocabulary"), passage["cuts"], strict=True)
    return {
        "language": language,
        "same": before == after,
        "characters": passage["characters"],
        "sides": [{"title": title, "pieces": cut} for title, cut in sides],
    }


# --- charts -----------------------------------------------------------------------------------------------------------


def _curves(data: dict[str, Any]) -> tuple[list[Point], list[Point]]:
    """Held-out bits per byte and training loss against tokens seen."""
    key = f"{data['languages']['target']}_bits_per_byte"
    curve = data.get("curve") or []
    bits = [(float(entry["tokens"]), float(entry[key])) for entry in curve if key in entry]
    loss = [(float(entry["tokens"]), float(entry["loss"])) for entry in curve if "loss" in entry]
    return [point for point in bits if math.isfinite(point[1])], [point for point in loss if math.isfinite(point[1])]


def _score_charts(data: dict[str, Any]) -> list[Markup]:
    """A chart of each task of the benchmark that was asked along the training, the total first."""
    curve = [entry for entry in data.get("curve") or [] if any(key.startswith(BENCHMARK) for key in entry)]
    names = dict.fromkeys(key for entry in curve for key in entry if key.startswith(BENCHMARK))
    charts = []
    for name in sorted(names, key=lambda name: (name != f"{BENCHMARK}Micro-Avg", name)):
        points = [(float(entry["tokens"]), float(entry[name])) for entry in curve if name in entry]
        if len(points) > 1:
            charts.append(curve_chart(points, name.removeprefix(BENCHMARK), 260, with_dots(points)))
    return charts


# --- numbers as text --------------------------------------------------------------------------------------------------


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _decimal(value: float | None, places: int = 2) -> str:
    return MISSING if value is None else f"{value:,.{places}f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{share:.0%}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _times(ratio: float | None, unit: str = " times") -> str:
    return MISSING if ratio is None else f"{ratio:.2f}{unit}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
