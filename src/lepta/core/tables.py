"""Tables for the terminal."""

import math
import textwrap

from rich import box
from rich.markup import escape
from rich.table import Column, Table

MOST_DAYS = 60  # beyond, nobody waits
HEADING = 12  # characters of a line of a heading: long ones would leave no room for the first column


def number_table(first: str, *numbers: str, title: str | None = None) -> Table:
    """A table whose first column is text, which folds, and whose others are numbers, aligned right and never cut.

    Six columns fit into a terminal of 80.
    """
    table = narrow_table(Column(escape(first), overflow="fold"))
    for name in numbers:
        table.add_column(escape(_lines(name)), justify="right", no_wrap=True)
    table.title, table.title_justify, table.show_header = title, "left", any((first, *numbers))
    return table


def narrow_table(*columns: Column | str) -> Table:
    """A table without vertical lines, and with one space between columns."""
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def counted(number: int, one: str) -> str:
    """A number and what it counts: 1 token, 2 tokens."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def beside_original(bits: float, original: float) -> str:
    """How well a model reads a text, in bits per byte, and how much more or less than its original takes."""
    more = bits / original - 1
    share = f"{more:.1%} more" if more > 0 else f"{-more:.1%} less"
    return f"{bits:.3f} bits per byte, {share} than the original's {original:.3f}"


def significant(value: float) -> str:
    """A number with three significant digits at least, all those before the point, and never 0.0 for a small one."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(digits, 0)}f}"


def duration(hours: float) -> str:
    """Hours in the unit that a reader expects: seconds, minutes, hours or days."""
    if hours < 1 / 3600:
        return "< 1 s" if hours else "0 s"
    if hours < 1:
        return f"{hours * 60:.0f} min" if hours > 1 / 60 else f"{hours * 3600:.0f} s"
    if hours < 72:
        return f"{hours:,.1f} h"
    days = hours / 24
    return f"{days:,.1f} days" if days <= MOST_DAYS else f"over {MOST_DAYS} days"


def _lines(heading: str) -> str:
    """A heading in short lines, cut at spaces and hyphens; a name that has none is cut where the line ends."""
    return "\n".join(textwrap.fill(line, HEADING) for line in heading.split("\n"))
