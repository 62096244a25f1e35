"""From samples to tasks, columns and Micro-Avg; intervals, comparisons, and refusals."""

import time
from dataclasses import replace

import numpy as np
import pytest

from lepta.core.errors import LeptaError
from lepta.core.intervals import wilson
from lepta.darumeru.aggregate import TaskResult, _weights, compare, summarise, task_result
from lepta.darumeru.data import load_dataset
from lepta.darumeru.measures import Labels, Means, SampleScore, SubjectMeans, Units
from lepta.darumeru.metrics import COLUMN_SIZES
from lepta.darumeru.subjects import CATEGORIES, CATEGORY_OF, SUBJECTS
from lepta.darumeru.tasks import Answer, tasks


def model(skill, definition="current", seed=0):
    """Results of a model that knows an answer if a number drawn for it is below its skill."""
    results = []
    for task in tasks(definition).values():
        dataset = load_dataset(task.dataset)
        generator = np.random.default_rng([seed, *task.name.encode()])
        scores = [task.score(s, _answer(task, s, generator.random() < skill)) for s in task.samples(dataset)]
        results.append(task_result(task, dataset, scores, shots=0))
    return results


def _answer(task, sample, knows):
    if task.method == "choose":
        return Answer(label=sample.target if knows else next(x for x in task.labels if x != sample.target))
    if task.method == "loglikelihood":
        right = [i in sample.row.extractive for i in range(len(sample.continuations))]
        return Answer(log_probs=tuple(float(value == knows) for value in right))
    ids, text = tuple(sample.target.encode()), sample.target if knows else "—"
    return Answer(text=text, emitted=len(ids) if knows else 1, tokens=tuple(text.encode()), reference_tokens=ids)


@pytest.fixture(scope="module")
def weak():
    return model(0.5)


@pytest.fixture(scope="module")
def strong():
    return model(0.8)


def test_totals(weak):
    summary = summarise(weak)
    assert list(summary.tasks) == list(tasks()) and not summary.refused
    for column in COLUMN_SIZES:
        scores = [summary.tasks[name].score.value for name, task in tasks().items() if task.column == column]
        assert summary.columns[column].value == pytest.approx(np.mean(scores))
    weighted = sum(size * summary.columns[name].value for name, size in COLUMN_SIZES.items())
    assert summary.micro_avg.value == pytest.approx(weighted / 17)
    for estimate in (*summary.columns.values(), summary.micro_avg):
        assert estimate.low < estimate.value < estimate.high
    assert summary.tasks["parus"].samples == 24 and summary.tasks["parus"].units == 12
    assert set(summary.tasks["rucola"].parts) >= {"accuracy", "macro_f1", "matthews"}
    assert "label_mass" not in summary.tasks["rucola"].parts  # the model here does not tell it


def test_perfect_model():
    summary = summarise(model(1.1))
    assert summary.micro_avg.value == pytest.approx(1)
    assert summary.micro_avg.low == pytest.approx(1)


def test_the_same_each_time(weak):
    """Seeded, and blind to the order in which samples were answered."""
    shuffled = [replace(result, scores=list(reversed(result.scores))) for result in reversed(weak)]
    first, again, other = summarise(weak), summarise(shuffled), summarise(weak, seed=2)
    assert first.micro_avg.low == pytest.approx(again.micro_avg.low, abs=1e-12)
    assert first.micro_avg != other.micro_avg
    assert first.micro_avg.value == other.micro_avg.value


def _part(results, name, **changes):
    return [replace(result, **changes) if result.task == name else result for result in results]


def test_no_total_from_part(weak):
    """A missing task, an error, a missing sample: each refuses the total, and is named."""
    broken = {
        "missing": [result for result in weak if result.task != "rcb"],
        "1 errors, the first: rcb-002: timed out": _part(weak, "rcb", errors=["rcb-002: timed out"]),
        "14 of 15 samples": _part(weak, "rcb", scores=weak[5].scores[:-1]),
        "1 samples are there twice": _part(weak, "rcb", scores=[*weak[5].scores[:-1], weak[5].scores[0]]),
    }
    assert weak[5].task == "rcb"
    for reason, results in broken.items():
        with pytest.raises(LeptaError, match=f"no total from part of the tasks: rcb: {reason}"):
            summarise(results)
        partial = summarise(results, partial=True)
        assert partial.refused == {"rcb": reason} and partial.micro_avg is None
        assert "rcb" not in partial.tasks and "DaruMERA" not in partial.columns
        assert "DaruMMLU" in partial.columns and "parus" in partial.tasks
    with pytest.raises(LeptaError, match="parus: there twice"):
        summarise([*weak, weak[4]])
    with pytest.raises(LeptaError, match="no total"):
        summarise([])


def test_definitions_never_mix(weak):
    legacy = model(0.5, "legacy")
    assert summarise(legacy).definition == "legacy"
    with pytest.raises(LeptaError, match="legacy and current scores are mixed"):
        summarise([*weak[:8], *legacy[8:]])
    with pytest.raises(LeptaError, match="one result is current, the other legacy"):
        compare(weak, legacy)


def test_interval_of_a_proportion():
    """As wide as theory has it."""
    generator = np.random.default_rng(0)
    scores = [SampleScore(f"s{i}", f"u{i}", "", {"x": float(generator.random() < 0.3)}) for i in range(2000)]
    units = Means(headline=("x",)).units(scores)
    draws = np.concatenate(list(_weights(units, 2000, 1, ""))) @ units.vectors
    assert (draws[:, 0] / draws[:, 1]).std() == pytest.approx(np.sqrt(0.3 * 0.7 / 2000), rel=0.1)


def test_few_units_never_look_certain():
    """All of twelve units wrong: draws are all wrong too; Wilson's interval for 0 of 12 ends at 0.243."""
    score = summarise(model(0.0), partial=True).tasks["parus"].score
    assert (score.value, score.low) == (0.0, pytest.approx(0.0, abs=1e-12))
    assert score.high == pytest.approx(0.2425, abs=1e-3)


def test_units_are_drawn_whole():
    """A hundred copies of four samples tell no more than the four."""
    few = [SampleScore(f"s{i}", f"u{i}", "", {"x": float(i % 2)}) for i in range(4)]
    many = [replace(score, id=f"{score.id}-{copy}") for score in few for copy in range(100)]
    measure = Means(headline=("x",))
    spread = []
    for scores in (few, many):
        units = measure.units(scores)
        spread.append(measure.score(np.concatenate(list(_weights(units, 500, 1, ""))) @ units.vectors).std())
    assert spread[0] == pytest.approx(spread[1])


def test_strata_keep_their_size():
    units = Units(tuple(map(str, range(9))), tuple("aaabbbbbb"), np.zeros((9, 1)))
    weights = np.concatenate(list(_weights(units, 50, 1, "")))
    assert (weights[:, :3].sum(1) == 3).all() and (weights[:, 3:].sum(1) == 6).all()
    assert weights.std() > 0


def test_measures_on_draws():
    """A score of many draws at once is the score of each."""
    generator = np.random.default_rng(0)
    labels = [
        SampleScore(f"{i}", f"{i}", "", {"gold": generator.integers(3), "answer": generator.integers(3)})
        for i in range(30)
    ]
    subjects = [
        SampleScore(f"{i}", f"{i}", SUBJECTS[i % 57], {"correct": float(generator.integers(2))}) for i in range(300)
    ]
    for measure, scores in ((Labels(labels=3, headline=("macro_f1",)), labels), (SubjectMeans(), subjects)):
        units = measure.units(scores)
        totals = np.concatenate(list(_weights(units, 20, 1, ""))) @ units.vectors
        assert measure.score(totals) == pytest.approx([float(measure.score(total)) for total in totals])


def test_comparison(weak, strong):
    rows = compare(weak, strong)
    assert list(rows)[-1] == "Micro-Avg" and len(rows) == 17 + 5 + 1
    total = rows["Micro-Avg"]
    assert total.difference.value == pytest.approx(total.second - total.first) and total.difference.low > 0
    assert total.p < 0.01
    back = compare(strong, weak)["Micro-Avg"]
    assert back.difference.low == pytest.approx(-total.difference.high) and back.p == total.p


def test_a_model_is_not_better_than_itself(weak):
    for row in compare(weak, weak).values():
        assert row.difference.value == 0 and row.p == 1


def test_equal_answers_to_few_units_leave_room_for_a_difference(weak):
    """None of n units differs: the largest share that still may is the upper end of Wilson's interval of 0 of n."""
    summary = summarise(weak).tasks
    for name, row in compare(weak, weak).items():
        if name in summary:
            room = wilson(0, summary[name].units)[1]
            assert (row.difference.low, row.difference.high) == (-room, room)


def test_pairs_make_comparisons_sharper(weak):
    """What both models find hard cancels: the interval of the difference is narrower than two apart would give."""
    better = _part(weak, "copy_paragraph_ru", scores=[_improved(score) for score in weak[-1].scores])
    row = compare(weak, better)["copy_paragraph_ru"]
    alone = summarise(weak).tasks["copy_paragraph_ru"].score
    assert row.difference.high - row.difference.low < alone.high - alone.low


def _improved(score):
    return replace(score, values=dict(score.values) | {"copied": 1.0}) if score.id.endswith("1") else score


def test_only_like_results_are_compared(weak, strong):
    other = _part(strong, "rcb", conditions=dict(strong[5].conditions) | {"shots": 5, "data": "x"})
    with pytest.raises(LeptaError, match="rcb: the results differ in data, shots"):
        compare(weak, other)
    renamed = [replace(score, id=f"{score.id}x") for score in strong[5].scores]
    with pytest.raises(LeptaError, match="rcb: the results are of different samples"):
        compare(weak, _part(strong, "rcb", scores=renamed))
    partial = compare(weak, strong[:-1])
    assert "Micro-Avg" not in partial and "DaruCopy RU" not in partial and "DaruMMLU" in partial
    with pytest.raises(LeptaError, match="no task is whole"):
        compare(weak, [])


def test_equal_ids_of_unrelated_tasks_are_drawn_apart():
    """Published ids are numbers from 0 in many datasets; the same rows, and MMLU in both languages, go together."""
    right = [float(i % 5 > 1) for i in range(114)]
    names = ("correct", "rouge1_recall", "rouge2_recall", "r_precision")
    scores = [
        SampleScore(f"{i}", f"{i}", SUBJECTS[i % 57], {"gold": 0, "answer": 1 - value, **dict.fromkeys(names, value)})
        for i, value in enumerate(right)
    ]
    asked = ["ruopenbookqa", "ruworldtree", "summary_abstractive", "summary_extractive", "mmlu_ru", "mmlu_en"]
    found = summarise([TaskResult(name, "current", 114, scores) for name in asked], partial=True).tasks
    assert found["ruopenbookqa"].score.value == found["ruworldtree"].score.value
    assert found["ruopenbookqa"].score != found["ruworldtree"].score
    assert found["summary_abstractive"].score == found["summary_extractive"].score
    assert found["mmlu_ru"].score == found["mmlu_en"].score


def test_documents_are_drawn_together():
    """Both summary tasks ask about the same documents, so that their draws are the same."""
    known, dataset = tasks(), load_dataset("gazeta")
    names = [
        known[name].measure.units(
            [SampleScore(s.id, s.row.unit, s.row.stratum, dict.fromkeys(known[name].measure.headline, 1.0))
             for s in known[name].samples(dataset)]
        ).names
        for name in ("summary_abstractive", "summary_extractive")
    ]  # fmt: skip
    assert names[0] == names[1]


def test_first_rows_are_of_all_categories():
    """A part of MMLU has a score, however its rows are sorted."""
    dataset = load_dataset("mmlu_ru")
    rows = sorted(dataset.test, key=lambda row: (CATEGORY_OF[row.stratum], row.stratum))
    part = replace(dataset, test=tuple(rows)).first(8)
    assert sorted(CATEGORY_OF[row.stratum] for row in part.test) == sorted([*CATEGORIES] * 2)
    assert len({row.stratum for row in part.test}) == 8


def test_first_rows_of_each_subject():
    part = load_dataset("mmlu_ru").first(12)
    assert len(part.test) == 12 == len({row.subject for row in part.test})
    assert len(load_dataset("parus").first(3).test) == 3
    assert part.sha256 != load_dataset("mmlu_ru").sha256


def test_full_size_is_quick():
    """14,042 questions of MMLU, 1,000 draws."""
    task = tasks()["mmlu_ru"]
    scores = [
        SampleScore(f"{i}", f"{i}", SUBJECTS[i % 57], {"correct": float(i // 57 % 3 == 0), "label_mass": 1.0})
        for i in range(14_042)
    ]
    result = task_result(task, load_dataset("mmlu_ru"), scores, 0)
    started = time.process_time()
    summary = summarise([replace(result, expected=len(scores))], partial=True)
    assert time.process_time() - started < 10
    score = summary.tasks["mmlu_ru"].score
    assert score.low < score.value < score.high and score.high - score.low < 0.03
