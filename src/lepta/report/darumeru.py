"""Darumeru as self-contained HTML pages, one model with its wrong answers and two side by side, and as tables."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from rich.table import Table

from lepta.core.tables import number_table
from lepta.darumeru.aggregate import TOTAL, Difference, Estimate, Summary, compare, summarise
from lepta.darumeru.log import PAGE, Record, Results, read_results, read_summary, task_results
from lepta.darumeru.metrics import COLUMN_SIZES
from lepta.darumeru.tasks import NO_LABEL, Task, tasks
from lepta.report.chart import score_chart
from lepta.report.page import write_page

RUN, COMPARISON = "darumeru_run.html.j2", "darumeru_comparison.html.j2"
SHOWN = 50  # answers of a task
BOLD = dict.fromkeys((TOTAL, *COLUMN_SIZES), "bold")  # lines of a table
NO_SCORES = ("gold", "answer", "label_mass")  # values of a sample that are no score
NO_CONDITIONS = ("tasks", "columns", "micro_avg", "refused", "shots")  # of a summary


def write_run_page(folder: Path, name: str) -> None:
    """Write `report.html` beside the summary of a run; the page calls the model by the name."""
    summary, results = read_summary(folder), read_results(folder)
    known = tasks(summary["definition"])
    data, drills = {}, []
    for task in known.values():
        if task.name in results:
            result, records = results[task.name]
            data[task.name] = result.conditions["data"]
            drills.append(_wrong(task, records))
    rows = _rows(known, [_estimates(summary)])
    for row in rows:
        row["facts"] = summary["tasks"].get(row["name"])
    write_page(
        RUN,
        {
            "name": name,
            "total": summary["micro_avg"],
            "tiles": [row for row in rows if row["kind"] != "task" and row["scores"][0]],
            "rows": rows,
            "chart": score_chart(rows, [name]),
            "refused": _not_whole(known, summary["refused"]),
            "conditions": _conditions(summary),
            "data": data,
            "drills": drills,
        },
        folder / PAGE,
    )


def write_comparison_page(
    folders: Sequence[Path], sides: Sequence[Results], pair: Mapping[str, Any], file: Path
) -> None:
    """Write a page with two models side by side, and the answers that changed.

    It takes the outputs of two runs under the same settings, their results (`read_results`) and what `side_by_side`
    makes of these.
    """
    first, second = sides
    drills = []
    for task in tasks(pair["definition"]).values():
        if task.name in first and task.name in second:
            drills.append(_changed(task, first[task.name][1], second[task.name][1]))
    write_page(
        COMPARISON,
        {
            **pair,
            "chart": score_chart(pair["rows"], pair["names"]),
            "conditions": list(map(_conditions, map(read_summary, folders))),
            "drills": drills,
        },
        file,
    )


def side_by_side(
    sides: Sequence[Results], names: Sequence[str], seed: int = 1, differences: Mapping[str, Difference] | None = None
) -> dict[str, Any]:
    """Scores of two runs and their paired differences, as JSON.

    `differences` is what `lepta.darumeru.aggregate.compare` gives for them, if that is known already. The result has
    `names`, `definition`, `rows` (Micro-Avg, then each column and its tasks: `name`, `title`, `kind`, `scores` of both
    with intervals or None, `difference` with its interval and `p`, or None) and `refused` (a line for each task that is
    not whole).
    """
    first, second = map(task_results, sides)
    summaries = [summarise(results, seed=seed, partial=True) for results in (first, second)]
    if differences is None:
        differences = {}
        if summaries[0].tasks.keys() & summaries[1].tasks.keys():
            differences = compare(first, second, seed=seed)
    known = tasks(summaries[0].definition)
    rows = _rows(known, list(map(_estimates, map(asdict, summaries))))
    for row in rows:
        row["difference"] = None
        if found := differences.get(row["name"]):
            row["difference"] = {**asdict(found.difference), "p": found.p}
    refused = []
    for name, summary in zip(names, summaries, strict=True):
        refused += [f"{name}: {line}" for line in _not_whole(known, summary.refused)]
    return {"names": list(names), "definition": summaries[0].definition, "rows": rows, "refused": refused}


def _estimates(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Name of a task, column or the total -> its estimate."""
    scores = {name: task["score"] for name, task in summary["tasks"].items()}
    return {**scores, **summary["columns"], TOTAL: summary["micro_avg"]}


def _rows(known: Mapping[str, Task], models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The total, then each column and its tasks, with the scores of each model."""

    def row(name: str, title: str, kind: str) -> dict[str, Any]:
        return {"name": name, "title": title, "kind": kind, "scores": [scores.get(name) for scores in models]}

    rows = [row(TOTAL, TOTAL, "total")]
    for column in COLUMN_SIZES:
        rows.append(row(column, column, "column"))
        rows += [row(task.name, task.title, "task") for task in known.values() if task.column == column]
    return rows


def _not_whole(known: Mapping[str, Task], refused: Mapping[str, str]) -> list[str]:
    """Why tasks that were asked do not count."""
    return [f"{known[name].title}: {reason}" for name, reason in refused.items() if reason != "missing"]


def _conditions(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the answers depend on."""
    conditions = {"examples asked for": summary["shots"]}
    for name, value in summary.items():
        if name not in NO_CONDITIONS and value not in (None, ""):
            conditions[name] = value
    return conditions


# --- answers ----------------------------------------------------------------------------------------------------------


def worth(task: Task, record: Record) -> float:
    """The score of one answer, 0 to 1 (RuCoLA and the like: right or wrong); -1 for an error."""
    if "error" in record:
        return -1.0
    values = record["score"]["values"]
    if "correct" in values:
        return float(values["correct"])
    if "most" in values:
        return float(values["points"] / values["most"])
    return sum(values[name] for name in task.measure.headline) / len(task.measure.headline)


def _wrong(task: Task, records: Sequence[Record]) -> dict[str, Any]:
    """Answers that are not fully right, errors first, then the worst."""
    wrong = [record for record in records if worth(task, record) < 1]
    wrong.sort(key=partial(worth, task))
    return {
        "title": task.title,
        "samples": len(records),
        "wrong": len(wrong),
        "errors": sum("error" in record for record in records),
        "shown": list(map(partial(_shown, task), wrong[:SHOWN])),
    }


def _changed(task: Task, first: Sequence[Record], second: Sequence[Record]) -> dict[str, Any]:
    """Answers that are worse with the second model, and better: the greatest changes first."""
    by_id = {record["id"]: record for record in second}
    changes = []
    for before in first:
        if after := by_id.get(before["id"]):
            changes.append((worth(task, after) - worth(task, before), before, after))
    changes.sort(key=lambda change: -abs(change[0]))
    lost = [pair for change, *pair in changes if change < 0]
    won = [pair for change, *pair in changes if change > 0]
    return {
        "title": task.title,
        "samples": len(changes),
        "lost": {"number": len(lost), "shown": [_shown(task, *pair) for pair in lost[:SHOWN]]},
        "won": {"number": len(won), "shown": [_shown(task, *pair) for pair in won[:SHOWN]]},
    }


def _shown(task: Task, *records: Record) -> dict[str, Any]:
    """One question and what each model answered."""
    asked: dict[str, Any] = {"id": records[0]["id"], "question": None, "target": None}
    for record in records:
        if "question" in record:  # an error has none
            asked |= {"question": record["question"], "target": record.get("target")}
            break
    return {"asked": asked, "answers": [_answer(task, record) for record in records]}


def _answer(task: Task, record: Record) -> dict[str, Any]:
    """What a model answered, as the pages show it."""
    if "error" in record:
        return {"error": record["error"]}
    answer, log_probs = record["answer"], record["answer"].get("log_probs", [])
    names = task.labels or tuple(map(str, range(len(log_probs))))  # of sentences, from 0 as in the data
    text = answer.get("text", answer.get("label"))
    if answer.get("label") == NO_LABEL:
        text, names = "(none of the labels)", ()
    if text is None:
        text = f"sentence {log_probs.index(max(log_probs))}"
    return {
        "text": text,
        "worth": worth(task, record),
        "values": {name: value for name, value in record["score"]["values"].items() if name not in NO_SCORES},
        "shots": record["shots"],
        "log_probs": list(zip(names, log_probs, strict=True)),
        "label_mass": answer.get("label_mass"),
    }


# --- tables for a terminal --------------------------------------------------------------------------------------------


def summary_table(summary: Summary, name: str) -> Table:
    """Tasks that were asked under their columns, with 95 % intervals; what is not whole has no number."""
    if summary.definition == "legacy":
        name += ", legacy definitions"
    table = number_table("task", "score", "95 %", "samples", title=name)
    asked = [task for task in tasks(summary.definition).values() if summary.refused.get(task.name) != "missing"]
    for column, members in itertools.groupby(asked, attrgetter("column")):
        table.add_row(f"[bold]{column}", *_numbers(summary.columns.get(column)), "", style="bold")
        for task in members:
            if found := summary.tasks.get(task.name):
                table.add_row(f"  {task.title}", *_numbers(found.score), f"{found.samples:,}")
            else:
                table.add_row(f"  {task.title}", *_numbers(None), "")
        table.add_section()
    if summary.micro_avg:
        table.add_row(TOTAL, *_numbers(summary.micro_avg), "", style="bold")
    return table


def comparison_table(differences: Mapping[str, Difference], first: str, second: str) -> Table:
    """Both scores, the difference with its 95 % interval, and p."""
    table = number_table("task", first, second, "difference", "95 % interval", "p", title=f"{second} less {first}")
    for name, found in differences.items():
        value, interval = _numbers(found.difference, sign="+")
        p = "" if found.p is None else f"{found.p:.3f}"
        style = BOLD.get(name)
        table.add_row(name, f"{found.first:.3f}", f"{found.second:.3f}", value, interval, p, style=style)
    return table


def _numbers(estimate: Estimate | None, sign: str = "") -> tuple[str, str]:
    if estimate is None:
        return "-", ""
    value = f"{estimate.value:{sign}z.3f}"
    if estimate.low is None:
        return value, ""
    return value, f"{estimate.low:{sign}z.3f} to {estimate.high:{sign}z.3f}"
