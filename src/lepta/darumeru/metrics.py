"""Metrics as pure functions: the score of an answer, given the right one.

Definitions are in docs/darumeru.md. Matrices of counts may have leading axes: one call then scores all bootstrap draws,
which scikit-learn's metrics cannot do (tests compare the two).
"""

import itertools
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq

from lepta.core.errors import LeptaError, optional
from lepta.darumeru.subjects import CATEGORIES, CATEGORY_OF

Counts = NDArray[np.float64]

# Tasks in each column. Weighted by them, the means of the columns give the mean of all 17 tasks.
COLUMN_SIZES = {"DaruMMLU": 3, "DaruMERA": 8, "DaruSum": 2, "DaruCopy EN": 2, "DaruCopy RU": 2}
COPIED = 0.99  # a paragraph counts as copied if a larger share of it was

PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}«»„“”‘’…—–−№]")
ARTICLE = re.compile(r"\b(a|an|the)\b")
NOT_WORD = re.compile(r"[\W_]+")
NOT_LETTER = re.compile(r"[\d\W]+")
ANSWER_MARK = re.compile(r"^\s*(ответ|answer)\s*[:.\-—–]*\s*", re.IGNORECASE)
STRESS = "\u0301"


def pick(labels: Sequence[str], log_probs: Sequence[float]) -> str:
    """The label with the highest log-probability; of equal ones the first."""
    if len(labels) != len(log_probs) or any(map(math.isnan, log_probs)):
        raise LeptaError(f"labels {', '.join(labels)}: expected one log-probability each, found {list(log_probs)}")
    # Equal values mean that the labels were not told apart, and any choice would say nothing about the model.
    if len(labels) > 1 and min(log_probs) == max(log_probs):
        raise LeptaError(
            f"labels {', '.join(labels)}: all have the log-probability {log_probs[0]}; were they cut to the same token?"
        )
    return labels[int(np.argmax(log_probs))]


# --- labels: confusion matrices, shape (..., gold labels, answered labels + 1); the last column is "no label" ---------


def accuracy(matrix: Counts) -> Counts:
    """Share of right answers."""
    return _divide(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum((-2, -1)))


def macro_f1(matrix: Counts) -> Counts:
    """Mean F1 of the labels that occur as gold or as answer."""
    right = np.diagonal(matrix, axis1=-2, axis2=-1)
    # F1 = 2 TP / (2 TP + FP + FN); the denominator is the row sum and the column sum of the label.
    denominator = matrix.sum(-1) + matrix.sum(-2)[..., : right.shape[-1]]
    occurs = denominator > 0
    return _divide(_divide(2 * right, denominator).sum(-1), occurs.sum(-1))


def matthews(matrix: Counts) -> Counts:
    """Matthews correlation for any number of labels (Gorodkin 2004); 0 where it is not defined, as in scikit-learn."""
    gold, answered, total = matrix.sum(-1), matrix.sum(-2), matrix.sum((-2, -1))
    covariance = np.trace(matrix, axis1=-2, axis2=-1) * total - (gold * answered[..., : gold.shape[-1]]).sum(-1)
    spread = (total**2 - (gold**2).sum(-1)) * (total**2 - (answered**2).sum(-1))
    return _divide(covariance, np.sqrt(spread))


def _divide(above: Counts, below: Counts) -> Counts:
    """Divide, giving 0 where there is nothing to divide by."""
    below = np.asarray(below, float)
    return np.divide(above, below, out=np.zeros(np.broadcast_shapes(np.shape(above), below.shape)), where=below != 0)


def category_mean(right: Counts, asked: Counts, subjects: Sequence[str]) -> dict[str, Counts]:
    """MMLU: the mean of each category's subjects, from right answers and questions, both of shape (..., subjects).

    Subjects without questions do not count; a category without any is an error.
    """
    has_questions = np.asarray(asked) > 0
    means = _divide(right, asked)
    result = {}
    for category in CATEGORIES:
        columns = [i for i, subject in enumerate(subjects) if CATEGORY_OF[subject] == category]
        if not has_questions[..., columns].any(-1).all():
            raise LeptaError(f"MMLU has no questions of the category {category!r}; the score needs all four")
        result[category] = _divide(means[..., columns].sum(-1), has_questions[..., columns].sum(-1))
    return result


# --- answers to questions ---------------------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """The form in which answers are compared, as in SQuAD, with Russian punctuation and stress marks removed too."""
    text = PUNCTUATION.sub(" ", text.lower().replace(STRESS, "").replace("ё", "е"))
    return " ".join(ARTICLE.sub(" ", text).split())


def token_f1(answer: str, gold: str) -> float:
    """F1 of the words that answer and gold share (SQuAD); 1 if both are empty."""
    answer_words, gold_words = normalise(answer).split(), normalise(gold).split()
    if not answer_words or not gold_words:
        return float(answer_words == gold_words)
    shared = Counter(answer_words) & Counter(gold_words)
    return 2 * shared.total() / (len(gold_words) + len(answer_words))


def exact_match(answer: str, gold: str) -> float:
    """1 if answer and gold are the same after `normalise`, else 0 (SQuAD)."""
    return float(normalise(answer) == normalise(gold))


def best(score: Callable[[str, str], float], answer: str, golds: Sequence[str]) -> float:
    """Best score of an answer over all golds."""
    return max(score(answer, gold) for gold in golds)


# --- the Russian school-leaving exam ----------------------------------------------------------------------------------


def exam_points(kind: str, task: int, answer: str, golds: Sequence[str]) -> float:
    """Points for one item of the exam, the best over all golds (numbers joined by commas, or words).

    Only the first line of the answer counts, "Ответ:" before it allowed. `kind` is text, choice or matching; `task` is
    the item's number in the exam.
    """
    line = _first_line(answer)
    if kind == "text":
        # "Ответ" may also be the answer itself, so both readings count.
        readings = {NOT_LETTER.sub("", reading.lower()) for reading in (line, ANSWER_MARK.sub("", line))}
        return float(any(NOT_LETTER.sub("", gold.lower()) in readings for gold in golds))
    pairs = itertools.product(exam_numbers(line), golds)
    return float(max(_number_points(kind, task, numbers, gold.split(",")) for numbers, gold in pairs))


def most_exam_points(kind: str, task: int, golds: Sequence[str]) -> int:
    """Points for a right answer to an item of the exam."""
    if kind == "matching" or (kind == "choice" and task == 16):
        return max(len(gold.split(",")) for gold in golds)
    return 1


def _number_points(kind: str, task: int, numbers: list[str], gold: list[str]) -> int:
    """Matching: a point for each right place. Task 16: a point for each right number, less one for each too many."""
    if kind == "matching":
        return sum(map(str.__eq__, numbers, gold)) if len(numbers) == len(gold) else 0
    chosen, right = set(numbers), set(gold)
    if task == 16:
        return max(0, len(chosen & right) - max(0, len(chosen) - len(right)))
    return int(chosen == right)


def _first_line(text: str) -> str:
    """First line of an answer that has more in it than "Ответ:"; the text itself if none has."""
    for line in text.splitlines():
        if ANSWER_MARK.sub("", line).strip():
            return line
    return text


def exam_numbers(text: str) -> list[list[str]]:
    """Readings of an answer as numbers; a single number is also its digits, which the exam's form writes together."""
    numbers = re.findall(r"\d+", text)
    return [numbers, list(numbers[0])] if len(numbers) == 1 else [numbers]


# --- summaries --------------------------------------------------------------------------------------------------------


@cache
def _analyzer() -> Callable[[str], str]:
    with optional("ROUGE on lemmas", "darumeru"):
        import pymorphy3
    parse = pymorphy3.MorphAnalyzer(lang="ru").parse
    return lambda word: parse(word)[0].normal_form


@lru_cache(maxsize=1 << 18)
def lemma(word: str) -> str:
    """Dictionary form of a Russian word in lower case; other words as they are."""
    return _analyzer()(word)


def lemmas(text: str) -> list[str]:
    """Lemmas of a text: lower case, punctuation to space, each word by its dictionary form (pymorphy3)."""
    return list(map(lemma, NOT_WORD.sub(" ", text.lower().replace(STRESS, "")).split()))


class Rouge(NamedTuple):
    """Shared n-grams by those of the reference, and the F1 of this and of the same by those of the answer."""

    recall: float
    f1: float


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """Count the n-grams of a list of words."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def rouge(answer: Counter[tuple[str, ...]], reference: Counter[tuple[str, ...]]) -> Rouge:
    """ROUGE-N (Lin 2004) of two texts whose n-grams are counted, here of lemmas; all 0 if one has none."""
    shared, written, wanted = (answer & reference).total(), answer.total(), reference.total()
    if not shared:
        return Rouge(0.0, 0.0)
    return Rouge(shared / wanted, 2 * shared / (wanted + written))


def r_precision(scores: Sequence[float], gold: Sequence[int]) -> float:
    """Share of the k gold items (indices) that is among the k highest scores; of equal ones the first wins."""
    if any(map(math.isnan, scores)):
        raise LeptaError("R-precision: a score is not a number; expected one log-probability for each sentence")
    order = sorted(range(len(scores)), key=lambda i: -scores[i])  # stable, so the first of equal scores comes first
    return len(set(order[: len(gold)]) & set(gold)) / len(gold)


# --- copies -----------------------------------------------------------------------------------------------------------


def copied_share(reference: Sequence[Hashable], copy: Sequence[Hashable]) -> float:
    """Longest common subsequence of token ids (or characters), divided by the length of the longer text."""
    # By the longer one: neither stopping early nor going on after the end passes as a copy.
    return LCSseq.similarity(reference, copy) / max(len(reference), len(copy), 1)


def legacy_copied_share(reference: str, copy: str) -> float:
    """Longest common subsequence of characters by the length of the copy, for comparing with published numbers only."""
    # As in the paper's code, where the first tenth of a text scores 1.
    reference, copy = reference.strip(), copy.strip()
    return LCSseq.similarity(reference, copy) / max(len(copy), 1)


def copied_length(reference: int, emitted: int) -> float:
    """How near the number of emitted tokens is to that of the reference: min(p/s, s/p), 0 if there are none."""
    return min(emitted, reference) / max(emitted, reference, 1)
