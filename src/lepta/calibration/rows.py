"""Rows on disk, appended batch by batch: what was done stays done when a run is killed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def stored_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Stream the rows of a file that is whole."""
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


class Rows:
    """A JSONL file of rows with an `id`, to be added to.

    Parameters
    ----------
    file : Path
        Rows in it are kept; a last one that was cut off is taken out.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.done: set[str] = set()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        whole = 0
        with file.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self.done.add(json.loads(line)["id"])
                whole += len(line)
        with file.open("r+b") as lines:
            lines.truncate(whole)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows."""
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self.done |= {row["id"] for row in rows}
