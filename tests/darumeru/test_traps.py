"""What went wrong in the published framework must not go wrong here (the half that needs no model)."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

import lepta.darumeru
from lepta.core.errors import LeptaError
from lepta.darumeru.aggregate import TaskResult, compare, summarise, task_result
from lepta.darumeru.data import load_dataset
from lepta.darumeru.metrics import COPIED, copied_share, pick
from lepta.darumeru.rows import make_row
from lepta.darumeru.tasks import Answer, tasks


def _copy_score(definition, copy):
    task = tasks(definition)["copy_paragraph_ru"]
    sample = task.samples(load_dataset("copy_ru"))[0]
    text = copy(sample.target)
    answer = Answer(
        text=text, emitted=len(text), tokens=tuple(text.encode()), reference_tokens=tuple(sample.target.encode())
    )
    return task.score(sample, answer).values["copied"]


@pytest.mark.parametrize(
    "copy",
    [
        lambda text: text[: len(text) // 10],
        lambda text: text + "мусор " * (len(text) // 6),
        lambda text: text + text,
        lambda text: text[::-1],
        lambda text: "",
    ],
    ids=["first tenth", "copy and junk", "copied twice", "backwards", "nothing"],
)
def test_1_only_a_copy_is_a_copy(copy):
    """Divided by the copy's length the first tenth passed; by the text's length, copy and junk."""
    assert _copy_score("current", copy) == 0
    assert _copy_score("current", str) == 1


def test_1_a_copy_that_was_cut_is_none():
    """A text is cut where it is too long, whatever stands there: three long tokens must not pass for a hundredth."""
    task = tasks()["copy_paragraph_ru"]
    sample = task.samples(load_dataset("copy_ru"))[0]
    reference = tuple(sample.target.encode())
    cut = sample.target + "-" * (task.longest_for(sample) - len(sample.target))
    answer = Answer(text=cut, emitted=9, tokens=(*reference, 1, 2, 3), reference_tokens=reference)
    assert task.score(sample, answer).values == {
        "length": 9 / len(reference), "copied": 0, "share": len(reference) / (len(reference) + 3),
        "symbols_per_token": len(sample.target) / len(reference),
    }  # fmt: skip
    assert tasks("legacy")["copy_paragraph_ru"].longest_for(sample) is None


def test_1_legacy_is_what_it_was():
    assert _copy_score("legacy", lambda text: text[: len(text) // 10]) == 1


def test_1_one_wrong_token_in_a_hundred():
    """More than 99 % must be there."""
    text = list(range(200))
    assert copied_share(text, [*text[:-1], -1]) > COPIED
    assert copied_share(text, [*text[:-2], -1, -1]) <= COPIED


def test_2_labels_that_were_not_told_apart():
    """With one token for the space before all digits, every label has the same probability: that is no answer."""
    with pytest.raises(LeptaError, match="all have the log-probability"):
        pick(("0", "1"), (-0.5, -0.5))
    for task in tasks().values():
        assert len(set(task.labels)) == len(task.labels)
        if task.labels:
            sample = task.samples(load_dataset(task.dataset))[0]
            assert sample.continuations == tuple(f" {label}" for label in task.labels)


def _rcb(drop=None):
    task, dataset = tasks()["rcb"], load_dataset("rcb")
    samples = task.samples(dataset)
    scores = [task.score(s, Answer(label=s.target)) for i, s in enumerate(samples) if i != drop]
    return task_result(task, dataset, scores, shots=0)


def test_3_a_lost_answer_shifts_nothing():
    """Scores belong to their samples by id; one that is lost refuses the task instead of shifting the others."""
    assert "rcb" in summarise([_rcb()], partial=True).tasks
    summary = summarise([_rcb(drop=3)], partial=True)
    assert summary.refused["rcb"] == "14 of 15 samples" and "rcb" not in summary.tasks


def test_4_tasks_share_no_state():
    """Limits belong to tasks, which cannot be changed; a field that is not known is an error."""
    task = tasks()["summary_abstractive"]
    with pytest.raises(AttributeError):
        task.max_new_tokens = 1
    assert tasks()["multiq"].max_new_tokens == 64
    with pytest.raises(LeptaError, match="unknown key"):
        make_row("rucola", {"id": "a", "sentence": "Так.", "answer": "1", "limit": 3}, "here")


def test_5_results_carry_what_they_depend_on():
    """Not a file's name but its content, and the words of the prompt."""
    first = _rcb()
    dataset = load_dataset("rcb")
    changed = replace(dataset, test=(dataset.test[0].model_copy(update={"answer": "2"}), *dataset.test[1:]))
    second = task_result(tasks()["rcb"], changed, first.scores, shots=0)
    with pytest.raises(LeptaError, match="rcb: the results differ in data"):
        compare([first], [second])


def test_6_no_mean_of_whatever_is_there():
    with pytest.raises(LeptaError, match="no total from part of the tasks: rummlu: missing"):
        summarise([_rcb()])
    failed = TaskResult("rcb", "current", 15, _rcb().scores, errors=["rcb-001: no answer"])
    assert summarise([failed], partial=True).refused["rcb"] == "1 errors, the first: rcb-001: no answer"


@pytest.mark.parametrize("name", list(tasks()))
def test_7_every_turn_is_there(name):
    """Each example has a turn of the assistant, under a role that chat templates know."""
    task = tasks()[name]
    dataset = load_dataset(task.dataset)
    sample = task.samples(dataset)[0]
    shots = task.shots(dataset, sample, 5)
    messages = task.messages(sample, shots)
    assert len(shots) == 5
    assert {message["role"] for message in messages} == {"user", "assistant"}
    for shot, message in zip(shots, messages[1::2], strict=False):
        assert message["role"] == "assistant" and message["content"].endswith(shot.target)


def test_8_sentences_share_their_prompt():
    """All sentences of an article follow one and the same prompt, which a model needs to read once."""
    task = tasks()["summary_extractive"]
    sample = task.samples(load_dataset("gazeta"))[0]
    assert len(sample.continuations) == len(sample.row.sentences) > 1
    prompt = task.messages(sample)
    assert all(prompt[0]["content"].count(text.strip()) == 1 for text in sample.continuations)
    assert task.score(sample, Answer(log_probs=(-math.inf,) * len(sample.continuations))).values["r_precision"] < 1


def test_9_nothing_random_without_a_seed():
    once, again = (summarise([_rcb()], partial=True) for _ in range(2))
    assert once == again


def test_10_answers_are_never_run():
    """No answer is given to eval, and no module of the benchmark has it."""
    task = tasks()["use"]
    for sample in task.samples(load_dataset("use")):
        assert task.score(sample, Answer(text="__import__('os').abort()")).values["points"] == 0
    for file in Path(lepta.darumeru.__file__).parent.glob("*.py"):
        assert not re.search(r"\b(eval|exec|literal_eval)\((?!\))", file.read_text(encoding="utf-8")), file.name


def test_scores_survive_json():
    """Logs hold samples as JSON; a summary made from them is the same."""
    from dataclasses import asdict

    from lepta.darumeru.measures import SampleScore

    result = _rcb()
    read = [SampleScore(**json.loads(json.dumps(asdict(score)))) for score in result.scores]
    assert summarise([replace(result, scores=read)], partial=True) == summarise([result], partial=True)
