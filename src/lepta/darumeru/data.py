"""The benchmark's data: where rows come from, and how they are checked and written.

A dataset is two JSONL files, plain or gzipped: `NAME/test.jsonl` (questions) and `NAME/shots.jsonl` (solved examples to
show before a question). The schema, `lepta.darumeru.rows`, is the same for all sources:

    builtin         a few items of each dataset that come with the package, written for this project
    path/to/folder  NAME/test.jsonl[.gz] and NAME/shots.jsonl[.gz]
    hub             the published datasets, from the Hugging Face hub (see `lepta.darumeru.hub`)
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.core.reading import expanded
from lepta.darumeru import hub
from lepta.darumeru.rows import Row, make_row, row_type
from lepta.darumeru.subjects import CATEGORY_OF
from lepta.text.formats import read_rows as rows_of
from lepta.text.sources import BUILTIN_ITEMS

BUILTIN = "builtin"
HUB = "hub"
TEST, SHOTS, PROVENANCE = "test.jsonl", "shots.jsonl", "source.json"


@dataclass(frozen=True)
class Dataset:
    """Rows of one dataset."""

    name: str  # one of `lepta.darumeru.rows.DATASETS`
    source: str  # where the rows are from: "builtin", a folder, or "hub"
    test: tuple[Row, ...]  # items to ask
    shots: tuple[Row, ...]  # solved examples

    @cached_property
    def sha256(self) -> str:
        """Hash of the content: the same rows give the same hash, however their files are written."""
        lines = [*map(_canonical, self.test), "", *map(_canonical, self.shots)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def first(self, number: int) -> "Dataset":
        """The same with only so many rows to ask: of MMLU of each category's subjects in turn, else the first."""
        strata: dict[str, list[Row]] = {}
        for row in self.test:
            strata.setdefault(row.stratum, []).append(row)
        categories: dict[str, list[list[Row]]] = {}
        for stratum, rows in strata.items():
            categories.setdefault(CATEGORY_OF.get(stratum, ""), []).append(rows)
        # The score is a mean over categories, so four rows shall be of all four.
        chosen = {row.id for row in islice(_in_turn(_in_turn(categories.values())), number)}
        return replace(self, test=tuple(row for row in self.test if row.id in chosen))


def _in_turn(lists: Iterable[list[Any]]) -> Iterator[Any]:
    """The first of each list, then the second of each, and so on."""
    for turn in zip_longest(*lists):
        yield from (item for item in turn if item is not None)


def load_dataset(name: str, source: str = BUILTIN) -> Dataset:
    """Read and check a dataset; LeptaError names file, line and field of what is wrong, or what is not there."""
    row_type(name)
    if source == HUB:
        return checked(name, HUB, *hub.fetch(name))
    folder = BUILTIN_ITEMS if source == BUILTIN else expanded(source)
    if not folder.is_dir():
        raise LeptaError(f"{source}: no such folder; expected {BUILTIN}, {HUB} or a folder with NAME/{TEST}")
    test = read_rows(name, _file(folder / name / TEST))
    return checked(name, source, test, read_rows(name, _file(folder / name / SHOTS)))


def checked(name: str, source: str, test: Iterable[Row], shots: Iterable[Row]) -> Dataset:
    """Put rows together as a dataset; LeptaError if there are none or an id is there twice."""
    dataset = Dataset(name, source, tuple(test), tuple(shots))
    if not dataset.test:
        raise LeptaError(f"{source}, {name}: no rows to ask; expected at least one")
    seen: set[str] = set()
    for row in dataset.test + dataset.shots:
        if row.id in seen:
            raise LeptaError(
                f"{source}, {name}: the id {row.id!r} is there twice; ids must be unique over test and shots"
            )
        seen.add(row.id)
    return dataset


def _file(plain: Path) -> Path:
    """The file, or the packed one beside it."""
    packed = plain.with_name(f"{plain.name}.gz")
    files = list(filter(Path.is_file, (plain, packed)))
    if len(files) == 2:
        raise LeptaError(f"{plain}: there is {packed.name} too; keep one of them")
    if not files:
        raise LeptaError(f"{plain}: no such file, and no {packed.name}; docs/darumeru.md says what belongs there")
    return files[0]


def read_rows(name: str, path: Path) -> list[Row]:
    """Read the rows of one file; LeptaError naming file, line and field of the first that is wrong."""
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for where, number, fields, _ in rows_of(path):
        row = make_row(name, fields, where)
        if row.id in lines:
            raise LeptaError(f"{where}: id: {row.id!r} is in line {lines[row.id]} too; ids must be unique")
        lines[row.id] = number
        rows.append(row)
    return rows


def write_dataset(place: Path, dataset: Dataset, provenance: Mapping[str, Any]) -> None:
    """Write a dataset's files into its folder, and what it was made from as `source.json`.

    `provenance` are facts that JSON can hold; numbers of rows and the content's hash are added.
    """
    place.mkdir(parents=True, exist_ok=True)
    for file, rows in ((TEST, dataset.test), (SHOTS, dataset.shots)):
        lines = [json.dumps(row.model_dump(exclude_none=True), ensure_ascii=False) + "\n" for row in rows]
        (place / file).write_text("".join(lines), encoding="utf-8")
    facts = {**provenance, "test": len(dataset.test), "shots": len(dataset.shots), "sha256": dataset.sha256}
    (place / PROVENANCE).write_text(json.dumps(facts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _canonical(row: Row) -> str:
    return json.dumps(row.model_dump(exclude_none=True), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
