"""Pages: a template of this folder filled in, with the filters that write numbers, and put in its place."""

from pathlib import Path
from typing import Any

from lepta.core.output import write_new_file
from lepta.core.templates import render as render_template

MISSING = "–"


def write_page(template: str, view: dict[str, Any], file: Path) -> None:
    """Fill a template (see `render`) and write the page atomically; LeptaError if it cannot be written."""
    page = render(template, view).encode(errors="replace").decode()  # halves of UTF-16 pairs become "?"
    write_new_file(file, page, replace=True)


def render(template: str, view: dict[str, Any]) -> str:
    """Fill a template of this folder; what it shows is escaped, numbers are written by the filters below."""
    filters = {one.__name__: one for one in (count, decimal, percent, signed, rate, times, duration, short)}
    return render_template(f"report/{template}", view, escape=True, filters=filters)


def count(value: float) -> str:
    """A whole number."""
    return f"{value:,.0f}"


def decimal(value: float | None, places: int = 2) -> str:
    """A number with decimal places."""
    return MISSING if value is None else f"{value:,.{places}f}"


def signed(value: float) -> str:
    """A difference; one that rounds to zero has no minus."""
    return f"{value:+z.3f}"


def percent(share: float | None) -> str:
    """A share from 0 to 1."""
    return MISSING if share is None else f"{share:.0%}"


def rate(value: float) -> str:
    """So many in a second."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def times(ratio: float | None, unit: str = " times") -> str:
    """A ratio of two numbers."""
    return MISSING if ratio is None else f"{ratio:.2f}{unit}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def short(value: float) -> str:
    """A number with k, M or G for its thousands."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
