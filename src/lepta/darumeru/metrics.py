"""Scores as pure functions: what an answer is worth beside its gold.

Definitions are in docs/darumeru.md. Matrices of counts may have leading axes, so that one call serves all draws of a
bootstrap.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lepta.core.errors import LeptaError
from lepta.darumeru.subjects import CATEGORIES, CATEGORY_OF

Counts = NDArray[np.float64]

# Sizes of the columns: the mean of all 17 tasks is the mean of the columns weighed by them.
COLUMN_SIZES = {"DaruMMLU": 3, "DaruMERA": 8, "DaruSum": 2, "DaruCopy EN": 2, "DaruCopy RU": 2}
COPIED = 0.99  # a paragraph counts as copied if more of it than this is

PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}«»„“”‘’…—–−№]")
ARTICLE = re.compile(r"\b(a|an|the)\b")
NOT_WORD = re.compile(r"[\W_]+")
NOT_LETTER = re.compile(r"[\d\W]+")
ANSWER_MARK = re.compile(r"^\s*(ответ|answer)\s*[:.\-—–]*\s*", re.IGNORECASE)
STRESS = "\u0301"


def pick(labels: Sequence[str], log_probs: Sequence[float]) -> str:
    """Take the label with the highest log-probability; of equal ones the first.

    Raises
    ------
    LeptaError
        If a value is missing or not a number, or all are equal: then the labels were not told apart, and whatever
        were picked would say nothing about the model.
    """
    if len(labels) != len(log_probs) or any(math.isnan(value) for value in log_probs):
        raise LeptaError(f"labels {', '.join(labels)}: expected one log-probability each, found {list(log_probs)}")
    if len(labels) > 1 and min(log_probs) == max(log_probs):
        raise LeptaError(
            f"labels {', '.join(labels)}: all have the log-probability {log_probs[0]}; were they cut to the same token?"
        )
    return labels[int(np.argmax(log_probs))]


def confusion(gold: Sequence[str], answers: Sequence[str], labels: Sequence[str]) -> Counts:
    """Count pairs of gold and answered label.

    Returns
    -------
    array of shape (labels, labels + 1)
        Rows are gold labels, columns answers; those in the last column are no label.
    """
    matrix = np.zeros((len(labels), len(labels) + 1))
    for right, answer in zip(gold, answers, strict=True):
        matrix[labels.index(right), labels.index(answer) if answer in labels else -1] += 1
    return matrix


def accuracy(matrix: Counts) -> Counts:
    """Share of right answers, from confusion matrices (see `confusion`)."""
    return _divide(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum((-2, -1)))


def macro_f1(matrix: Counts) -> Counts:
    """Mean F1 of the labels that occur as gold or as answer, from confusion matrices (see `confusion`)."""
    right = np.diagonal(matrix, axis1=-2, axis2=-1)
    # Twice the right ones, and both kinds of wrong ones.
    found = matrix.sum(-1) + matrix.sum(-2)[..., : right.shape[-1]]
    occurs = found > 0
    return _divide(_divide(2 * right, found).sum(-1), occurs.sum(-1))


def matthews(matrix: Counts) -> Counts:
    """Matthews correlation, from confusion matrices (see `confusion`); 0 where it is not defined."""
    gold, answered, all_ = matrix.sum(-1), matrix.sum(-2), matrix.sum((-2, -1))
    covariance = np.trace(matrix, axis1=-2, axis2=-1) * all_ - (gold * answered[..., : gold.shape[-1]]).sum(-1)
    spread = (all_**2 - (gold**2).sum(-1)) * (all_**2 - (answered**2).sum(-1))
    return _divide(covariance, np.sqrt(spread))


def _divide(above: Counts, below: Counts) -> Counts:
    """Divide, giving 0 where there is nothing to divide by."""
    below = np.asarray(below, float)
    return np.divide(above, below, out=np.zeros(np.broadcast_shapes(np.shape(above), below.shape)), where=below != 0)


def category_mean(right: Counts, asked: Counts, subjects: Sequence[str]) -> dict[str, Counts]:
    """MMLU: mean of each subject, then of each category's subjects.

    Parameters
    ----------
    right, asked : arrays of shape (..., subjects)
        Numbers of right answers and of questions.
    subjects : sequence of str
        Names as in `lepta.darumeru.subjects`; subjects without questions are left out.

    Returns
    -------
    dict
        Category -> mean, of the leading shape. The score is the mean of the four.

    Raises
    ------
    LeptaError
        If a category has no questions.
    """
    there = np.asarray(asked) > 0
    means = _divide(right, asked)
    result = {}
    for category in CATEGORIES:
        columns = [i for i, subject in enumerate(subjects) if CATEGORY_OF[subject] == category]
        if not there[..., columns].any(-1).all():
            raise LeptaError(f"MMLU has no questions of the category {category!r}; the score needs all four")
        result[category] = _divide(means[..., columns].sum(-1), there[..., columns].sum(-1))
    return result


def normalise(text: str) -> str:
    """Bring an answer to a question into the form in which answers are compared.

    Lower case, no punctuation (Russian marks too), no English articles, "ё" as "е", single spaces.
    """
    text = PUNCTUATION.sub(" ", text.lower().replace(STRESS, "").replace("ё", "е"))
    return " ".join(ARTICLE.sub(" ", text).split())


def token_f1(answer: str, gold: str) -> float:
    """F1 of the words that answer and gold share (SQuAD); 1 if both are empty."""
    mine, right = normalise(answer).split(), normalise(gold).split()
    if not mine or not right:
        return float(mine == right)
    return _f1(sum((Counter(mine) & Counter(right)).values()), len(right), len(mine))


def exact_match(answer: str, gold: str) -> float:
    """1 if answer and gold are the same after `normalise`, else 0 (SQuAD)."""
    return float(normalise(answer) == normalise(gold))


def best(score: Callable[[str, str], float], answer: str, golds: Sequence[str]) -> float:
    """Best score of an answer over all golds."""
    return max(score(answer, gold) for gold in golds)


def _f1(shared: int, in_reference: int, in_answer: int) -> float:
    return 2 * shared / (in_reference + in_answer) if shared else 0.0


def exam_points(kind: str, task: int, answer: str, golds: Sequence[str]) -> float:
    """Points of the Russian school-leaving exam for one item, the best over all golds.

    Parameters
    ----------
    kind : {"text", "choice", "matching"}
        matching: one point for each place where two lists of numbers agree, none if their lengths differ; text: 1 if
        the letters are those of a gold; choice: 1 if the sets of numbers are equal.
    task : int
        Number in the exam. Choice in task 16: one point for each number of the gold, less one for each too many.
    answer : str
        What the model wrote: read up to the end of its first line, "Ответ:" before it allowed. Numbers may be apart
        by anything or, as on the exam's form, written together.
    golds : sequence of str
        Numbers joined by commas, or words.
    """
    line = first_line(answer)
    if kind == "text":
        ways = {NOT_LETTER.sub("", way.lower()) for way in (line, ANSWER_MARK.sub("", line))}
        return float(any(NOT_LETTER.sub("", gold.lower()) in ways for gold in golds))
    readings = exam_numbers(line)
    return float(max(_number_points(kind, task, numbers, gold.split(",")) for numbers in readings for gold in golds))


def most_exam_points(kind: str, task: int, golds: Sequence[str]) -> int:
    """Points for a right answer to an item of the exam (see `exam_points`)."""
    by_number = kind == "matching" or (kind == "choice" and task == 16)
    return max(len(gold.split(",")) for gold in golds) if by_number else 1


def _number_points(kind: str, task: int, numbers: list[str], gold: list[str]) -> int:
    if kind == "matching":
        return sum(map(str.__eq__, numbers, gold)) if len(numbers) == len(gold) else 0
    chosen, right = set(numbers), set(gold)
    if task == 16:
        return max(0, len(chosen & right) - max(0, len(chosen) - len(right)))
    return int(chosen == right)


def first_line(text: str) -> str:
    """First line of an answer that has more in it than "Ответ:"; the text itself if none has."""
    return next((line for line in text.splitlines() if ANSWER_MARK.sub("", line).strip()), text)


def exam_numbers(text: str) -> list[list[str]]:
    """Numbers in an answer; if it is one, also its digits: the exam's form makes one number of several."""
    numbers = re.findall(r"\d+", text)
    return [numbers, list(numbers[0])] if len(numbers) == 1 else [numbers]


@cache
def _analyzer() -> Callable[[str], str]:
    try:
        import pymorphy3
    except ImportError as error:
        raise LeptaError("ROUGE on lemmas needs the package pymorphy3; pip install 'lepta[darumeru]'") from error
    parse = pymorphy3.MorphAnalyzer(lang="ru").parse
    return lambda word: parse(word)[0].normal_form


@lru_cache(maxsize=1 << 18)
def lemma(word: str) -> str:
    """Dictionary form of a Russian word in lower case; other words as they are."""
    return _analyzer()(word)


def lemmas(text: str) -> list[str]:
    """Lemmas of a text: lower case, punctuation to space, each word by its dictionary form (pymorphy3)."""
    return [lemma(word) for word in NOT_WORD.sub(" ", text.lower().replace(STRESS, "")).split()]


class Rouge(NamedTuple):
    """Overlap of n-grams: shared ones by those of the reference, by those of the answer, and both."""

    recall: float
    precision: float
    f1: float


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """Count the n-grams of a list of words."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def rouge(answer: Sequence[str], reference: Sequence[str], n: int) -> Rouge:
    """ROUGE-N of two lists of words, usually lemmas (Lin 2004); all 0 if one has no n-grams."""
    return rouge_of_counts(ngrams(answer, n), ngrams(reference, n))


def rouge_of_counts(answer: Counter[tuple[str, ...]], reference: Counter[tuple[str, ...]]) -> Rouge:
    """ROUGE of n-grams that are counted already."""
    shared, written, wanted = (counts.total() for counts in (answer & reference, answer, reference))
    if not shared:
        return Rouge(0.0, 0.0, 0.0)
    return Rouge(shared / wanted, shared / written, _f1(shared, wanted, written))


def r_precision(scores: Sequence[float], gold: Sequence[int]) -> float:
    """Share of gold items among the k highest scores, k = number of gold items; of equal scores the first wins.

    Parameters
    ----------
    scores : sequence of float
        One for each item.
    gold : sequence of int
        Indices of the items that are right.
    """
    if any(math.isnan(score) for score in scores):
        raise LeptaError("R-precision: a score is not a number; expected one log-probability for each sentence")
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return len(set(order[: len(gold)]) & set(gold)) / len(gold)


def lcs_length(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, by bit-parallel dynamic programming (Hyyrö 2004).

    One row of the table is one Python integer: 6,000 characters each take 5 ms, where difflib takes seconds and finds
    less than the longest.
    """
    places: dict[Hashable, int] = {}
    for i, item in enumerate(second):
        places[item] = places.get(item, 0) | 1 << i
    full = (1 << len(second)) - 1
    row = full
    for item in first:
        hits = row & places.get(item, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(second) - row.bit_count()


def copied_share(reference: Sequence[Hashable], copy: Sequence[Hashable]) -> float:
    """Longest common subsequence by the longer of both, so that neither stopping early nor going on passes as a copy.

    Parameters
    ----------
    reference, copy : sequences of token ids (or characters)
    """
    longest = max(len(reference), len(copy))
    return lcs_length(reference, copy) / longest if longest else 0.0


def legacy_copied_share(reference: str, copy: str) -> float:
    """Longest common subsequence of characters by the length of the copy, as the paper's code had it.

    The first tenth of a text scores 1 by it. Only for comparing with published numbers.
    """
    reference, copy = reference.strip(), copy.strip()
    return lcs_length(reference, copy) / len(copy) if copy else 0.0


def copied_length(reference: int, emitted: int) -> float:
    """How near the number of emitted tokens is to that of the reference: min(p/s, s/p), 0 if there are none."""
    return min(emitted, reference) / max(emitted, reference) if emitted and reference else 0.0


def micro_average(columns: Mapping[str, float]) -> float:
    """Mean of all 17 tasks from the means of the five columns."""
    return sum(size * columns[name] for name, size in COLUMN_SIZES.items()) / sum(COLUMN_SIZES.values())
