"""Datasets made from files of public formats (`lepta darumeru import`); `converters` says what a record becomes."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lepta.core.errors import LeptaError
from lepta.darumeru.converters import FORMATS, Format, LeaveOut, convert
from lepta.darumeru.data import Dataset, checked
from lepta.darumeru.examples import apart, set_aside
from lepta.darumeru.records import Fields, read_records
from lepta.darumeru.rows import Row, make_row, row_type


def import_dataset(
    format_name: str,
    files: Sequence[Path],
    dataset: str,
    shots_files: Sequence[Path] = (),
    shots: int = 5,
    rows: int = 100,
    seed: int = 1,
) -> tuple[Dataset, Fields]:
    """Make a dataset from files; also gives what it was made from, for `lepta.darumeru.data.write_dataset`.

    `shots` examples (of MMLU, of each subject), with each label in turn, come from `shots_files` or, without these, are
    the first rows. Of texts to copy, `rows` of each kind are drawn by `seed`. LeptaError names file, line and field of
    what is wrong.
    """
    copies = dataset.startswith("copy")
    found, left_out = read_format(format_name, files, dataset)
    options = {"shots": shots}
    if copies:
        found = _drawn(found, rows + shots, seed)
        options |= {"rows": rows, "seed": seed}
    if shots_files:
        pool, _ = read_format(format_name, shots_files, dataset)
        examples = [row.model_copy(update={"id": f"shot-{row.id}"}) for row in set_aside(pool, shots)[1]]
        test = apart(found, examples)
    elif copies:
        test, examples = _shots_of_each_kind(found, shots)
    else:
        test, examples = set_aside(found, shots)
    if near := len({row.id for row in found} - {row.id for row in (*test, *examples)}):
        left_out["shares its text or exam with an example"] += near
    facts: Fields = {
        "format": format_name,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in [*files, *shots_files]},
        "options": options,
        "left_out": dict(left_out),
    }
    if note := FORMATS[format_name].note:
        facts["note"] = note
    return checked(dataset, ", ".join(path.name for path in files), test, examples), facts


def read_format(format_name: str, files: Sequence[Path], dataset: str) -> tuple[list[Row], Counter[str]]:
    """All rows of files, and how many records are left out by reason; LeptaError for the first with a wrong field."""
    kind = _format(format_name, dataset)
    rows: list[Row] = []
    left_out = Counter[str]()
    for file in files:
        for record in read_records(file):
            try:
                made = convert(record, kind.converters[dataset])
            except LeaveOut as reason:
                left_out[str(reason)] += 1
                continue
            for fields in made:
                name = record.identity(kind.identity) if kind.identity else f"{len(rows) + 1:05}"
                rows.append(make_row(dataset, {"id": f"{dataset}-{name}", **fields}, record.where))
    if not rows:
        raise LeptaError(f"{', '.join(map(str, files))}: no row for {dataset}; left out: {dict(left_out)}")
    return rows, left_out


def _format(name: str, dataset: str) -> Format:
    row_type(dataset)
    if name not in FORMATS:
        raise LeptaError(f"{name}: no such format; there are {', '.join(FORMATS)}")
    if dataset not in FORMATS[name].converters:
        raise LeptaError(f"{name} makes {', '.join(FORMATS[name].converters)}, not {dataset}")
    return FORMATS[name]


def _of_kind(rows: Iterable[Row], kind: str) -> list[Row]:
    return [row for row in rows if getattr(row, "kind", None) == kind]


def _drawn(rows: Sequence[Row], number: int, seed: int) -> list[Row]:
    """So many paragraphs and so many sentences, none from a paragraph that was drawn, no text twice."""
    different = list({getattr(row, "text", ""): row for row in rows}.values())
    generator = random.Random(seed)
    paragraphs = _of_kind(different, "paragraph")
    taken = generator.sample(paragraphs, min(number, len(paragraphs)))
    places = {row.id.rsplit("-", 1)[0] for row in taken}
    free = [row for row in _of_kind(different, "sentence") if row.id.rsplit("-", 1)[0] not in places]
    if len(taken) < number or len(free) < number:
        raise LeptaError(f"{len(taken)} paragraphs and {len(free)} sentences to copy; expected {number} of each")
    return [*taken, *generator.sample(free, number)]


def _shots_of_each_kind(rows: Sequence[Row], number: int) -> tuple[list[Row], list[Row]]:
    test: list[Row] = []
    shots: list[Row] = []
    for kind in ("paragraph", "sentence"):
        asked, solved = set_aside(_of_kind(rows, kind), number)
        test += asked
        shots += solved
    return test, shots
