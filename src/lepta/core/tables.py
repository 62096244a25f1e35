"""Tables for the terminal."""

from rich.markup import escape
from rich.table import Column, Table


def number_table(first: str, *numbers: str, title: str | None = None) -> Table:
    """A table whose first column is text, which folds, and whose others are numbers, aligned right and never cut."""
    columns = [Column(escape(name), justify="right", no_wrap=True) for name in numbers]
    return Table(Column(escape(first), overflow="fold"), *columns, title=title, title_justify="left")
