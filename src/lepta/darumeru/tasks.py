"""The 17 tasks as data: what is asked, how an answer is read, what it is worth, and how samples make a score.

A runner needs this and a model, nothing else of the benchmark:

    for task in tasks().values():
        dataset = load_dataset(task.dataset)
        for sample in task.samples(dataset):
            messages = task.messages(sample, task.shots(dataset, sample, 5))
            answer = Answer(...)                  # from the model, see `Method`
            score = task.score(sample, answer)    # goes to lepta.darumeru.aggregate
"""

import hashlib
import itertools
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from lepta.core.errors import LeptaError, suggestion
from lepta.core.shipped import shipped_data
from lepta.darumeru.data import Dataset
from lepta.darumeru.measures import AllRight, Labels, Means, Measure, SampleScore, SubjectMeans, UnitShares
from lepta.darumeru.metrics import (
    COPIED,
    best,
    copied_length,
    copied_share,
    exact_match,
    exam_points,
    legacy_copied_share,
    lemmas,
    ngrams,
    r_precision,
    rouge,
    token_f1,
)
from lepta.darumeru.prompts import PROMPTS, Prompt
from lepta.darumeru.rows import ArticleRow, CauseRow, CopyRow, ExamRow, QuestionRow, Row
from lepta.darumeru.sentences import sentences

# choose: the most likely of `Sample.continuations`; generate: greedy text; loglikelihood: mean log-probability per
# token of each of `Sample.continuations`.
Method = Literal["choose", "generate", "loglikelihood"]
# legacy: as in the paper's runs, for comparing with published numbers. The two never mix.
Definition = Literal["current", "legacy"]
NO_LABEL = ""  # of a model that was to write a label, and wrote something else: a wrong answer
Message = dict[str, str]
Values = dict[str, float]


@dataclass(frozen=True)
class Sample:
    """One question to a model."""

    id: str  # unique in the task
    row: Any  # the Row as it is asked (PARus: with its options swapped, the second time)
    target: str  # the right answer as a model would write it after the lead-in: what examples show
    continuations: tuple[str, ...] = ()  # texts whose probability after the prompt is asked for, with the space before


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model gave for a sample; which fields are needed depends on the task's method."""

    # choose: the label picked, as in `Task.labels` (`lepta.darumeru.metrics.pick`), or NO_LABEL; and the probability
    # that all labels have together, 0 to 1, if it is known.
    label: str | None = None
    label_mass: float | None = None
    # loglikelihood: mean log-probability per token of each of `Sample.continuations`, in nats.
    log_probs: tuple[float, ...] = ()
    # generate: the text, without special tokens, cut at `Task.stop_for`.
    text: str | None = None
    # Copies: number of tokens that the model emitted, its end-of-turn token not counted; ids of `text` and of
    # `Sample.target` under the model's tokenizer, both encoded the same way without spaces around them.
    emitted: int | None = None
    tokens: tuple[int, ...] | None = None
    reference_tokens: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """One of the 17 tasks."""

    name: str
    title: str  # for tables
    column: str  # one of `lepta.darumeru.metrics.COLUMN_SIZES`
    dataset: str  # one of `lepta.darumeru.rows.DATASETS`
    method: Method
    measure: Measure  # from sample scores to the task's score
    prompt: Prompt
    make: Callable[["Task", Any], list[Sample]] = field(repr=False)  # from a row
    grade: Callable[["Task", Sample, Answer], Values] = field(repr=False)
    labels: tuple[str, ...] = ()  # choose
    max_new_tokens: int = 0  # generate: most tokens to write; 1 or 0 otherwise
    # generate: where a text that has begun ends when turns are plain text with blank lines between them (foundation
    # models); a chat model ends its turn itself.
    stop: tuple[str, ...] = ()
    # generate: a text is cut at so many times the characters of the right answer, for it has failed; 0: it is not.
    longest: float = 0.0
    version: int = 1  # goes up when the task's meaning changes
    definition: Definition = "current"

    def samples(self, dataset: Dataset) -> list[Sample]:
        """All questions that the task asks of a dataset; LeptaError if it is another one or has no rows for it."""
        if dataset.name != self.dataset:
            raise LeptaError(f"{self.name}: needs the dataset {self.dataset}, found {dataset.name}")
        found = list(itertools.chain.from_iterable(self.make(self, row) for row in dataset.test))
        if not found:
            raise LeptaError(f"{dataset.source}, {dataset.name}: no row for the task {self.name}")
        return found

    def shots(self, dataset: Dataset, sample: Sample, number: int) -> list[Sample]:
        """Solved examples for a question: the first so many, the same for every question (MMLU: of its subject).

        There may be fewer in the dataset; how many were shown belongs in the log.
        """
        examples: list[Sample] = []
        for row in dataset.shots:
            if row.stratum == sample.row.stratum:
                examples += self.make(self, row)[:1]
        return examples[:number]

    def messages(self, sample: Sample, shots: Sequence[Sample] = ()) -> list[Message]:
        """Conversation up to where the model goes on: turns of user and assistant, examples first.

        If the prompt has a lead-in, the last message is the assistant's unfinished turn, which never ends with a space;
        else it is the user's. The answer follows a lead-in after one space, which `Sample.continuations` have.
        """
        ordered, headline = list(shots), self.prompt.headline
        if self.definition == "legacy":  # the paper's runs had examples in reverse order, and without any no headline
            ordered.reverse()
            if not shots:
                headline = ""
        turns: list[Message] = []
        for item in [*ordered, sample]:
            turns.append({"role": "user", "content": self._question(item, headline)})
            turns.append({"role": "assistant", "content": self.after_lead_in(item.target)})
            headline = ""
        turns.pop()
        if self.prompt.lead_in:
            turns.append({"role": "assistant", "content": self.prompt.lead_in})
        return turns

    def after_lead_in(self, answer: str) -> str:
        """A whole turn of the assistant: lead-in, space, answer."""
        return f"{self.prompt.lead_in} {answer}".strip()

    def _question(self, sample: Sample, headline: str) -> str:
        templates = self.prompt.templates
        template = templates[zlib.crc32(sample.row.id.encode()) % len(templates)]
        return self.prompt.fill(headline + template, sample.row)

    def stop_for(self, sample: Sample, chat: bool = False) -> tuple[str, ...]:
        """Strings that end the answer to one sample: none that its right answer holds, and none of a chat model."""
        return tuple(string for string in self.stop if string not in sample.target and not chat)

    def longest_for(self, sample: Sample) -> int | None:
        """Characters after which the answer to one sample is cut."""
        return round(self.longest * len(sample.target)) if self.longest else None

    def score(self, sample: Sample, answer: Answer) -> SampleScore:
        """What an answer is worth; LeptaError if it lacks what the task needs, or has the wrong number of values."""
        return SampleScore(sample.id, sample.row.unit, sample.row.stratum, self.grade(self, sample, answer))

    @property
    def prompt_sha256(self) -> str:
        """Hash of the words, labels and limits that make what the model sees."""
        prompt = self.prompt
        parts = [prompt.templates, prompt.headline, prompt.lead_in, dict(prompt.words), self.labels]
        limits = [self.method, self.max_new_tokens, self.stop, self.longest, self.definition, self.version]
        return hashlib.sha256(json.dumps([parts, limits], ensure_ascii=False).encode()).hexdigest()


def _labelled(task: Task, row: Row) -> list[Sample]:
    """One sample that chooses among the labels."""
    return [Sample(row.id, row, row.label, tuple(f" {label}" for label in task.labels))]


def _both_orders(task: Task, row: CauseRow) -> list[Sample]:
    """The item as it is, and with its options swapped: only a model that reads them is right twice."""
    other = {"choices": row.choices[::-1], "answer": {"1": "2", "2": "1"}[row.answer]}
    [swapped] = _labelled(task, row.model_copy(update=other))
    return [*_labelled(task, row), replace(swapped, id=f"{row.id}#swapped")]


def _first_answer(task: Task, row: QuestionRow | ExamRow) -> list[Sample]:
    return [Sample(row.id, row, row.answers[0])]


def _summary(task: Task, row: ArticleRow) -> list[Sample]:
    return [Sample(row.id, row, row.summary)]


def _each_sentence(task: Task, row: ArticleRow) -> list[Sample]:
    right = row.sentences[row.extractive[0]]
    return [Sample(row.id, row, right, tuple(f" {sentence}" for sentence in row.sentences))]


def _paragraph(task: Task, row: CopyRow) -> list[Sample]:
    return [] if row.kind == "sentence" else [Sample(row.id, row, row.text)]


def _first_sentence(task: Task, row: CopyRow) -> list[Sample]:
    if row.kind == "paragraph":
        return []
    text = row.text if row.kind == "sentence" else sentences(row.text)[0]
    return [Sample(row.id, row.model_copy(update={"text": text}), text)]


def _needed(task: Task, sample: Sample, **values: Any) -> None:
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise LeptaError(f"{task.name}, {sample.id}: the answer has no {', '.join(missing)}, which the score needs")


def _grade_label(task: Task, sample: Sample, answer: Answer) -> Values:
    known = (*task.labels, NO_LABEL)
    if answer.label not in known:
        raise LeptaError(f"{task.name}, {sample.id}: label {answer.label!r}; expected one of {', '.join(task.labels)}")
    gold, given = known.index(sample.row.label), known.index(answer.label)
    values: Values = {"gold": gold, "answer": given, "correct": float(gold == given)}
    return values if answer.label_mass is None else values | {"label_mass": answer.label_mass}


def _grade_question(task: Task, sample: Sample, answer: Answer) -> Values:
    _needed(task, sample, text=answer.text)
    text, row = answer.text or "", sample.row
    return {"f1": best(token_f1, text, row.answers), "exact": best(exact_match, text, row.answers)}


def _grade_exam(task: Task, sample: Sample, answer: Answer) -> Values:
    _needed(task, sample, text=answer.text)
    row: ExamRow = sample.row
    return {"points": exam_points(row.kind, row.task, answer.text or "", row.answers), "most": row.points}


def _grade_summary(task: Task, sample: Sample, answer: Answer) -> Values:
    _needed(task, sample, text=answer.text)
    mine, right = lemmas(answer.text or ""), lemmas(sample.row.summary)
    values: Values = {}
    for n in (1, 2):
        overlap = rouge(ngrams(mine, n), ngrams(right, n))
        values |= {f"rouge{n}_recall": overlap.recall, f"rouge{n}_f1": overlap.f1}
    return values


def _grade_sentences(task: Task, sample: Sample, answer: Answer) -> Values:
    row: ArticleRow = sample.row
    if len(answer.log_probs) != len(row.sentences):
        raise LeptaError(
            f"{task.name}, {sample.id}: {len(answer.log_probs)} log-probabilities for {len(row.sentences)} sentences"
        )
    return {"r_precision": r_precision(answer.log_probs, row.extractive)}


def _grade_copy(task: Task, sample: Sample, answer: Answer) -> Values:
    tokens, reference, emitted = answer.tokens, answer.reference_tokens, answer.emitted
    _needed(task, sample, text=answer.text, tokens=tokens, reference_tokens=reference, emitted=emitted)
    if not reference:
        raise LeptaError(f"{task.name}, {sample.id}: the reference has no tokens; it is {sample.target!r}")
    share = copied_share(reference, tokens or ())
    if task.definition == "legacy":
        share = legacy_copied_share(sample.target, answer.text or "")
    longest = task.longest_for(sample)
    whole = longest is None or len(answer.text or "") < longest  # else it was cut
    return {
        "length": copied_length(len(reference), emitted or 0),
        "copied": float(whole and share > COPIED),
        "share": share,
        "symbols_per_token": len(sample.target) / len(reference),
    }


@dataclass(frozen=True)
class Kind:
    """What tasks of one kind have in common: see the fields of `Task`."""

    make: Callable[[Task, Any], list[Sample]]
    grade: Callable[[Task, Sample, Answer], Values]
    measure: type[Measure]
    method: Method
    stop: tuple[str, ...] = ()


_QUESTION_STOP, _TEXT_STOP = ("\n",), ("\n\n",)
KINDS = {
    "choice": Kind(_labelled, _grade_label, Labels, "choose"),
    "subjects": Kind(_labelled, _grade_label, SubjectMeans, "choose"),
    "pairs": Kind(_both_orders, _grade_label, AllRight, "choose"),
    "question": Kind(_first_answer, _grade_question, Means, "generate", _QUESTION_STOP),
    "exam": Kind(_first_answer, _grade_exam, UnitShares, "generate", _QUESTION_STOP),
    "summary": Kind(_summary, _grade_summary, Means, "generate", _TEXT_STOP),
    "sentences": Kind(_each_sentence, _grade_sentences, Means, "loglikelihood"),
    "copied sentence": Kind(_first_sentence, _grade_copy, Means, "generate", _TEXT_STOP),
    "copied paragraph": Kind(_paragraph, _grade_copy, Means, "generate", _TEXT_STOP),
}


@cache
def tasks(definition: Definition = "current") -> Mapping[str, Task]:
    """The 17 tasks by name, in the order of their columns.

    legacy, as in the paper's runs: summaries by F-measure, copies by the characters that a copy shares with its text by
    the copy's length, MMLU without a headline if there are no examples, examples in reverse order.
    """
    return {name: _task(name, definition, **entry) for name, entry in shipped_data("darumeru/tasks.yaml").items()}


def _task(name: str, definition: Definition, kind: str, legacy: Mapping[str, Any] | None = None, **entry: Any) -> Task:
    """A task from its entry in `tasks.yaml`."""
    if definition == "legacy":
        entry |= legacy or {}
    parts, labels = KINDS[kind], tuple(entry.pop("labels", ()))
    measured: dict[str, Any] = {part: tuple(entry.pop(part)) for part in ("headline", "side") if part in entry}
    choosing: dict[str, Any] = {}
    if labels:
        measured.setdefault("side", ("label_mass",))
        choosing = {"labels": labels, "max_new_tokens": 1}
    if parts.measure is Labels:
        measured["labels"] = len(labels)
    return Task(
        name=name,
        definition=definition,
        method=parts.method,
        measure=parts.measure(**measured),
        prompt=PROMPTS.get(name) or PROMPTS[entry["dataset"]],
        make=parts.make,
        grade=parts.grade,
        stop=parts.stop,
        **{"dataset": name, **choosing, **entry},
    )


def named_tasks(names: Sequence[str] = (), definition: Definition = "current") -> list[Task]:
    """Tasks by their names in the order of their columns, all without names; LeptaError for a name that is none."""
    known = tasks(definition)
    for name in names:
        if name not in known:
            hint = suggestion(name, known, f"expected some of {', '.join(known)}")
            raise LeptaError(f"{name}: no such task; {hint}")
    return [task for name, task in known.items() if not names or name in names]
