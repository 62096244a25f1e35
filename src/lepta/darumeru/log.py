"""Answers on disk: one JSONL file for each task; its first line says what they depend on, each other line is a sample.

OUTPUT/samples/TASK.jsonl   written batch by batch, so that a run that is killed can be resumed
OUTPUT/summary.json         tasks, columns, Micro-Avg
OUTPUT/report.html          the same as a page, with wrong answers (see `lepta.report.darumeru`)
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from lepta.core.errors import LeptaError, explained
from lepta.core.journal import REMEDY, append_rows, parsed_row, write_rows
from lepta.core.reading import conform, read_json
from lepta.core.settings import LARGEST_SEED
from lepta.darumeru.aggregate import Estimate, TaskResult, TaskSummary
from lepta.darumeru.measures import SampleScore
from lepta.darumeru.tasks import Definition, tasks

SAMPLES, SUMMARY, PAGE = "samples", "summary.json", "report.html"
UNFORESEEN = "unforeseen"  # marks a failed sample whose error may not occur when it is asked again

Record = dict[str, Any]
Results = dict[str, tuple[TaskResult, list[Record]]]  # task -> its result and the records of its samples


class Conditions(BaseModel):
    """What two results must have in common to be compared."""

    version: str | int
    prompt: str
    data: str
    shots: int


class Header(BaseModel):
    """The first line of a log."""

    task: str
    definition: Definition
    expected: Annotated[int, Field(strict=True, ge=0)]
    conditions: Conditions
    run: dict[str, Any]


class LoggedSample(BaseModel):
    """Any other line: a sample that was answered, or the reason why it was not."""

    id: str
    error: str | None = None
    shots: Annotated[int, Field(strict=True, ge=0)] = 0
    question: str = ""
    target: str = ""
    answer: dict[str, Any] = {}
    score: SampleScore | None = None

    @model_validator(mode="after")
    def _one_of(self) -> "LoggedSample":
        if (self.error is None) == (self.score is None):
            raise ValueError("expected a score or an error")
        if self.score and (missing := {"shots", "question", "target", "answer"} - self.model_fields_set):
            raise ValueError(f"expected {', '.join(sorted(missing))} beside the score")
        return self


class SummaryFile(BaseModel):
    """A `summary.json`."""

    definition: Definition
    shots: int
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)]
    tasks: dict[str, TaskSummary]
    columns: dict[str, Estimate]
    micro_avg: Estimate | None
    refused: dict[str, str]


class TaskLog:
    """The answers to one task, in the output folder of a run.

    The header holds all that the answers depend on. Answers in the folder that depend on something else are an error.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.path = folder / SAMPLES / f"{header['task']}.jsonl"
        self._header = json.loads(json.dumps(header))
        self.records: dict[str, Record] = {}
        for path in _logs(folder):
            found, wanted = read_header(path), self._header
            if path != self.path:
                found, wanted = _of_all_tasks(found), _of_all_tasks(wanted)
            if unlike := different(found, wanted):
                raise LeptaError(
                    f"{path}: holds answers of another run ({', '.join(unlike)} changed); give another --output, "
                    "or --force to start over"
                )
        if self.path.is_file():
            self.records = {record["id"]: record for record in read_log(self.path)[1] if "error" not in record}

    def keep(self, ids: set[str]) -> None:
        """Remove all samples but these, and write the file anew."""
        self.records = {key: record for key, record in self.records.items() if key in ids}
        self._write(list(self.records.values()))

    def add(self, records: Sequence[Record]) -> None:
        """Append the samples of a batch; if the run is killed here, a part of them, which `keep` removes."""
        append_rows(self.path, records)
        self.records |= {record["id"]: record for record in records}

    def finish(self, order: Sequence[str]) -> None:
        """Sort samples as the task has them: then the file does not depend on how often the run was killed."""
        if list(self.records) != list(order):
            self._write([self.records[key] for key in order])

    def _write(self, records: Sequence[Record]) -> None:
        write_rows(self.path, [self._header, *records])


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


def check_output(folder: Path) -> None:
    """LeptaError if the output of a run is a file."""
    if folder.exists() and not folder.is_dir():
        raise LeptaError(f"{folder}: is a file; expected a folder for answers and scores; give another --output")


def _logs(folder: Path) -> list[Path]:
    return sorted((folder / SAMPLES).glob("*.jsonl"))


def _of_all_tasks(header: Mapping[str, Any]) -> dict[str, Any]:
    """What the tasks of one run have in common; each may have a limit of its own."""
    run = {name: value for name, value in header["run"].items() if name != "limit"}
    return {"definition": header["definition"], "shots": header["conditions"].get("shots"), "run": run}


def read_header(path: Path) -> Record:
    """The first line of a log."""
    with path.open("rb") as file:
        return _parsed(path, 1, file.readline())


def logged_dtype(folder: Path) -> str | None:
    """The precision that a run in this folder was begun with, if it is known."""
    logs = _logs(folder)
    return read_header(logs[0])["run"].get("dtype") if logs else None


def read_log(path: Path) -> tuple[Record, list[Record]]:
    """Header and samples of a log; a last line that was cut off is left out, any other damage is an error."""
    lines = path.read_bytes().split(b"\n")[:-1]  # a whole last line ends in a line break
    header, *records = [_parsed(path, number, line) for number, line in enumerate(lines or [b""], 1)]
    return header, records


def _parsed(path: Path, number: int, line: bytes) -> Record:
    """A line of a log: the header, or a sample."""
    record = parsed_row(line, f"{path}, line {number}", Header if number == 1 else LoggedSample)
    if number == 1 and record["task"] != path.stem:
        raise LeptaError(f"{path}, line 1: task: expected {path.stem!r}, as the file is called; {REMEDY}")
    return record


def read_results(folder: Path) -> Results:
    """All results of one run, with their samples."""
    paths = _logs(folder)
    if not paths:
        raise LeptaError(f"{folder}: no {SAMPLES}/TASK.jsonl; expected the output folder of `lepta darumeru run`")
    logs = dict(zip(paths, map(read_log, paths), strict=True))
    first = _of_all_tasks(logs[paths[0]][0])
    for path, (header, _) in logs.items():
        if unlike := different(_of_all_tasks(header), first):
            raise LeptaError(
                f"{path}: is of another run than {paths[0].name} ({', '.join(unlike)} differ); "
                "keep the logs of one run in a folder"
            )
    results: Results = {}
    for path, (header, records) in logs.items():
        with explained(path, "its scores are not those of its task", REMEDY):
            result = _result(header, records)
            measure = tasks(result.definition)[path.stem].measure
            if result.scores:
                units = measure.units(result.scores)
                with suppress(LeptaError):  # too few units for a score are no damage; the summary names them
                    measure.parts(units.vectors.sum(0))
        results[path.stem] = result, records
    return results


def task_results(results: Results) -> list[TaskResult]:
    """The results without the records of samples."""
    return [result for result, _ in results.values()]


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a run; LeptaError if it was not finished."""
    file = folder / SUMMARY
    if not file.is_file():
        raise LeptaError(f"{file}: no such file; run `lepta darumeru run` with this --output to its end")
    summary = read_json(file)
    conform(SummaryFile, summary, file, REMEDY)
    return summary


def forget(folder: Path) -> None:
    """Remove the answers and scores of a run, and nothing else that is in its folder."""
    for path in [*_logs(folder), folder / SUMMARY, folder / PAGE]:
        path.unlink(missing_ok=True)


def _result(header: Mapping[str, Any], records: Sequence[Record]) -> TaskResult:
    return TaskResult(
        header["task"],
        header["definition"],
        header["expected"],
        [SampleScore(**record["score"]) for record in records if "score" in record],
        [f"{record['id']}: {record['error']}" for record in records if "error" in record],
        header["conditions"],
    )
