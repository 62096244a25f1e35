"""The original model answers the prompts; each answer is on disk as soon as it is there."""

import itertools
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field, model_validator

from lepta.calibration.prompts import Prompt
from lepta.calibration.writers import Answer, Refusal, Sampling, Stopped, Writer
from lepta.core.journal import IdentifiedRow, Journal
from lepta.core.progress import progress


class Turn(BaseModel):
    """A turn of a conversation."""

    role: str
    content: str


class AnswerRow(IdentifiedRow):
    """A prompt with its answers, or with the reason why there are none."""

    id: str = Field(pattern="^[0-9a-f]{8,}$")
    messages: list[Turn] = Field(min_length=1)
    answers: list[Answer] | None = Field(default=None, min_length=1)
    refused: str | None = None

    @model_validator(mode="after")
    def _one_of(self) -> "AnswerRow":
        if (self.answers is None) == (self.refused is None):
            raise ValueError("expected answers, or why they were refused")
        return self


def write_answers(prompts: Iterable[Prompt], writer: Writer, sampling: Sampling, journal: Journal) -> None:
    """Answer the prompts, which are streamed, that have no row yet.

    A row has `id`, `messages`, and `answers` or, as `refused`, the reason why there is none. LeptaError if the writer
    cannot go on; rows that were written stay.
    """
    started, tokens = time.monotonic(), 0
    left = (prompt for prompt in prompts if prompt.id not in journal.done)
    with progress("writing answers to prompts", None) as bar:
        while part := list(itertools.islice(left, writer.at_once)):
            try:
                written = writer.write([prompt.messages for prompt in part], sampling)
            except Stopped as stopped:
                done = zip(part, stopped.done, strict=True)
                journal.add(_row(prompt, answers) for prompt, answers in done if answers is not None)
                raise
            journal.add(map(_row, part, written))
            for answers in written:
                if not isinstance(answers, Refusal):
                    tokens += sum(answer.tokens for answer in answers)
            bar.set(len(journal.done), f"{tokens / (time.monotonic() - started):.0f} tokens/s")


def _row(prompt: Prompt, answers: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"id": prompt.id, "messages": list(prompt.messages)}
    if isinstance(answers, Refusal):
        return row | {"refused": answers.reason}
    return row | {"answers": [asdict(answer) for answer in answers]}


def fault(answer: dict[str, Any]) -> str | None:
    """Why an answer cannot be learned from, whatever a judge would say: `empty` or `unfinished`; None if it can."""
    if not answer["text"]:
        return "empty"
    return None if answer["whole"] else "unfinished"


def usable(row: dict[str, Any]) -> list[int]:
    """Numbers of the answers in a row that can be learned from."""
    return [number for number, answer in enumerate(row.get("answers", [])) if fault(answer) is None]


def count_answers(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Prompts by what became of them, and the tokens that were written.

    `answered` have an answer that can be learned from, `empty` and `unfinished` only such ones, `refused` none.
    """
    counts = dict.fromkeys(("prompts", "answered", "refused", "empty", "unfinished", "answer_tokens"), 0)
    for row in rows:
        counts["prompts"] += 1
        if "refused" in row:
            counts["refused"] += 1
            continue
        counts["answered" if usable(row) else str(fault(row["answers"][0]))] += 1
        counts["answer_tokens"] += sum(answer["tokens"] for answer in row["answers"])
    return counts
