"""What the propagated model learns from: the best good answer to each prompt, and copies."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from lepta.calibration.answers import fault
from lepta.calibration.judge import SCALES, good


def kept_answers(
    answers: Iterable[dict[str, Any]], grades: Iterable[dict[str, Any]] | None, keep: int, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Rows of `id`, `kind` and `messages` with the best good answer of each prompt.

    Parameters
    ----------
    answers, grades : iterables of rows
        As `write_answers` and `grade_answers` write them; without grades the first usable answer is taken.
    keep : int
        Both grades of a good answer are at least so high.
    counts : Counter
        `kept` and, of prompts whose answers were graded, `low_grades` and `unreadable_grades` are counted in it.
    """
    of_prompt = {row["id"]: row["grades"] for row in grades} if grades is not None else None
    for row in answers:
        usable = [number for number, answer in enumerate(row.get("answers", [])) if fault(answer) is None]
        if not usable:
            continue
        best = usable[0] if of_prompt is None else _best(of_prompt[row["id"]], keep, counts)
        if best is None:
            continue
        counts["kept"] += 1
        turn = {"role": "assistant", "content": row["answers"][best]["text"]}
        yield {"id": row["id"], "kind": "answer", "messages": [*row["messages"], turn]}


def _best(grades: list[dict[str, Any] | None], keep: int, counts: Counter[str]) -> int | None:
    read = [(number, grade) for number, grade in enumerate(grades) if grade and "unreadable" not in grade]
    if not read:
        counts["unreadable_grades"] += 1
        return None
    number, grade = max(read, key=lambda item: (good(item[1], keep), sum(item[1][scale] for scale in SCALES)))
    if good(grade, keep):
        return number
    counts["low_grades"] += 1
    return None
