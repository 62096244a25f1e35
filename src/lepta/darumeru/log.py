"""Answers on disk: one JSONL file for each task, its first line says what they depend on, each other line is a sample.

OUTPUT/samples/TASK.jsonl   written batch by batch, so that a run that is killed goes on
OUTPUT/summary.json         tasks, columns, Micro-Avg
OUTPUT/report.html          the same as a page, with wrong answers (see `lepta.report.darumeru`)
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lepta.darumeru.aggregate import TaskResult
from lepta.darumeru.measures import SampleScore
from lepta.errors import LeptaError
from lepta.locate import read_json

SAMPLES, SUMMARY, PAGE = "samples", "summary.json", "report.html"

Record = dict[str, Any]


class TaskLog:
    """The answers to one task.

    Parameters
    ----------
    folder : Path
        Output of the run.
    header : mapping
        All that the answers depend on, and what `result_of` needs, as JSON.

    Raises
    ------
    LeptaError
        If the file holds answers that depend on something else.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.path = folder / SAMPLES / f"{header['task']}.jsonl"
        self._header = json.loads(json.dumps(header))
        self.records: dict[str, Record] = {}
        if self.path.is_file():
            found, records = read_log(self.path)
            if unlike := different(found, self._header):
                raise LeptaError(
                    f"{self.path}: holds answers of another run ({', '.join(unlike)} changed); give another --output, "
                    "or --force to start over"
                )
            self.records = {record["id"]: record for record in records if "error" not in record}

    def keep(self, ids: set[str]) -> None:
        """Leave out all samples but these, and be ready for more."""
        self.records = {key: record for key, record in self.records.items() if key in ids}
        self._write(list(self.records.values()))

    def add(self, records: Sequence[Record]) -> None:
        """Append the samples of a batch: all of them or, if the run is killed, a part that `keep` leaves out."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(_line(record) for record in records))
        self.records |= {record["id"]: record for record in records}

    def finish(self, order: Sequence[str]) -> None:
        """Put samples into the order of the task: the file then tells nothing of how often the run was killed."""
        if list(self.records) != list(order):
            self._write([self.records[key] for key in order])

    def _write(self, records: Sequence[Record]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text("".join(_line(record) for record in [self._header, *records]), encoding="utf-8")
        partial.replace(self.path)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def different(found: Mapping[str, Any], wanted: Mapping[str, Any], name: str = "") -> list[str]:
    """Names of values that differ between two headers, those inside others with a dot."""
    unlike: list[str] = []
    for key in sorted({*found, *wanted}):
        mine, theirs = found.get(key), wanted.get(key)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            unlike += different(mine, theirs, f"{name}{key}.")
        elif mine != theirs:
            unlike.append(name + key)
    return unlike


def read_log(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """Header and samples of a log; a last line that was cut off is left out.

    Raises
    ------
    LeptaError
        If another line is not JSON.
    """
    lines = path.read_bytes().split(b"\n")
    whole: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], 1):  # a whole last line ends in a line break
        try:
            whole.append(json.loads(line))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise LeptaError(f"{path}, line {number}: not JSON ({error}); start over with --force") from error
    if not whole:
        raise LeptaError(f"{path}: empty; expected a header; start over with --force")
    return whole[0], whole[1:]


def read_results(folder: Path) -> dict[str, tuple[TaskResult, list[Record]]]:
    """All results of a run, with their samples.

    Returns
    -------
    dict
        Task -> its result and the records of its samples.

    Raises
    ------
    LeptaError
        If there are none.
    """
    paths = sorted((folder / SAMPLES).glob("*.jsonl"))
    if not paths:
        raise LeptaError(f"{folder}: no {SAMPLES}/TASK.jsonl; expected the output folder of `lepta darumeru run`")
    return {path.stem: (result_of(*log), log[1]) for path, log in ((path, read_log(path)) for path in paths)}


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a run; LeptaError if it was not finished."""
    file = folder / SUMMARY
    if not file.is_file():
        raise LeptaError(f"{file}: no such file; run `lepta darumeru run` with this --output to its end")
    return read_json(file)


def forget(folder: Path) -> None:
    """Remove the answers and scores of a run, and nothing else that is in its folder."""
    for path in [*(folder / SAMPLES).glob("*.jsonl"), folder / SUMMARY, folder / PAGE]:
        path.unlink(missing_ok=True)


def result_of(header: Mapping[str, Any], records: Sequence[Record]) -> TaskResult:
    """The result of a task, from its log."""
    return TaskResult(
        header["task"],
        header["definition"],
        header["expected"],
        [SampleScore(**record["score"]) for record in records if "score" in record],
        [f"{record['id']}: {record['error']}" for record in records if "error" in record],
        header["conditions"],
    )
