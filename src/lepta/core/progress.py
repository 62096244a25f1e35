"""Progress on standard error: what, how far, how fast, how long still. A bar in a terminal, lines in a log."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from lepta.core.errors import printable

Item = TypeVar("Item")


class Terminal(Console):
    """A console that shows control characters of texts, which may come from files, and does not send them on."""

    def render_str(self, text: str, **options: Any) -> Text:
        """A text, as `rich` prints it: all of them, those of tables too, are made here."""
        return super().render_str(printable(text), **options)


console = Terminal(stderr=True, quiet=os.environ.get("RANK", "0") != "0")  # of several processes the first one speaks
SECONDS_BETWEEN_LINES = 20


class Meter(Protocol):
    """Shows how far a job has come."""

    def begin(self, done: float = 0) -> None:
        """Count time from now on: what is done already took none of it."""

    def set(self, done: float, note: str = "") -> None:
        """Move to `done` and show a short note such as a rate."""


@contextmanager
def progress(description: str, total: float | None) -> Iterator[Meter]:
    """Show how far the block has come: a bar that goes away, or lines where standard error is no terminal or notebook.

    Without a total it shows what is done and for how long.
    """
    description = printable(description)
    if not (console.is_terminal or _in_notebook()):
        yield _Lines(description, total)
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield _Bar(bars, bars.add_task(description, total=total, note=""))


def _in_notebook() -> bool:
    """Whether a notebook can show bars: rich draws them by ipywidgets."""
    return console.is_jupyter and find_spec("ipywidgets") is not None


class _Bar:
    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def begin(self, done: float = 0) -> None:
        self._bars.reset(self._task, completed=done)  # type: ignore[arg-type]  # annotated as int, any number works

    def set(self, done: float, note: str = "") -> None:
        self._bars.update(self._task, completed=done, note=note)


class _Lines:
    def __init__(self, description: str, total: float | None) -> None:
        self._description, self._total = description, total
        self._last = time.monotonic()
        self.begin()

    def begin(self, done: float = 0) -> None:
        self._started, self._before = time.monotonic(), done

    def set(self, done: float, note: str = "") -> None:
        now = time.monotonic()
        if done > self._before and now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            spent = now - self._started
            if self._total is None:
                line, rest = f"  {self._description} {done:,.0f} {note}", f"{spent / 60:.1f} min"
            else:
                line = f"  {self._description} {done:,.0f} of {self._total:,.0f} {note}"
                rest = f"{spent / (done - self._before) * (self._total - done) / 60:.1f} min left"
            console.print(f"{line.rstrip()}, {rest}", highlight=False, markup=False)


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Go through items and show how far they have come."""
    with progress(description, total) as meter:
        for done, item in enumerate(items, 1):
            yield item
            meter.set(done)
