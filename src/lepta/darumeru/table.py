"""Scores and comparisons as tables for a terminal."""

from collections.abc import Mapping

from rich.table import Table

from lepta.darumeru.aggregate import Difference, Estimate, Summary
from lepta.darumeru.metrics import COLUMN_SIZES
from lepta.darumeru.tasks import tasks

TOTAL = "Micro-Avg"


def summary_table(summary: Summary, name: str) -> Table:
    """Tasks under their columns, with 95 % intervals; what is not whole has no number."""
    title = f"{name}, legacy definitions" if summary.definition == "legacy" else name
    table = Table(title=title, title_justify="left")
    for heading, justify in (("", "left"), ("score", "right"), ("95 %", "right"), ("samples", "right")):
        table.add_column(heading, justify="right" if justify == "right" else "left")
    for column in COLUMN_SIZES:
        table.add_row(f"[bold]{column}", *_numbers(summary.columns.get(column)), "", style="bold")
        for task in (task for task in tasks(summary.definition).values() if task.column == column):
            found = summary.tasks.get(task.name)
            table.add_row(
                f"  {task.title}", *_numbers(found.score if found else None), f"{found.samples:,}" if found else ""
            )
        table.add_section()
    table.add_row(TOTAL, *_numbers(summary.micro_avg), "", style="bold")
    return table


def comparison_table(differences: Mapping[str, Difference], first: str, second: str) -> Table:
    """Both scores, the difference with its 95 % interval, and p."""
    table = Table(title=f"{second} less {first}", title_justify="left")
    table.add_column("")
    for heading in (first, second, "difference", "95 %", "p"):
        table.add_column(heading, justify="right")
    for name, found in differences.items():
        value, interval = _numbers(found.difference, sign="+")
        p = "" if found.p is None else f"{found.p:.3f}"
        style = "bold" if name == TOTAL or name in COLUMN_SIZES else ""
        table.add_row(name, f"{found.first:.3f}", f"{found.second:.3f}", value, interval, p, style=style)
    return table


def _numbers(estimate: Estimate | None, sign: str = "") -> tuple[str, str]:
    if estimate is None:
        return "-", ""
    interval = "" if estimate.low is None else f"{estimate.low:{sign}.3f} to {estimate.high:{sign}.3f}"
    return f"{estimate.value:{sign}.3f}", interval
