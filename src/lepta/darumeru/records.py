"""Records of public files: CSV, JSON, JSONL and text, each with the place that an error message names."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.darumeru.rows import LETTERS
from lepta.text.formats import read_rows, read_text

Fields = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One record of a file, with what an error message and a converter need to know about it."""

    fields: Mapping[str, Any]
    where: str
    file: Path
    number: int

    def __getitem__(self, name: str) -> Any:
        """Value of a field; LeptaError if it is not there."""
        if name not in self.fields:
            raise LeptaError(f"{self.where}: no field {name!r}; it has {', '.join(map(str, self.fields))}")
        return self.fields[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Value of a field, or the default."""
        return self.fields.get(name, default)


def read_records(path: Path) -> Iterator[Record]:
    """Read records of a CSV (with or without header), JSON, JSONL or text file, plain or gzipped.

    JSON may be a list, or objects and lists inside each other as in MERA ({"data": {"test": [...]}}) and SQuAD.
    """
    if not path.is_file():
        raise LeptaError(f"{path}: no such file")
    suffixes = path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    if suffixes == "jsonl":
        for where, number, fields, _ in read_rows(path):
            yield Record(fields, where, path, number)
        return
    text = read_text(path)
    readers = {"csv": _csv_records, "json": _json_records, "txt": _text_records}
    if suffixes not in readers:
        raise LeptaError(f"{path}: unknown type of file; expected .csv, .json, .jsonl or .txt, plain or .gz")
    for number, fields in readers[suffixes](text, path):
        yield Record(fields, f"{path}, {'line' if suffixes == 'csv' else 'record'} {number}", path, number)


def _csv_records(text: str, path: Path) -> Iterator[tuple[int, Fields]]:
    """Rows of a CSV file; one without header is MMLU's: question, four choices, letter."""
    rows = list(_csv_rows(text, path))
    first = rows[0][1] if rows else []
    headless = len(first) == 6 and first[5] in LETTERS
    names = ["question", *LETTERS, "answer"] if headless else first
    for number, cells in rows if headless else rows[1:]:
        if len(cells) != len(names):
            raise LeptaError(f"{path}, line {number}: {len(cells)} cells; expected {len(names)}")
        yield number, dict(zip(names, cells, strict=True))


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    table = csv.reader(io.StringIO(text, newline=""))
    try:
        yield from ((table.line_num, cells) for cells in table if cells)  # a blank line has none
    except csv.Error as error:
        raise LeptaError(f"{path}, line {table.line_num}: not CSV ({error}); see that all quotes are closed") from error


def _json_records(text: str, path: Path) -> Iterator[tuple[int, Fields]]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise LeptaError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    return enumerate(_objects(value), 1)


def _objects(value: Any) -> Iterator[Fields]:
    """Records inside lists and wrapping objects; SQuAD's articles and paragraphs become one record a question."""
    if isinstance(value, list):
        for part in value:
            yield from _objects(part)
    elif isinstance(value, dict) and "paragraphs" in value:
        yield from _objects(value["paragraphs"])
    elif isinstance(value, dict) and "qas" in value:
        for question in value["qas"]:
            yield {"context": value["context"], **question}
    elif isinstance(value, dict) and "data" in value:
        yield from _objects(value["data"])
    elif isinstance(value, dict) and value and all(isinstance(part, list) for part in value.values()):
        yield from _objects(value.get("test", list(value.values())))
    elif isinstance(value, dict):
        yield value


def _text_records(text: str, path: Path) -> Iterator[tuple[int, Fields]]:
    yield 1, {"text": text}
