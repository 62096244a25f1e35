"""Progress bars on standard error: what, how far, how fast, how long still."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")

console = Console(stderr=True)


@contextmanager
def progress(description: str, total: float) -> Iterator["Bar"]:
    """Show a bar while the block runs; silent where standard error is not a terminal."""
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield Bar(bars, bars.add_task(description, total=total, note=""))


class Bar:
    """One running progress bar."""

    def __init__(self, bars: Progress, task: int) -> None:
        self._bars, self._task = bars, task

    def set(self, done: float, note: str = "") -> None:
        """Move to `done` and show a short note such as a rate."""
        self._bars.update(self._task, completed=done, note=note)  # type: ignore[arg-type]


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Go through items under a progress bar."""
    with progress(description, total) as bar:
        for done, item in enumerate(items, 1):
            yield item
            bar.set(done)
