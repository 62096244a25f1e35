"""Tables for the terminal."""

import math
import textwrap

from rich.markup import escape
from rich.table import Column, Table

HEADING = 12  # characters of a line of a heading: long ones would leave no room for the first column


def number_table(first: str, *numbers: str, title: str | None = None) -> Table:
    """A table whose first column is text, which folds, and whose others are numbers, aligned right and never cut."""
    headings = [escape(_lines(name)) for name in numbers]
    columns = [Column(heading, justify="right", no_wrap=True) for heading in headings]
    return Table(Column(escape(first), overflow="fold"), *columns, title=title, title_justify="left")


def significant(value: float) -> str:
    """A number with three significant digits at least, all those before the point, and never 0.0 for a small one."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(digits, 0)}f}"


def _lines(heading: str) -> str:
    """A heading in short lines, cut at spaces alone."""
    lines = [
        textwrap.fill(line, HEADING, break_long_words=False, break_on_hyphens=False) for line in heading.split("\n")
    ]
    return "\n".join(lines)
