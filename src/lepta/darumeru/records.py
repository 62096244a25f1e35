"""Records of public files: CSV, JSON, JSONL and text, each with the place that an error message names."""

import csv
import io
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.core.reading import parse_json
from lepta.darumeru.rows import LETTERS
from lepta.text.formats import read_rows, read_text

Fields = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One record of a file or of a published split; `number` is its place there, `file` the file's name."""

    fields: Mapping[str, Any]
    where: str
    number: int
    file: str = ""

    def __getitem__(self, path: str) -> Any:
        """Value of a field, or of one inside another ("inputs.text"); LeptaError if it is not there."""
        parent, _, name = path.rpartition(".")
        fields = self.get(parent) if parent else self.fields
        if isinstance(fields, Mapping) and name in fields:
            return fields[name]
        place, there = (parent, fields) if isinstance(fields, Mapping) else ("", self.fields)
        raise LeptaError(f"{self.where}: no field {path!r}; {place or 'it'} has {', '.join(map(str, there))}")

    def get(self, *paths: str) -> Any:
        """Value of the first of these fields that is there and neither null nor an empty text, else None."""
        for path in paths:
            value: Any = self.fields
            for name in path.split("."):
                value = value.get(name) if isinstance(value, Mapping) else None
            if value is not None and value != "":
                return value
        return None

    def identity(self, path: str) -> str:
        """The record's own id, or its number."""
        found = self.get(path)
        return str(self.number if found is None else found)


def read_records(path: Path) -> Iterator[Record]:
    """Read records of a CSV (with or without header), JSON, JSONL or text file, plain or gzipped.

    JSON may be a list, or objects and lists inside each other as in MERA ({"data": {"test": [...]}}) and SQuAD.
    """
    if not path.is_file():
        raise LeptaError(f"{path}: no such file")
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    if kind == "jsonl":
        for row in read_rows(path):
            yield Record(row.value, row.where, row.number, path.name)
    elif kind == "csv":
        for line, fields in _csv_records(path):
            yield Record(fields, f"{path}, line {line}", line, path.name)
    elif kind == "json":
        for number, fields in enumerate(_objects(parse_json(read_text(path), path)), 1):
            yield Record(fields, f"{path}, record {number}", number, path.name)
    elif kind == "txt":
        yield Record({"text": read_text(path)}, f"{path}, record 1", 1, path.name)
    else:
        raise LeptaError(f"{path}: unknown type of file; expected .csv, .json, .jsonl or .txt, plain or .gz")


def _csv_records(path: Path) -> Iterator[tuple[int, Fields]]:
    """Line and fields of each row of a CSV file, streamed: a small packed file may have millions."""
    table = csv.reader(io.StringIO(read_text(path), newline=""))
    rows: Iterator[list[str]] = filter(None, table)  # a blank line has no cells
    try:
        names = next(rows, [])
        # MMLU's own files have no header: question, four choices, letter.
        if len(names) == 6 and names[5] in LETTERS:
            rows = itertools.chain([names], rows)
            names = ["question", *LETTERS, "answer"]
        for cells in rows:
            if len(cells) != len(names):
                raise LeptaError(f"{path}, line {table.line_num}: {len(cells)} cells; expected {len(names)}")
            yield table.line_num, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise LeptaError(f"{path}, line {table.line_num}: not CSV ({error}); see that all quotes are closed") from error


def _objects(value: Any) -> Iterator[Fields]:
    """Records inside lists and wrapping objects; SQuAD's articles and paragraphs become one record a question."""
    if isinstance(value, list):
        for part in value:
            yield from _objects(part)
    elif not isinstance(value, dict):
        return
    elif "paragraphs" in value:
        yield from _objects(value["paragraphs"])
    elif "qas" in value:
        for question in _objects(value["qas"]):
            yield {"context": value.get("context"), **question}
    elif "data" in value:
        yield from _objects(value["data"])
    elif value and all(isinstance(part, list) for part in value.values()):
        yield from _objects(value.get("test", list(value.values())))  # splits by name
    else:
        yield value
