"""Answers on disk: one JSONL file for each task, its first line says what they depend on, each other line is a sample.

OUTPUT/samples/TASK.jsonl   written batch by batch, so that a run that is killed goes on
OUTPUT/summary.json         tasks, columns, Micro-Avg
OUTPUT/report.html          the same as a page, with wrong answers (see `lepta.report.darumeru`)
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.darumeru.aggregate import TaskResult
from lepta.darumeru.measures import SampleScore
from lepta.text.locate import read_json

SAMPLES, SUMMARY, PAGE = "samples", "summary.json", "report.html"
UNFORESEEN = "unforeseen"  # of a failed sample: what may not happen when it is asked again
HEADER = ("task", "definition", "expected", "conditions", "run")

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
        If the file holds answers that depend on something else, or another one in the folder answers of another run.
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


def read_header(path: Path) -> dict[str, Any]:
    """The first line of a log: what its answers depend on; errors as for `read_log`."""
    with path.open("rb") as file:
        return _parsed(path, 1, file.readline())


def logged_dtype(folder: Path) -> str | None:
    """The precision that a run in this folder was begun with; None if there is none, or its backend knew of none."""
    logs = _logs(folder)
    return read_header(logs[0])["run"].get("dtype") if logs else None


def read_log(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """Header and samples of a log; a last line that was cut off is left out.

    Raises
    ------
    LeptaError
        If another line is no header or sample.
    """
    lines = path.read_bytes().split(b"\n")[:-1]  # a whole last line ends in a line break
    whole = [_parsed(path, number, line) for number, line in enumerate(lines or [b""], 1)]
    return whole[0], whole[1:]


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """A line of a log: the header, or a sample."""
    needed = HEADER if number == 1 else ("id",)
    try:
        found = json.loads(line)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LeptaError(f"{path}, line {number}: not JSON ({error}); start over with --force") from error
    if not isinstance(found, dict) or not all(name in found for name in needed):
        raise LeptaError(f"{path}, line {number}: expected an object with {', '.join(needed)}; start over with --force")
    return found


def read_results(folder: Path) -> dict[str, tuple[TaskResult, list[Record]]]:
    """All results of a run, with their samples.

    Returns
    -------
    dict
        Task -> its result and the records of its samples.

    Raises
    ------
    LeptaError
        If there are none, or they are of several runs.
    """
    paths = _logs(folder)
    if not paths:
        raise LeptaError(f"{folder}: no {SAMPLES}/TASK.jsonl; expected the output folder of `lepta darumeru run`")
    logs = {path: read_log(path) for path in paths}
    first = _of_all_tasks(logs[paths[0]][0])
    for path, (header, _) in logs.items():
        if unlike := different(_of_all_tasks(header), first):
            raise LeptaError(
                f"{path}: is of another run than {paths[0].name} ({', '.join(unlike)} differ); "
                "keep the logs of one run in a folder"
            )
    return {path.stem: (result_of(*log), log[1]) for path, log in logs.items()}


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a run; LeptaError if it was not finished."""
    file = folder / SUMMARY
    if not file.is_file():
        raise LeptaError(f"{file}: no such file; run `lepta darumeru run` with this --output to its end")
    return read_json(file)


def forget(folder: Path) -> None:
    """Remove the answers and scores of a run, and nothing else that is in its folder."""
    for path in [*_logs(folder), folder / SUMMARY, folder / PAGE]:
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
