"""The schema of the benchmark's data: one class of rows for each dataset."""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from lepta.core.errors import LeptaError, suggestion
from lepta.core.settings import Section, validated
from lepta.darumeru.metrics import exam_points, most_exam_points
from lepta.darumeru.subjects import SUBJECTS

LETTERS = ("A", "B", "C", "D")

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Texts = Annotated[tuple[Text, ...], Field(strict=False)]
FourTexts = Annotated[tuple[Text, Text, Text, Text], Field(strict=False)]
Letter = Literal["A", "B", "C", "D"]


class Row(Section):
    """One item of a dataset; unknown fields, wrong types and empty texts are errors."""

    model_config = ConfigDict(strict=True)

    shared: ClassVar[tuple[str, ...]] = ()  # texts, in any order, that make rows with the same ones one unit

    id: Text  # unique in its dataset

    @property
    def unit(self) -> str:
        """Rows of one unit are not independent of each other; bootstraps draw whole units."""
        texts = "\0".join(sorted(getattr(self, name) for name in self.shared))
        return hashlib.sha256(texts.encode()).hexdigest()[:16] if self.shared else self.id

    @property
    def stratum(self) -> str:
        """Group of units that keeps its size in a bootstrap: a subject, since the score is a mean over subjects."""
        return str(getattr(self, "subject", ""))

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
            hint = suggestion(self.subject, SUBJECTS, "see lepta.darumeru.subjects")
            raise ValueError(f"subject: {self.subject!r} is none of MMLU's 57 subjects; {hint}")
        return self


class QuestionRow(Row):
    """A question about a text, and all answers that are right (multiq)."""

    shared: ClassVar[tuple[str, ...]] = ("context",)

    context: Text
    question: Text
    answers: Annotated[Texts, Field(min_length=1)]


class CauseRow(Row):
    """A situation, and two sentences one of which is its cause or effect (parus); `answer` counts from 1."""

    premise: Text
    question: Literal["cause", "effect"]
    choices: Annotated[tuple[Text, Text], Field(strict=False)]
    answer: Literal["1", "2"]


class InferenceRow(Row):
    """A text and a statement (rcb): the statement 1 follows, 2 contradicts the text, 3 does neither."""

    shared: ClassVar[tuple[str, ...]] = ("premise", "hypothesis")

    premise: Text
    hypothesis: Text
    answer: Literal["1", "2", "3"]


class PronounRow(Row):
    """A text, words `span1` in it and a pronoun `span2` in it (rwsd): does the pronoun mean these words?"""

    shared: ClassVar[tuple[str, ...]] = ("text",)

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


class SentenceRow(Row):
    """A sentence that is good Russian (1) or not (0) (rucola)."""

    sentence: Text
    answer: Literal["0", "1"]


class ExamRow(Row):
    """An item of the Russian school-leaving exam (use)."""

    variant: Annotated[int, Field(ge=0)]
    task: Annotated[int, Field(ge=1, le=27)]  # number in the exam
    kind: Literal["text", "choice", "matching"]  # how answers are compared: `lepta.darumeru.metrics.exam_points`
    question: Text
    choices: Texts  # with their numbers; may be empty
    answers: Annotated[Texts, Field(min_length=1)]  # all that are right: words, or numbers joined by commas
    points: Annotated[int, Field(ge=1)]  # for a right answer

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
        for answer in self.answers:
            if (own := exam_points(self.kind, self.task, answer, self.answers)) < most:
                raise ValueError(
                    f"answers: {answer!r} gets {own:g} of {most} points as an answer; expected all of them"
                )
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


def row_type(name: str) -> type[Row]:
    """Schema of a dataset; LeptaError if there is none of this name."""
    if name not in DATASETS:
        hint = suggestion(name, DATASETS, f"there are {', '.join(DATASETS)}")
        raise LeptaError(f"{name}: no such dataset; {hint}")
    return DATASETS[name]


def make_row(name: str, fields: Mapping[str, Any], where: str) -> Row:
    """Check one row of a dataset; messages of errors begin with `where`."""
    return validated(row_type(name), dict(fields), where)
