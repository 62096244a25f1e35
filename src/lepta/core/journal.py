"""Journals: JSONL files that a run appends to batch by batch, so that what was done stays done when it is killed."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lepta.core.output import replacing
from lepta.core.reading import Model, conform, parse_json, read_bytes

REMEDY = "start over with --force"
Row = dict[str, Any]


class IdentifiedRow(BaseModel):
    """A row by itself; journals of a kind have a model of their own."""

    id: str


def read_rows(file: Path, model: type[BaseModel] = IdentifiedRow) -> Iterator[Row]:
    """Stream the rows of a journal; a last one that was cut off is left out. LeptaError names a line that is no row."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.endswith(b"\n"):
                yield parsed_row(line, f"{file}, line {number}", model)


def read_record(file: Path, model: type[Model]) -> Model:
    """A JSON file that a run keeps to go on from; LeptaError if it is damaged."""
    return conform(model, parse_json(read_bytes(file), file, REMEDY), file, REMEDY)


def parsed_row(line: bytes, where: str, model: type[BaseModel]) -> Row:
    """A line as a row; LeptaError, which begins with `where`, unless it is a JSON object that the model takes."""
    row: Row = parse_json(line, where, REMEDY)
    conform(model, row, where, REMEDY)
    return row


def append_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows; killed here, a run leaves whole ones and at most a part of the next."""
    with file.open("a", encoding="utf-8") as out:
        out.write("".join(map(_line, rows)))


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a journal anew, atomically."""
    with replacing(file) as partial, partial.open("w", encoding="utf-8") as out:
        out.writelines(map(_line, rows))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


class Journal:
    """A journal whose rows have an `id`; `done` are the ids of those that are there."""

    def __init__(self, file: Path, model: type[BaseModel] = IdentifiedRow) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        self.done: set[str] = set()
        whole = 0
        with file.open("r+b") as lines:
            for number, line in enumerate(lines, 1):
                if line.endswith(b"\n"):
                    self.done.add(parsed_row(line, f"{file}, line {number}", model)["id"])
                    whole += len(line)
            lines.truncate(whole)  # a last row that was cut off goes: the next one must start a line

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows."""
        rows = list(rows)
        append_rows(self.file, rows)
        self.done |= {row["id"] for row in rows}
