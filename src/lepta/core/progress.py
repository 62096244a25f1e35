"""Progress on standard error: what, how far, how fast, how long still. A bar in a terminal, lines in a log."""

import os
import threading
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
    SpinnerColumn,
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


def terminal(stderr: bool = False) -> Terminal:
    """A console; of several processes the first one speaks."""
    return Terminal(stderr=stderr, quiet=os.environ.get("RANK", "0") != "0")


console = terminal(stderr=True)
SECONDS_BEFORE_LINE, SECONDS_BETWEEN_LINES = 2, 20  # of a log: what is done sooner is not worth a line


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
    if not _shows_bars():
        with _named_later(description):
            yield _Lines(description, total)
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield _Bar(bars, bars.add_task(description, total=total, note=""))


@contextmanager
def step(description: str) -> Iterator[None]:
    """Say what the block does, of which nobody knows how far it has come: by a spinner, or a line in a log."""
    description = printable(description)
    if _shows_bars():
        columns = (TextColumn(" "), SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bars:
            bars.add_task(description, total=None)
            yield
        return
    with _named_later(description):
        yield


@contextmanager
def _named_later(description: str) -> Iterator[None]:
    """Write a line about the block into a log, unless it ends before that."""
    style = {"highlight": False, "markup": False}
    timer = threading.Timer(SECONDS_BEFORE_LINE, console.print, [f"  {description}"], style)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _shows_bars() -> bool:
    """Whether standard error is a terminal, or a notebook that can show bars: rich draws them by ipywidgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


def _rate(done: float, seconds: float) -> str:
    """How fast something goes; empty if nothing is known of it."""
    if done <= 0 or seconds <= 0:
        return ""
    if done < seconds:
        return f"{seconds / done:.1f} s each"
    return f"{done / seconds:,.0f}/s"


class _Bar:
    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars, self._task = bars, task
        self._started, self._before = time.monotonic(), 0.0

    def begin(self, done: float = 0) -> None:
        self._started, self._before = time.monotonic(), done
        self._bars.reset(self._task, completed=done)  # type: ignore[arg-type]  # annotated as int, any number works

    def set(self, done: float, note: str = "") -> None:
        note = note or _rate(done - self._before, time.monotonic() - self._started)
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
            note = note or _rate(done - self._before, spent)
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
