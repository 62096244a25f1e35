"""The results as tables and figures in the documentation, beside the paper's (arXiv 2412.21140, tables 2 to 4)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.miniature.figures import Point, dots, lines
from benchmarks.miniature.measures import COPIES
from benchmarks.miniature.results import Estimate, Table
from benchmarks.miniature.stages import LEP, SCENARIOS
from benchmarks.miniature.tasks import TASKS
from lepta.core.errors import LeptaError
from lepta.core.output import write_json

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "miniature.md"
FIGURES = ROOT / "docs" / "figures"
BEGIN, END = "<!-- tables of {}, written by the benchmark -->", "<!-- end of tables of {} -->"

# The paper's numbers: symbols per token and micro average of LLaMA-3-8B after continued pre-training (table 2); micro
# average and DaruCopy RU of LLaMA-3-8B-Instruct by map (table 3), and with self-calibration (table 4).
PAPER_ORIGINAL = (2.89, 0.629)
PAPER_ADAPTED = {"extended": (3.78, 0.627), "optimized": (3.40, 0.620), "bpe": (4.40, 0.618), "unigram": (4.35, 0.609)}
PAPER_INSTRUCT = (0.610, 0.972)
PAPER_LEP = {
    "extended": {"swap": (0.592, 0.921), "overlap": (0.597, 0.936), "conversion": (0.597, 0.921)},
    "optimized": {"swap": (0.594, 0.928), "overlap": (0.586, 0.925), "conversion": (0.598, 0.928)},
    "bpe": {"swap": (0.565, 0.729), "overlap": (0.569, 0.753), "conversion": (0.570, 0.754)},
    "unigram": {"swap": (0.582, 0.865), "overlap": (0.580, 0.876), "conversion": (0.584, 0.889)},
}
PAPER_CALIBRATED = {"extended": (0.606, 0.958), "optimized": (0.601, 0.950)}
COMPARED = ("no training", "distilled", "random map", *LEP, "auto, calibrated", "auto, tuned body", "upper bound")
MEASURES = (
    ("ru", "answers"),
    ("en", "answers"),
    ("ru", "accuracy"),
    ("en", "accuracy"),
    ("ru", "copied"),
    ("en", "copied"),
)


def publish(results: dict[str, Any]) -> list[Path]:
    """Write results, tables and figures into the repository; returns the files."""
    name, table = results["scale"], Table(results)
    text = PAGE.read_text(encoding="utf-8")
    begin, end = BEGIN.format(name), END.format(name)
    if begin not in text or end not in text:
        raise LeptaError(f"{PAGE}: no place for the tables of {name}; expected the lines {begin!r} and {end!r}")
    head, tail = text.partition(begin)[0], text.partition(end)[2]
    body = "\n\n".join(
        [
            *(f"**{title}**\n\n{content}" for title, content in tables(table)),
            *(f"![{stem}](figures/{stem}-{name}.svg)" for stem in figures(table)),
        ]
    )
    files = [Path(__file__).with_name(f"results-{name}.json"), PAGE]
    write_json(files[0], results)
    PAGE.write_text(f"{head}{begin}\n\n{body}\n\n{end}{tail}", encoding="utf-8")
    FIGURES.mkdir(exist_ok=True)
    for stem, drawing in figures(table).items():
        files.append(FIGURES / f"{stem}-{name}.svg")
        files[-1].write_text(drawing, encoding="utf-8")
    return files


def tables(table: Table) -> list[tuple[str, str]]:
    """Title and Markdown of each table."""
    return [
        ("Vocabularies after continued pre-training (the paper's table 2)", _vocabularies(table)),
        ("Propagation: methods by vocabulary (table 3)", _methods(table)),
        ("Maps against `conversion`, the paper's best: mean over the vocabularies", _maps(table)),
        ("Against `swap` and the upper bound: bits per byte of Russian answers", _gaps(table)),
        ("The propagated instruct model beside the original", _original(table)),
        ("Copying held-out text, before and after self-calibration (table 4)", _copies(table)),
        ("What `auto` took, input / output, by seed", _auto(table)),
        ("Held-out accuracy by task", _tasks(table)),
    ]


def shown(estimate: Estimate, places: int = 3) -> str:
    """A mean and the half width of its interval."""
    half = "" if math.isnan(estimate.half_width) else f" ± {estimate.half_width:.{places}f}"
    return f"{estimate.mean:.{places}f}{half}"


def signed(estimate: Estimate, places: int = 3) -> str:
    """A difference, in bold where its interval leaves 0 out."""
    text = f"{'+' if estimate.mean > 0 else ''}{shown(estimate, places)}"
    return f"**{text}**" if estimate.differs_from_zero else text


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _vocabularies(table: Table) -> str:
    head = ["vocabulary", "characters per token, ru", "en", "bits per byte of text, ru", "en"]
    head += ["paper: symbols per token", "micro avg"]
    rows = []
    for scenario in (None, *SCENARIOS):
        model = "adapted base" if scenario else "foundation"
        ours = [
            shown(table.estimate(scenario, model, language, measure), places)
            for measure, places in (("characters_per_token", 2), ("text", 3))
            for language in ("ru", "en")
        ]
        symbols, average = PAPER_ADAPTED[scenario] if scenario else PAPER_ORIGINAL
        rows.append([scenario or "original", *ours, f"{symbols:.2f}", f"{average:.3f}"])
        if scenario:
            bits = [shown(table.estimate(scenario, "distilled base", language, "text")) for language in ("ru", "en")]
            rows.append([f"{scenario}, distilled only", *ours[:2], *bits, "", ""])
    return _markdown(head, rows)


def _methods(table: Table) -> str:
    head = ["vocabulary", "method", "answers, bits per byte, ru", "en", "accuracy, ru", "en", "copied, ru", "en"]
    head += ["paper: micro avg", "DaruCopy RU"]
    paper = [f"{number:.3f}" for number in PAPER_INSTRUCT]
    rows = [["original", "", *(shown(table.estimate(None, "instruct", *which)) for which in MEASURES), *paper]]
    calibrated = [shown(table.estimate(None, "instruct, calibrated", *which)) for which in MEASURES]
    rows.append(["original", "calibrated", *calibrated, "", ""])
    for scenario in SCENARIOS:
        known = PAPER_LEP[scenario] | (
            {"auto, calibrated": PAPER_CALIBRATED[scenario]} if scenario in PAPER_CALIBRATED else {}
        )
        best = table.best(scenario)
        for model in COMPARED:
            ours = [shown(table.estimate(scenario, model, *which)) for which in MEASURES]
            paper = [f"{number:.3f}" for number in known[model]] if model in known else ["", ""]
            rows.append([scenario, f"**{model}**" if model == best else model, *ours, *paper])
    return _markdown(head, rows)


def _gaps(table: Table) -> str:
    head = ["vocabulary", "`swap`", "best map", "upper bound", "best less `swap`", "gap closed", "gap closed, accuracy"]
    head += [column for name in ("`auto`, calibrated", "`auto` in the tuned body") for column in (name, "gap closed")]
    rows = []
    for scenario in SCENARIOS:
        best = table.best(scenario)
        bits = [shown(table.estimate(scenario, name, "ru", "answers")) for name in ("swap", best, "upper bound")]
        bits[1] = f"{best} {bits[1]}"
        difference = table.difference(scenario, best, "swap", "ru", "answers")
        closed = [_share(table.gap_closed(scenario, best, "ru", measure)) for measure in ("answers", "accuracy")]
        for name in ("auto, calibrated", "auto, tuned body"):
            closed += [shown(table.estimate(scenario, name, "ru", "answers")), _share(table.gap_closed(scenario, name))]
        rows.append([scenario, *bits, signed(difference), *closed])
    return _markdown(head, rows)


def _maps(table: Table) -> str:
    measures = [(code, name) for name in ("answers", "accuracy", "text") for code in ("ru", "en")]
    names = {"answers": "answers, bits per byte", "accuracy": "accuracy", "text": "text, bits per byte"}
    head = ["method less `conversion`", *(f"{names[name]}, {code}" for code, name in measures)]
    rows = []
    for method in (name for name in LEP if name != "conversion"):
        cells = []
        for which in measures:
            seeds = zip(*(table.differences(s, method, "conversion", *which) for s in SCENARIOS), strict=True)
            cells.append(signed(Estimate.of([sum(found) / len(found) for found in seeds])))
        rows.append([f"`{method}`", *cells])
    return _markdown(head, rows)


def _share(value: float) -> str:
    return "no gap" if math.isnan(value) else f"{value:.0%}"


def _original(table: Table) -> str:
    head = ["vocabulary", "reads Russian", "writes Russian", "method"]
    head += ["Russian answers, bits per byte, less the original's", "English answers, relative change"]
    rows = []
    for scenario in SCENARIOS:
        speeds = [f"{shown(table.speed(scenario, work), 2)} times" for work in ("read", "write")]
        for model in (table.best(scenario), "auto, calibrated"):
            ru, en = (
                (table.values(scenario, model, code, "answers"), table.values(None, "instruct", code, "answers"))
                for code in ("ru", "en")
            )
            change = Estimate.of([100 * (own / original - 1) for own, original in zip(*en, strict=True)])
            worse = Estimate.of([own - original for own, original in zip(*ru, strict=True)])
            rows.append([scenario, *speeds, model, signed(worse), f"{signed(change, 1)} %"])
    return _markdown(head, rows)


def _copies(table: Table) -> str:
    head = ["vocabulary", "language"]
    for kind in ("line", "paragraph"):
        head += [f"{kind}, original", "`auto`", "`auto`, calibrated", "difference"]
    rows = []
    for scenario in SCENARIOS:
        for language in ("ru", "en"):
            cells = [scenario, language]
            for measure in COPIES:
                models = ((None, "instruct"), (scenario, "auto"), (scenario, "auto, calibrated"))
                cells += [shown(table.estimate(place, model, language, measure)) for place, model in models]
                cells.append(signed(table.difference(scenario, "auto, calibrated", "auto", language, measure)))
            rows.append(cells)
    return _markdown(head, rows)


def _auto(table: Table) -> str:
    seeds = table.results["seeds"]
    rows = [
        [scenario, *(" / ".join(seed["vocabularies"][scenario]["auto"].values()) for seed in seeds.values())]
        for scenario in SCENARIOS
    ]
    return _markdown(["vocabulary", *(f"seed {number}" for number in seeds)], rows)


def _tasks(table: Table) -> str:
    columns = [(None, "instruct"), *((s, m) for s in SCENARIOS for m in (table.best(s), "upper bound"))]
    head = ["task", *("original" if scenario is None else f"{scenario}, {model}" for scenario, model in columns)]
    rows = [
        [f"{task}, {language}"]
        + [shown(table.estimate(scenario, model, language, task), 2) for scenario, model in columns]
        for language in ("ru", "en")
        for task in TASKS
    ]
    return _markdown(head, rows)


def figures(table: Table) -> dict[str, str]:
    """Name -> SVG: text along continued pre-training (the paper's figure 2), and methods by vocabulary."""
    drawn = {}
    for language, name in (("ru", "Russian"), ("en", "English")):
        level = table.estimate(None, "foundation", language, "text").mean
        drawn[f"miniature-training-{language}"] = lines(
            f"Bits per byte of {name} text along continued pre-training",
            "tokens seen",
            {scenario: _curve(table, scenario, f"{language}_bits_per_byte") for scenario in SCENARIOS},
            ("foundation", level),
        )
    groups = {
        scenario: {
            model: table.estimate(scenario, model, "ru", "answers")
            for model in COMPARED
            if model not in ("no training", "random map")
        }
        for scenario in SCENARIOS
    }
    level = table.estimate(None, "instruct", "ru", "answers").mean
    title = "Russian answers of the propagated instruct model, bits per byte (fewer are better)"
    drawn["miniature-methods"] = dots(title, groups, ("original instruct", level))
    return drawn


def _curve(table: Table, scenario: str, key: str) -> list[Point]:
    """The mean over seeds of a measurement along training."""
    curves = [seed["vocabularies"][scenario]["curve"] for seed in table.results["seeds"].values()]
    return [
        (entries[0]["tokens"], sum(entry[key] for entry in entries) / len(entries))
        for entries in zip(*curves, strict=True)
    ]
