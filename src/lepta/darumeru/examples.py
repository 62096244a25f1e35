"""Solved examples, taken out of the rows to ask."""

from collections import Counter
from collections.abc import Sequence

from lepta.darumeru.rows import Row


def set_aside(rows: Sequence[Row], number: int) -> tuple[list[Row], list[Row]]:
    """Rows to ask, and so many examples of each stratum: the first ones, with each label in turn.

    Rows that are too near to an example leave the rows to ask too (see `apart`).
    """
    shots: list[Row] = []
    for stratum in dict.fromkeys(row.stratum for row in rows):
        shots += _balanced([row for row in rows if row.stratum == stratum], number)
    return apart(rows, shots), shots


def apart(rows: Sequence[Row], shots: Sequence[Row]) -> list[Row]:
    """Rows that share no unit (the same text, the same exam) with an example, and do not ask the same as one."""
    units, asked = {row.unit for row in shots}, set(map(_asked, shots))
    return [row for row in rows if row.unit not in units and _asked(row) not in asked]


def _asked(row: Row) -> str:
    """All of a row but its name and its answer."""
    return row.model_dump_json(exclude={"id", "answer", "answers"})


def _balanced(rows: Sequence[Row], number: int) -> list[Row]:
    left, taken = list(rows), Counter[str]()
    chosen: list[Row] = []
    while left and len(chosen) < number:
        row = min(left, key=lambda row: taken[row.sort])
        left.remove(row)
        taken[row.sort] += 1
        chosen.append(row)
    return chosen
