"""Darumeru as self-contained HTML pages: one model with its wrong answers, and two models side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lepta.darumeru.aggregate import Difference, Summary, TaskResult, compare, summarise
from lepta.darumeru.log import PAGE, Record, read_results, read_summary
from lepta.darumeru.metrics import COLUMN_SIZES
from lepta.darumeru.table import TOTAL
from lepta.darumeru.tasks import NO_LABEL, Task, tasks
from lepta.report.chart import score_chart
from lepta.report.page import write_page

RUN, COMPARISON = "darumeru_run.html.j2", "darumeru_comparison.html.j2"
SHOWN = 50  # answers of a task
LABELS_ASIDE = ("gold", "answer", "label_mass")  # values of a sample that are no score

Results = dict[str, tuple[TaskResult, list[Record]]]


def write_run_page(folder: Path, name: str) -> None:
    """Write `report.html` beside the summary of a run.

    Parameters
    ----------
    folder : Path
        Output of `lepta.darumeru.runner.run`.
    name : str
        What the page calls the model.

    Raises
    ------
    LeptaError
        If there is no summary, or the page cannot be written.
    """
    written, results = read_summary(folder), read_results(folder)
    known = tasks(written["definition"])
    rows = _rows(known, [_estimates(written)])
    write_page(
        RUN,
        {
            "name": name,
            "total": written["micro_avg"],
            "tiles": [row for row in rows if row["kind"] != "task" and row["scores"][0]],
            "rows": [row | {"facts": written["tasks"].get(row["name"])} for row in rows],
            "chart": score_chart(rows, [name]) if written["tasks"] else None,
            "refused": _not_whole(known, written["refused"]),
            "conditions": _conditions(written),
            "data": {task: results[task][0].conditions["data"] for task in known if task in results},
            "drills": [_wrong(known[task], results[task][1]) for task in known if task in results],
        },
        folder / PAGE,
    )


def write_comparison_page(
    folders: Sequence[Path], sides: Sequence[Results], pair: Mapping[str, Any], file: Path
) -> None:
    """Write a page with two models side by side, and the answers that changed.

    Parameters
    ----------
    folders : pair of Path
        Outputs of `lepta.darumeru.runner.run` under the same settings.
    sides : pair of dict
        Their results (`lepta.darumeru.log.read_results`).
    pair : mapping
        What `side_by_side` makes of them.
    file : Path
        The page.

    Raises
    ------
    LeptaError
        If a run has no summary, or the page cannot be written.
    """
    known = tasks(pair["definition"])
    both = [task for task in known if all(task in side for side in sides)]
    write_page(
        COMPARISON,
        {
            **pair,
            "chart": score_chart(pair["rows"], pair["names"])
            if any(any(row["scores"]) for row in pair["rows"])
            else None,
            "conditions": [_conditions(read_summary(folder)) for folder in folders],
            "drills": [_changed(known[task], sides[0][task][1], sides[1][task][1]) for task in both],
        },
        file,
    )


def side_by_side(
    sides: Sequence[Results],
    names: Sequence[str],
    seed: int = 1,
    differences: Mapping[str, Difference] | None = None,
) -> dict[str, Any]:
    """Scores of two runs and their paired differences, as JSON.

    Parameters
    ----------
    sides : pair of dict
        Results of both (`lepta.darumeru.log.read_results`).
    names : pair of str
        What to call the models.
    seed : int
        Of the bootstrap.
    differences : mapping, optional
        What `lepta.darumeru.aggregate.compare` gives for them, if that is known already.

    Returns
    -------
    dict
        `names`, `definition`, `rows` (Micro-Avg, then each column and its tasks: `name`, `title`, `kind`, `scores` of
        both with intervals or None, `difference` with its interval and `p`, or None) and `refused` (a line for each
        task that is not whole).
    """
    summaries = [summarise([result for result, _ in side.values()], seed=seed, partial=True) for side in sides]
    if differences is None:
        differences = _differences(sides, summaries, seed)
    known = tasks(summaries[0].definition)
    rows = _rows(known, [_estimates(asdict(summary)) for summary in summaries])
    return {
        "names": list(names),
        "definition": summaries[0].definition,
        "rows": [row | {"difference": _as_json(differences.get(row["name"]))} for row in rows],
        "refused": [
            f"{name}: {line}"
            for name, summary in zip(names, summaries, strict=True)
            for line in _not_whole(known, summary.refused)
        ],
    }


def _differences(sides: Sequence[Results], summaries: Sequence[Summary], seed: int) -> dict[str, Difference]:
    """Compare what is whole in both; nothing if no task is."""
    if not any(task in summaries[1].tasks for task in summaries[0].tasks):
        return {}
    first, second = ([result for result, _ in side.values()] for side in sides)
    return compare(first, second, seed=seed)


def _as_json(difference: Difference | None) -> dict[str, Any] | None:
    return {**asdict(difference.difference), "p": difference.p} if difference else None


def _estimates(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Name of a task, column or the total -> its estimate."""
    scores = {name: task["score"] for name, task in summary["tasks"].items()}
    return {**scores, **summary["columns"], TOTAL: summary["micro_avg"]}


def _rows(known: Mapping[str, Task], models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The total, then each column and its tasks, with the scores of each model."""
    names = [(TOTAL, TOTAL, "total")]
    for column in COLUMN_SIZES:
        names.append((column, column, "column"))
        names += [(task.name, task.title, "task") for task in known.values() if task.column == column]
    return [
        {"name": name, "title": title, "kind": kind, "scores": [scores.get(name) for scores in models]}
        for name, title, kind in names
    ]


def _not_whole(known: Mapping[str, Task], refused: Mapping[str, str]) -> list[str]:
    """Why tasks that were asked do not count."""
    return [f"{known[name].title}: {reason}" for name, reason in refused.items() if reason != "missing"]


def _conditions(written: Mapping[str, Any]) -> dict[str, Any]:
    """What the answers depend on."""
    aside = ("tasks", "columns", "micro_avg", "refused", "shots")
    shots = {"examples asked for": written["shots"]}
    return shots | {name: value for name, value in written.items() if name not in aside and value not in (None, "")}


# --- answers ----------------------------------------------------------------------------------------------------------


def worth(task: Task, record: Record) -> float:
    """What one answer is worth, 0 to 1 (RuCoLA and the like: right or wrong); an error is worth -1."""
    if "error" in record:
        return -1.0
    values = record["score"]["values"]
    if "correct" in values:
        return float(values["correct"])
    if "most" in values:
        return float(values["points"] / values["most"])
    return sum(values[name] for name in task.measure.headline) / len(task.measure.headline)


def _wrong(task: Task, records: Sequence[Record]) -> dict[str, Any]:
    """Answers that are not worth all there is, errors first, then the worst."""
    wrong = sorted((record for record in records if worth(task, record) < 1), key=lambda record: worth(task, record))
    return {
        "title": task.title,
        "samples": len(records),
        "wrong": len(wrong),
        "errors": sum("error" in record for record in records),
        "shown": [{"asked": _asked(record), "answers": [_answer(task, record)]} for record in wrong[:SHOWN]],
    }


def _changed(task: Task, first: Sequence[Record], second: Sequence[Record]) -> dict[str, Any]:
    """Answers that are worth less with the second model, and more: the greatest changes first."""
    by_id = {record["id"]: record for record in second}
    pairs = [(record, by_id[record["id"]]) for record in first if record["id"] in by_id]
    changes = [(worth(task, after) - worth(task, before), before, after) for before, after in pairs]

    def shown(chosen: list[tuple[float, Record, Record]]) -> dict[str, Any]:
        ordered = sorted(chosen, key=lambda change: -abs(change[0]))
        return {
            "number": len(ordered),
            "shown": [
                {
                    "asked": _asked(before if "question" in before else after),
                    "answers": [_answer(task, record) for record in (before, after)],
                }
                for _, before, after in ordered[:SHOWN]
            ],
        }

    return {
        "title": task.title,
        "samples": len(pairs),
        "lost": shown([change for change in changes if change[0] < 0]),
        "won": shown([change for change in changes if change[0] > 0]),
    }


def _asked(record: Record) -> dict[str, Any]:
    return {"id": record["id"], "question": record.get("question"), "target": record.get("target")}


def _answer(task: Task, record: Record) -> dict[str, Any]:
    """What a model answered, as the pages show it."""
    if "error" in record:
        return {"error": record["error"]}
    answer, log_probs = record["answer"], record["answer"].get("log_probs", [])
    names = task.labels or tuple(str(number) for number in range(len(log_probs)))  # of sentences, from 0 as in the data
    text = answer.get("text", answer.get("label"))
    if answer.get("label") == NO_LABEL:
        text, names = "(none of the labels)", ()
    if text is None:
        text = f"sentence {max(range(len(log_probs)), key=log_probs.__getitem__)}"
    return {
        "text": text,
        "worth": worth(task, record),
        "values": {name: v for name, v in record["score"]["values"].items() if name not in LABELS_ASIDE},
        "shots": record["shots"],
        "log_probs": list(zip(names, log_probs, strict=True)),
        "label_mass": answer.get("label_mass"),
    }
