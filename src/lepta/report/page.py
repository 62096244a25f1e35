"""Pages: a template filled in, with the filters that write numbers, and put in its place."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from lepta.core.errors import LeptaError
from lepta.core.output import partial_of

MISSING = "–"


def write_page(template: str, view: dict[str, Any], file: Path) -> None:
    """Fill a template (see `render`) and write the page atomically; LeptaError if it cannot be written."""
    page, partial = render(template, view), partial_of(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8", errors="replace")
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise LeptaError(f"{file}: cannot be written ({error.strerror or error}); nothing was left there") from error


def render(template: str, view: dict[str, Any]) -> str:
    """Fill a template of this folder; what it shows is escaped, numbers are written by the filters below."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "count": count,
        "decimal": decimal,
        "percent": percent,
        "signed": signed,
        "rate": rate,
        "times": times,
        "duration": duration,
    }
    return environment.get_template(template).render(view)


def count(value: float) -> str:
    """A whole number."""
    return f"{value:,.0f}"


def decimal(value: float | None, places: int = 2) -> str:
    """A number with decimal places."""
    return MISSING if value is None else f"{value:,.{places}f}"


def signed(value: float) -> str:
    """A difference."""
    return f"{value:+.3f}"


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
