"""A judge grades answers from 1 to 5 for grammar and relevance, against a rubric with a version; the best are kept."""

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from lepta.calibration.answers import usable
from lepta.calibration.settings import JudgeSettings
from lepta.calibration.writers import Answer, Form, Refusal, Sampling, Stopped, Writer
from lepta.core.journal import IdentifiedRow, Journal
from lepta.core.progress import progress
from lepta.core.shipped import shipped_data
from lepta.inference.chat import Message
from lepta.inference.thinking import split_thinking

SCALES = ("grammar", "relevance")
GRADE = {scale: re.compile(rf"(?i)\b{scale}\b[\s\"'*:=_-]{{1,8}}(?P<grade>\d+(?:[.,]\d+)?)") for scale in SCALES}
FORM = Form(SCALES, (1, 2, 3, 4, 5))
SECOND_LOOK = 0.7  # temperature of repeated questions: a greedy judge would only repeat itself


Scale = Annotated[int, Field(strict=True, ge=1, le=5)]
Graded = Annotated[dict[Literal["grammar", "relevance"], Scale], Field(min_length=2)]
Unreadable = Annotated[dict[Literal["unreadable"], str], Field(min_length=1)]  # what a judge said


class GradeRow(IdentifiedRow):
    """Grades of each answer to a prompt, None where it was not graded; `again`: those of a second look."""

    grades: list[Graded | Unreadable | None]
    again: list[Graded | Unreadable | None] = Field(default=[])


@dataclass(frozen=True)
class Rubric:
    """What a judge is asked, with its version."""

    version: int
    question: str
    case: str
    examples: list[dict[str, Any]]
    again: str

    def conversation(self, messages: Sequence[Message], answer: str) -> list[Message]:
        """What the judge is asked about an answer, after examples as earlier turns (some templates know no system)."""
        turns = []
        for example in self.examples:
            turns += [self._case([{"role": "user", "content": example["asked"]}], example["answer"])]
            turns += [{"role": "assistant", "content": json.dumps(example["grades"])}]
        turns += [self._case(messages, answer)]
        turns[0]["content"] = f"{self.question}\n{turns[0]['content']}"
        return turns

    def _case(self, messages: Sequence[Message], answer: str) -> Message:
        shown = "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
        text = self.case.replace("{answer}", answer, 1).replace("{conversation}", shown, 1)
        return {"role": "user", "content": text.strip()}


def load_rubric() -> Rubric:
    """The rubric of this version of LEPTA."""
    return Rubric(**shipped_data("calibration/rubric.yaml"))


def read_grades(reply: str) -> dict[str, int] | None:
    """The grades in a judge's reply, which may have prose around them: a whole number from 1 to 5 for each scale.

    None if one is missing, no such number, or said in several ways.
    """
    text, grades = split_thinking(reply)[1], {}
    for scale, pattern in GRADE.items():
        found = {match["grade"] for match in pattern.finditer(text)}
        if len(found) != 1 or (grade := found.pop()) not in {"1", "2", "3", "4", "5"}:
            return None
        grades[scale] = int(grade)
    return grades


AnswerPlace = tuple[str, int]  # the id of an answer's row, and its number there
Grades = dict[AnswerPlace, dict[str, Any]]


def grade_answers(
    answers: Iterable[dict[str, Any]], judge: Writer, settings: JudgeSettings, seed: int, journal: Journal
) -> None:
    """Grade the answers, rows of `write_answers`, that can be learned from and have no grades yet.

    A row has `id`, `grades` (for each answer its grades, None if it cannot be learned from, or {"unreadable": what the
    judge said}), and `again` if it was graded twice. LeptaError if the judge cannot be reached; rows that were written
    stay.
    """
    rubric = load_rubric()
    left = (row for row in answers if row["id"] not in journal.done and usable(row))
    with progress("grading answers to prompts", None) as bar:
        while part := list(itertools.islice(left, judge.at_once)):
            asked: dict[AnswerPlace, list[Message]] = {}
            for row in part:
                for number in usable(row):
                    shown = rubric.conversation(row["messages"], row["answers"][number]["text"])
                    asked[row["id"], number] = shown
            first: Grades = {}
            second: Grades = {}
            twice = {place: shown for place, shown in asked.items() if _drawn(place[0], settings.repeat_share)}
            try:
                _grade(asked, judge, settings, rubric, seed, first, 0.0)
                _grade(twice, judge, settings, rubric, seed + 1, second, SECOND_LOOK)
            except Stopped:
                missing = _unread(asked, first) | _unread(twice, second)
                journal.add(_row(row, first, second) for row in part if row["id"] not in missing)
                raise
            journal.add(_row(row, first, second) for row in part)
            bar.set(len(journal.done))


def _unread(asked: Iterable[AnswerPlace], grades: Grades) -> set[str]:
    """Ids of the rows with an answer whose grades could not be read."""
    unread = {"unreadable": ""}
    return {place[0] for place in asked if "unreadable" in grades.get(place, unread)}


def _row(row: dict[str, Any], first: Grades, second: Grades) -> dict[str, Any]:
    keys = [(row["id"], number) for number in range(len(row["answers"]))]
    graded = {"id": row["id"], "grades": list(map(first.get, keys))}
    if any(map(second.get, keys)):
        graded["again"] = list(map(second.get, keys))
    return graded


def _drawn(key: str, share: float) -> bool:
    """Whether a row is among the share that is graded twice: decided by its id, so by no order of work."""
    return int(key[:8], 16) < share * (1 << 32)


def _grade(
    asked: Mapping[AnswerPlace, list[Message]],
    judge: Writer,
    settings: JudgeSettings,
    rubric: Rubric,
    seed: int,
    grades: Grades,
    temperature: float,
) -> None:
    """Ask until the grades can be read, up to so many times; what was read is in `grades` also if the judge stops."""
    left = dict(asked)
    for tried in range(settings.tries):
        if not left:
            break
        sampling = Sampling(settings.max_tokens, temperature=temperature, seed=seed + 1000 * tried)
        stopped: Stopped | None = None
        replies: Sequence[list[Answer] | Refusal | None]
        try:
            replies = judge.write(list(left.values()), sampling, FORM)
        except Stopped as error:
            stopped, replies = error, error.done
        unread = {}
        for place, reply in zip(left, replies, strict=True):
            if isinstance(reply, Refusal):
                grades[place] = {"unreadable": reply.reason[:200]}
            elif reply and (found := read_grades(reply[0].text)):
                grades[place] = found
            elif reply:
                grades[place] = {"unreadable": reply[0].text[:200]}
                said = {"role": "assistant", "content": reply[0].text or "..."}
                unread[place] = [*asked[place], said, {"role": "user", "content": rubric.again}]
        if stopped:
            raise stopped
        left, temperature = unread, SECOND_LOOK


def count_grades(grades: Iterable[dict[str, Any]], keep: int) -> dict[str, Any]:
    """How many answers were graded, how often each grade was given, and how far repeated grades agree."""
    counts: Counter[str] = Counter()
    given: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for row in grades:
        for grade in filter(None, row["grades"]):
            if "unreadable" in grade:
                counts["unreadable"] += 1
                continue
            counts["graded"] += 1
            for scale in SCALES:
                given[scale][grade[scale]] += 1
        for one, other in zip(row["grades"], row.get("again", ()), strict=False):
            if one and other and "unreadable" not in {*one, *other}:
                counts["twice"] += 1
                counts["same"] += one == other
                counts["within_one"] += all(abs(one[scale] - other[scale]) <= 1 for scale in SCALES)
                counts["same_decision"] += good(one, keep) == good(other, keep)
    facts: dict[str, Any] = {"graded": counts["graded"], "unreadable": counts["unreadable"]}
    for scale in SCALES:
        facts[scale] = {str(grade): given[scale][grade] for grade in range(1, 6)}
    facts["agreement"] = {"graded_twice": counts["twice"]}
    if counts["twice"]:
        for name in ("same", "within_one", "same_decision"):
            facts["agreement"][name] = round(counts[name] / counts["twice"], 4)
    return facts


def good(grade: dict[str, int], keep: int) -> bool:
    """Whether both grades are at least so high."""
    return min(grade.values()) >= keep


def kept_answers(
    answers: Iterable[dict[str, Any]], grades: Iterable[dict[str, Any]] | None, keep: int, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Rows of `id`, `kind` and `messages` with the best good answer of each prompt.

    Without grades the first usable answer is taken. `counts` gets `kept` and, of prompts whose answers were graded,
    `low_grades` and `unreadable_grades`.
    """
    of_prompt = {row["id"]: row["grades"] for row in grades or ()}
    for row in answers:
        numbers = usable(row)
        if not numbers:
            continue
        best: int | None = numbers[0]
        if grades is not None:
            best = _best(of_prompt[row["id"]], keep, counts)
        if best is None:
            continue
        counts["kept"] += 1
        turn = {"role": "assistant", "content": row["answers"][best]["text"]}
        if thinking := row["answers"][best].get("thinking"):
            turn["reasoning_content"] = thinking
        yield {"id": row["id"], "kind": "answer", "messages": [*row["messages"], turn]}


def _best(grades: list[dict[str, Any] | None], keep: int, counts: Counter[str]) -> int | None:
    read = [(number, grade) for number, grade in enumerate(grades) if grade and "unreadable" not in grade]
    if not read:
        counts["unreadable_grades"] += 1
        return None
    number, grade = max(read, key=lambda item: (good(item[1], keep), sum(item[1].values())))
    if good(grade, keep):
        return number
    counts["low_grades"] += 1
    return None
