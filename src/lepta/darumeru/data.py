"""The benchmark's data: one schema of rows for each dataset, and where rows come from.

A dataset is two JSONL files, plain or gzipped: `NAME/test.jsonl` (questions) and `NAME/shots.jsonl` (solved examples to
show before a question). The schema is the classes below, the same for all sources:

    builtin         a few items of each dataset that come with the package, written for this project
    path/to/folder  NAME/test.jsonl[.gz] and NAME/shots.jsonl[.gz]
    hub             the published datasets, from the Hugging Face hub (see `lepta.darumeru.hub`)
"""

import difflib
import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from itertools import islice, zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lepta.darumeru.metrics import most_exam_points
from lepta.darumeru.subjects import SUBJECTS
from lepta.errors import LeptaError

BUILTIN = "builtin"
HUB = "hub"
TEST, SHOTS, PROVENANCE = "test.jsonl", "shots.jsonl", "source.json"
LETTERS = ("A", "B", "C", "D")

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Texts = Annotated[tuple[Text, ...], Field(strict=False)]
FourTexts = Annotated[tuple[Text, Text, Text, Text], Field(strict=False)]
Letter = Literal["A", "B", "C", "D"]


class Row(BaseModel):
    """One item of a dataset; unknown fields, wrong types and empty texts are errors.

    `id` is unique in its dataset.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: Text

    @property
    def unit(self) -> str:
        """What the row shares with rows that are not independent of it; bootstraps draw whole units."""
        return self.id

    @property
    def stratum(self) -> str:
        """Group of units that keeps its size in a bootstrap."""
        return ""

    @property
    def label(self) -> str:
        """The right label, of datasets that have labels."""
        return str(getattr(self, "answer", ""))

    @property
    def sort(self) -> str:
        """What examples should show in turn: the right label."""
        return self.label


class ChoiceRow(Row):
    """A question with four choices (ruopenbookqa, ruworldtree)."""

    question: Text
    choices: FourTexts
    answer: Letter


class DomainRow(ChoiceRow):
    """A question with four choices and its domain (rummlu)."""

    domain: Text


class SubjectRow(ChoiceRow):
    """A question of one of the 57 subjects of MMLU (mmlu_ru, mmlu_en)."""

    subject: Text

    @model_validator(mode="after")
    def _known(self) -> "SubjectRow":
        if self.subject not in SUBJECTS:
            near = difflib.get_close_matches(self.subject, SUBJECTS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see lepta.darumeru.subjects"
            raise ValueError(f"subject: {self.subject!r} is none of MMLU's 57 subjects; {hint}")
        return self

    @property
    def stratum(self) -> str:
        """The subject: the score is a mean over subjects."""
        return self.subject


class QuestionRow(Row):
    """A question about a text, and all answers that are right (multiq)."""

    context: Text
    question: Text
    answers: Annotated[Texts, Field(min_length=1)]

    @property
    def unit(self) -> str:
        """The text: questions on one text are not independent."""
        return _short_hash(self.context)


class CauseRow(Row):
    """A situation, and two sentences one of which is its cause or effect (parus); `answer` counts from 1."""

    premise: Text
    question: Literal["cause", "effect"]
    choices: Annotated[tuple[Text, Text], Field(strict=False)]
    answer: Literal["1", "2"]


class InferenceRow(Row):
    """A text and a statement (rcb): the statement 1 follows, 2 contradicts the text, 3 does neither."""

    premise: Text
    hypothesis: Text
    answer: Literal["1", "2", "3"]

    @property
    def unit(self) -> str:
        """Both texts, whichever comes first."""
        return _short_hash(*sorted((self.premise, self.hypothesis)))


class PronounRow(Row):
    """A text, words `span1` in it and a pronoun `span2` in it (rwsd): does the pronoun mean these words?"""

    text: Text
    span1: Text
    span2: Text
    answer: Literal["Да", "Нет"]

    @model_validator(mode="after")
    def _spans_in_text(self) -> "PronounRow":
        for name, span in (("span1", self.span1), ("span2", self.span2)):
            if span.lower() not in self.text.lower():
                raise ValueError(f"{name}: {span!r} is not in the text")
        return self

    @property
    def unit(self) -> str:
        """The text: it is asked about with several spans."""
        return _short_hash(self.text)


class SentenceRow(Row):
    """A sentence that is good Russian (1) or not (0) (rucola)."""

    sentence: Text
    answer: Literal["0", "1"]


class ExamRow(Row):
    """An item of the Russian school-leaving exam (use).

    `kind` says how answers are compared (`lepta.darumeru.metrics.exam_points`). `answers` are all that are right:
    words, or numbers joined by commas. `choices` carry their numbers and may be empty. `points` is what a right answer
    is worth.
    """

    variant: Annotated[int, Field(ge=0)]
    task: Annotated[int, Field(ge=1, le=27)]
    kind: Literal["text", "choice", "matching"]
    question: Text
    choices: Texts
    answers: Annotated[Texts, Field(min_length=1)]
    points: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _answers_fit(self) -> "ExamRow":
        for answer in self.answers:
            numbers = all(part.isdecimal() for part in answer.split(","))
            if self.kind == "text" and not any(map(str.isalpha, answer)):
                raise ValueError(f"answers: {answer!r} has no letter; expected a word, or kind choice or matching")
            if self.kind != "text" and not numbers:
                raise ValueError(f"answers: {answer!r}; expected numbers joined by commas, such as 1,4")
        if self.points != (most := most_exam_points(self.kind, self.task, self.answers)):
            raise ValueError(f"points: {self.points}, but a right answer gets {most}")
        return self

    @property
    def unit(self) -> str:
        """The variant of the exam: the score is a mean over variants."""
        return f"variant {self.variant}"

    @property
    def sort(self) -> str:
        """The kind of item."""
        return self.kind


class ArticleRow(Row):
    """An article as sentences, its summary, and the indices of sentences that make an extractive one (gazeta)."""

    sentences: Annotated[Texts, Field(min_length=2)]
    summary: Text
    extractive: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _indices_in_range(self) -> "ArticleRow":
        if max(self.extractive) >= len(self.sentences):
            raise ValueError(
                f"extractive: {max(self.extractive)} is beyond the last of {len(self.sentences)} sentences"
            )
        if len(set(self.extractive)) < len(self.extractive):
            raise ValueError("extractive: an index is there twice")
        if len(self.extractive) == len(self.sentences):
            raise ValueError("extractive: names all sentences, so that any order would be right")
        return self


class CopyRow(Row):
    """A text to copy (copy_ru, copy_en).

    Without `kind` the text is a paragraph, and its first sentence is the item of the sentence task. With it, the row
    serves that task only.
    """

    text: Text
    kind: Literal["sentence", "paragraph"] | None = None


DATASETS: dict[str, type[Row]] = {
    "rummlu": DomainRow,
    "mmlu_ru": SubjectRow,
    "mmlu_en": SubjectRow,
    "multiq": QuestionRow,
    "parus": CauseRow,
    "rcb": InferenceRow,
    "rwsd": PronounRow,
    "use": ExamRow,
    "ruopenbookqa": ChoiceRow,
    "ruworldtree": ChoiceRow,
    "rucola": SentenceRow,
    "gazeta": ArticleRow,
    "copy_en": CopyRow,
    "copy_ru": CopyRow,
}


@dataclass(frozen=True)
class Dataset:
    """Rows of one dataset.

    Attributes
    ----------
    name : str
        One of `DATASETS`.
    source : str
        Where the rows are from: "builtin", a folder, or "hub".
    test, shots : tuples of Row
        Items to ask, and solved examples.
    """

    name: str
    source: str
    test: tuple[Row, ...]
    shots: tuple[Row, ...]

    @cached_property
    def sha256(self) -> str:
        """Hash of the content: the same rows give the same hash, however their files are written."""
        lines = [_canonical(row) for row in self.test] + [""] + [_canonical(row) for row in self.shots]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def first(self, number: int) -> "Dataset":
        """The same with only so many rows to ask, of each stratum in turn (MMLU: of each subject)."""
        strata: dict[str, list[Row]] = {}
        for row in self.test:
            strata.setdefault(row.stratum, []).append(row)
        turns = zip_longest(*strata.values())
        chosen = {row.id for row in islice((row for turn in turns for row in turn if row is not None), number)}
        return replace(self, test=tuple(row for row in self.test if row.id in chosen))


def load_dataset(name: str, source: str = BUILTIN) -> Dataset:
    """Read and check a dataset.

    Parameters
    ----------
    name : str
        One of `DATASETS`.
    source : str
        "builtin", "hub" or a folder.

    Raises
    ------
    LeptaError
        Naming file, line and field of what is wrong, or the dataset if it is not there.
    """
    row_type(name)
    if source == HUB:
        from lepta.darumeru.hub import fetch

        test, shots = fetch(name)
        return checked(name, HUB, test, shots)
    folder = builtin_folder() if source == BUILTIN else Path(source).expanduser()
    if not folder.is_dir():
        raise LeptaError(f"{source}: no such folder; expected {BUILTIN}, {HUB} or a folder with NAME/{TEST}")
    return checked(
        name, source, read_rows(name, _file(folder, name, TEST)), read_rows(name, _file(folder, name, SHOTS))
    )


def checked(name: str, source: str, test: Iterable[Row], shots: Iterable[Row]) -> Dataset:
    """Put rows together as a dataset; LeptaError if there are none or an id is there twice."""
    dataset = Dataset(name, source, tuple(test), tuple(shots))
    if not dataset.test:
        raise LeptaError(f"{source}, {name}: no rows to ask; expected at least one")
    twice = [key for key, count in Counter(row.id for row in dataset.test + dataset.shots).items() if count > 1]
    if twice:
        raise LeptaError(
            f"{source}, {name}: the id {twice[0]!r} is there twice; ids must be unique over test and shots"
        )
    return dataset


def builtin_folder() -> Path:
    """Folder of the items that come with the package."""
    return Path(str(resources.files("lepta"))) / "data" / "darumeru"


def row_type(name: str) -> type[Row]:
    """Schema of a dataset; LeptaError if there is none of this name."""
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(DATASETS)}"
        raise LeptaError(f"{name}: no such dataset; {hint}")
    return DATASETS[name]


def _file(folder: Path, name: str, file: str) -> Path:
    plain, packed = folder / name / file, folder / name / f"{file}.gz"
    if plain.is_file() and packed.is_file():
        raise LeptaError(f"{plain}: there is {packed.name} too; keep one of them")
    if not plain.is_file() and not packed.is_file():
        raise LeptaError(f"{plain}: no such file, and no {packed.name}; docs/darumeru.md says what belongs there")
    return plain if plain.is_file() else packed


def read_rows(name: str, path: Path) -> list[Row]:
    """Read the rows of one file; LeptaError naming file, line and field of the first that is wrong."""
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for number, record in read_jsonl(path):
        where = f"{path}, line {number}"
        row = make_row(name, record, where)
        if row.id in lines:
            raise LeptaError(f"{where}: id: {row.id!r} is in line {lines[row.id]} too; ids must be unique")
        lines[row.id] = number
        rows.append(row)
    return rows


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read JSON objects, one a line, plain or gzipped, with their line numbers."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise LeptaError(f"{path}: not a whole gzip file ({error}); copy it again") from error
    except OSError as error:
        raise LeptaError(f"{path}: cannot be read ({error.strerror})") from error
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise LeptaError(f"{path}, line {number}: not JSON ({error}); expected one object a line") from error
        if not isinstance(record, dict):
            raise LeptaError(f"{path}, line {number}: expected an object, found a {type(record).__name__}")
        yield number, record


def make_row(name: str, fields: Mapping[str, Any], where: str) -> Row:
    """Check one row.

    Parameters
    ----------
    name : str
        Dataset.
    fields : mapping
        As in the row's JSON object.
    where : str
        What the message of an error begins with.
    """
    kind = row_type(name)
    try:
        return kind.model_validate(dict(fields))
    except ValidationError as error:
        reasons = "; ".join(_explain(reason, kind) for reason in error.errors()[:3])
        raise LeptaError(f"{where}: {reasons}") from error


def _explain(error: Any, kind: type[Row]) -> str:
    field = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, kind.model_fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"a row has {', '.join(kind.model_fields)}"
        return f"{field}: unknown field; {hint}"
    if error["type"] == "missing":
        return f"{field}: missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{field}: {message}" if field else message


def write_dataset(place: Path, dataset: Dataset, provenance: Mapping[str, Any]) -> None:
    """Write a dataset's files, and what it was made from as `source.json`.

    Parameters
    ----------
    place : Path
        Folder of this dataset; a folder of datasets has it under the dataset's name.
    dataset : Dataset
    provenance : mapping
        Facts that JSON can hold; numbers of rows and the content's hash are added.
    """
    place.mkdir(parents=True, exist_ok=True)
    for file, rows in ((TEST, dataset.test), (SHOTS, dataset.shots)):
        lines = [_written(row) + "\n" for row in rows]
        (place / file).write_text("".join(lines), encoding="utf-8")
    facts = {**provenance, "test": len(dataset.test), "shots": len(dataset.shots), "sha256": dataset.sha256}
    (place / PROVENANCE).write_text(json.dumps(facts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _written(row: Row) -> str:
    return json.dumps(row.model_dump(exclude_none=True), ensure_ascii=False)


def _canonical(row: Row) -> str:
    return json.dumps(row.model_dump(exclude_none=True), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _short_hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def set_aside(rows: Sequence[Row], number: int) -> tuple[list[Row], list[Row]]:
    """Take solved examples out of rows to ask: the first ones, with each label in turn, so many from each stratum.

    Rows that share a unit with an example (the same text, the same exam) leave the rows to ask too.

    Returns
    -------
    lists of Row
        Rows to ask, and examples.
    """
    shots: list[Row] = []
    for stratum in dict.fromkeys(row.stratum for row in rows):
        shots += _balanced([row for row in rows if row.stratum == stratum], number)
    taken = {row.unit for row in shots}
    return [row for row in rows if row.unit not in taken], shots


def _balanced(rows: Sequence[Row], number: int) -> list[Row]:
    left, taken = list(rows), Counter[str]()
    chosen: list[Row] = []
    while left and len(chosen) < number:
        row = min(left, key=lambda row: taken[row.sort])
        left.remove(row)
        taken[row.sort] += 1
        chosen.append(row)
    return chosen
