"""Scores against the field's implementations, and against plain ones written out."""

import json
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from lepta.core.errors import LeptaError
from lepta.darumeru import metrics
from lepta.darumeru.measures import Labels, SampleScore
from lepta.darumeru.subjects import CATEGORIES, CATEGORY_OF, RUSSIAN_NAMES, SUBJECTS

TABLES = Path(os.environ.get("LEPTA_SHARED", Path(__file__).parents[3] / "shared")) / "spec" / "paper_tables.json"
LABELS = ("1", "2", "3")
pairs = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from((*LABELS, "no label"))), min_size=1, max_size=40)
words = st.lists(st.sampled_from(["кот", "кошка", "дом", "домом", "стали", "сталь", "the", "cat"]), max_size=12)


def _confusion(gold, answers):
    known = (*LABELS, "no label")
    places = [(known.index(right), known.index(answer)) for right, answer in zip(gold, answers, strict=True)]
    scores = [SampleScore("", "", "", {"gold": right, "answer": answer}) for right, answer in places]
    return np.reshape(Labels(labels=3, headline=()).vector(scores), (3, 4))


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(deadline=None)
@given(pairs)
def test_labels_as_scikit_learn(rows):
    gold, answers = map(list, zip(*rows, strict=True))
    matrix = _confusion(gold, answers)
    assert metrics.accuracy(matrix) == pytest.approx(accuracy_score(gold, answers))
    labels = sorted({*gold, *answers} - {"no label"})
    macro = f1_score(gold, answers, labels=labels, average="macro", zero_division=0)
    assert metrics.macro_f1(matrix) == pytest.approx(macro)
    assert metrics.matthews(matrix) == pytest.approx(matthews_corrcoef(gold, answers), abs=1e-12)


def test_stacks_of_matrices():
    """One call for all draws gives what a call for each gives."""
    stack = np.random.default_rng(0).integers(0, 4, (5, 7, 3, 4)).astype(float)
    stack[0, 0] = 0
    for score in (metrics.accuracy, metrics.macro_f1, metrics.matthews):
        each = [[score(matrix) for matrix in row] for row in stack]
        assert score(stack) == pytest.approx(np.array(each))


class _Lemmas(Tokenizer):
    def tokenize(self, text):
        return metrics.lemmas(text)


@settings(deadline=None)
@given(words, words)
def test_rouge_as_rouge_score(answer, reference):
    scorer = RougeScorer(["rouge1", "rouge2"], tokenizer=_Lemmas())
    theirs = scorer.score(" ".join(reference), " ".join(answer))
    lemmas = [metrics.lemmas(" ".join(text)) for text in (answer, reference)]
    for n in (1, 2):
        mine = metrics.rouge(*(metrics.ngrams(text, n) for text in lemmas))
        expected = theirs[f"rouge{n}"]
        assert mine == pytest.approx((expected.recall, expected.fmeasure))


def test_lemmas():
    """Case, punctuation, stress marks and forms do not matter; words of other languages stay."""
    assert metrics.lemmas("Ко\u0301шки, «домами» шли… The_cats!") == ["кошка", "дом", "идти", "the", "cats"]


def _plain_lcs(first, second):
    row = [0] * (len(second) + 1)
    for item in first:
        before = 0
        for j, other in enumerate(second, 1):
            before, row[j] = row[j], before + 1 if item == other else max(row[j], row[j - 1])
    return row[-1]


@given(st.lists(st.integers(0, 4), max_size=60), st.lists(st.integers(0, 4), max_size=60))
def test_copies_as_the_plain_table(first, second):
    """Of token ids, and of characters by the legacy definition."""
    shared = _plain_lcs(first, second)
    assert metrics.copied_share(first, second) == (shared / max(len(first), len(second), 1))
    texts = ["".join(map(str, ids)) for ids in (first, second)]
    assert metrics.legacy_copied_share(*texts) == shared / max(len(second), 1)


def test_long_copies_are_scored_fast():
    generator = random.Random(0)
    first = generator.choices("абвгдежзийклмнопрст ", k=6000)
    second = generator.choices("абвгдежзийклмнопрст ", k=6000)
    seconds = []
    for _ in range(3):
        started = time.process_time()
        metrics.copied_share(first, second)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.05


def test_copies():
    text = list(range(1000))
    assert metrics.copied_share(text, text) == 1
    assert metrics.copied_share(text, text[:5] + text[6:]) == 0.999
    assert metrics.copied_share(text, [-1] * 1000) == 0
    assert metrics.copied_share(text, []) == 0
    assert metrics.copied_length(100, 100) == 1
    assert metrics.copied_length(100, 50) == metrics.copied_length(50, 100) == 0.5
    assert metrics.copied_length(100, 0) == 0


def test_legacy_copies():
    """The paper's code let the first tenth of a text pass; it is kept for comparing only."""
    assert metrics.legacy_copied_share("слово " * 100, "слово " * 10) == 1
    assert metrics.legacy_copied_share("слово", "") == 0


@pytest.mark.parametrize(
    ("answer", "gold", "f1", "exact"),
    [
        ("в Зареченске.", "Зареченске", 2 / 3, 0),
        ("«Зелёная  река»", "зеленая река", 1, 1),
        ("The river", "a river", 1, 1),
        ("", "река", 0, 0),
        ("река река", "река", 2 / 3, 0),
        ("1894 год — 1900", "1894", 0.5, 0),
        ("…", "«»", 1, 1),
    ],
)
def test_questions(answer, gold, f1, exact):
    assert metrics.token_f1(answer, gold) == pytest.approx(f1)
    assert metrics.exact_match(answer, gold) == exact


def test_best_of_golds():
    assert metrics.best(metrics.exact_match, "озеро Щучье", ["Щучье", "озеро Щучье"]) == 1


@pytest.mark.parametrize(
    ("kind", "task", "answer", "golds", "points"),
    [
        ("matching", 8, "5,9,1,7,3", ["5,9,1,7,3"], 5),
        ("matching", 8, "А-5, Б-9, В-1, Г-2, Д-2", ["5,9,1,7,3"], 3),
        ("matching", 8, "59173", ["5,9,1,7,3"], 5),
        ("matching", 8, "5,9,1,7", ["5,9,1,7,3"], 0),
        ("matching", 8, "не знаю", ["5,9,1,7,3"], 0),
        ("text", 4, "Ответ: баловать.", ["баловать"], 1),
        ("text", 4, "\n«БАЛОВАТЬ»\nпотому что…", ["баловать"], 1),
        ("text", 14, "чтобы, засветло", ["чтобызасветло", "засветлочтобы"], 1),
        ("text", 4, "бал", ["баловать"], 0),
        ("text", 4, "", ["баловать"], 0),
        ("choice", 9, "4, 1", ["1,4"], 1),
        ("choice", 9, "Ответ: 14", ["1,4"], 1),
        ("choice", 9, "1) и 4)", ["1,4"], 1),
        ("choice", 9, "1,4,5", ["1,4"], 0),
        ("choice", 9, "1,1,4", ["1,4"], 1),
        ("choice", 22, "2", ["1,2", "2"], 1),
        ("choice", 16, "1,3", ["1,3"], 2),
        ("choice", 16, "1", ["1,3"], 1),
        ("choice", 16, "1,3,5", ["1,3"], 1),
        ("choice", 16, "1,2,4,5", ["1,3"], 0),
        ("choice", 16, "", ["1,3"], 0),
        ("choice", 25, "38", ["38"], 1),
        ("choice", 25, "Ответ: предложение 38.", ["38"], 1),
        ("choice", 25, "3,8", ["38"], 0),
        ("choice", 25, "83", ["38"], 0),
        ("choice", 25, "12, 5", ["5,12"], 1),
        ("text", 5, "ответ на вопрос", ["ответнавопрос"], 1),
        ("text", 24, "Ответ: ответ, вопрос", ["ответвопрос"], 1),
        ("text", 5, "Ответ", ["ответ"], 1),
        ("text", 5, "Ответ:\nвопрос", ["вопрос"], 1),
    ],
)
def test_exam(kind, task, answer, golds, points):
    assert metrics.exam_points(kind, task, answer, golds) == points
    assert points <= metrics.most_exam_points(kind, task, golds)


def test_r_precision():
    assert metrics.r_precision([-1.0, -3.0, -2.0], [0, 2]) == 1
    assert metrics.r_precision([-1.0, -3.0, -2.0], [1]) == 0
    assert metrics.r_precision([-1.0, -1.0, -1.0], [0, 2]) == 0.5  # the first of equal ones
    with pytest.raises(LeptaError, match="not a number"):
        metrics.r_precision([float("nan"), 0.0], [0])


def test_pick():
    assert metrics.pick(("A", "B"), (-2.0, -1.0)) == "B"
    with pytest.raises(LeptaError, match="same token"):
        metrics.pick(("0", "1"), (-2.0, -2.0))
    with pytest.raises(LeptaError, match="expected one log-probability each"):
        metrics.pick(("0", "1"), (-2.0, float("nan")))


def test_subjects():
    assert len(SUBJECTS) == len(RUSSIAN_NAMES) == 57
    sizes = [sum(CATEGORY_OF[s] == category for s in SUBJECTS) for category in CATEGORIES]
    assert sizes == [18, 13, 12, 14]


def test_category_mean():
    """A mean of means, not of questions."""
    subjects = ["astronomy", "college_biology", "prehistory", "sociology", "anatomy"]
    means = metrics.category_mean(np.array([9.0, 1, 0, 1, 1]), np.array([9.0, 2, 1, 1, 1]), subjects)
    assert means == pytest.approx({"STEM": 0.75, "humanities": 0, "social sciences": 1, "other": 1})
    with pytest.raises(LeptaError, match="humanities"):
        metrics.category_mean(np.ones(2), np.ones(2), ["astronomy", "sociology"])


@pytest.mark.skipif(not TABLES.is_file(), reason=f"no {TABLES}; LEPTA_SHARED names another place")
def test_every_row_of_the_paper():
    tables = json.loads(TABLES.read_text())
    rows = [row for name, table in tables.items() if name.startswith("table") for row in table]
    assert len(rows) > 30
    for row in rows:
        columns = {name: row[name.lower().replace(" ", "_")] for name in metrics.COLUMN_SIZES}
        total = sum(size * columns[name] for name, size in metrics.COLUMN_SIZES.items()) / 17
        assert total == pytest.approx(row["micro_avg"], abs=0.0015), row


def test_lemmas_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymorphy3", None)
    metrics._analyzer.cache_clear()
    metrics.lemma.cache_clear()
    with pytest.raises(LeptaError, match=r"pip install 'lepta\[darumeru\]'"):
        metrics.lemmas("кошки")
    metrics._analyzer.cache_clear()
