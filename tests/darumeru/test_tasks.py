"""What is asked, in which words, and what answers are worth."""

from dataclasses import replace

import pytest

from lepta.core.errors import LeptaError
from lepta.darumeru.data import load_dataset
from lepta.darumeru.metrics import COLUMN_SIZES
from lepta.darumeru.rows import DATASETS, make_row
from lepta.darumeru.tasks import Answer, tasks

ALL = list(tasks())


def _first(name, definition="current", shots=2):
    task = tasks(definition)[name]
    dataset = load_dataset(task.dataset)
    sample = task.samples(dataset)[0]
    return task, sample, task.shots(dataset, sample, shots)


def right_answer(task, sample):
    """What a perfect model gives."""
    if task.method == "choose":
        return Answer(label=sample.target, label_mass=1.0)
    if task.method == "loglikelihood":
        return Answer(log_probs=tuple(float(i in sample.row.extractive) for i in range(len(sample.continuations))))
    ids = tuple(sample.target.encode())
    return Answer(text=sample.target, emitted=len(ids), tokens=ids, reference_tokens=ids)


def test_columns():
    counted = {column: sum(task.column == column for task in tasks().values()) for column in COLUMN_SIZES}
    assert counted == COLUMN_SIZES and len(ALL) == 17
    assert {task.dataset for task in tasks().values()} == set(DATASETS)


@pytest.mark.parametrize("definition", ["current", "legacy"])
@pytest.mark.parametrize("name", ALL)
def test_perfect_answers(name, definition):
    """A perfect model gets 1 in every task and definition."""
    task = tasks(definition)[name]
    samples = task.samples(load_dataset(task.dataset))
    scores = [task.score(sample, right_answer(task, sample)) for sample in samples]
    assert len({score.id for score in scores}) == len(samples)
    assert task.measure.score(task.measure.units(scores).vectors.sum(0)) == pytest.approx(1)


@pytest.mark.parametrize("definition", ["current", "legacy"])
@pytest.mark.parametrize("name", ALL)
def test_messages(name, definition):
    """Turns take turns, each example ends in its answer, and nothing the model sees ends with a space."""
    task, sample, shots = _first(name, definition)
    messages = task.messages(sample, shots)
    assert [message["role"] for message in messages] == (["user", "assistant"] * 3)[: len(messages)]
    assert all(message["content"] and message["content"] == message["content"].strip() for message in messages)
    shown = shots[::-1] if definition == "legacy" else shots
    assert [message["content"] for message in messages[1:4:2]] == [task.after_lead_in(shot.target) for shot in shown]
    assert len(messages) == 6 if task.prompt.lead_in else 5
    assert task.messages(sample, shots) == messages  # the same each time
    assert all(text.startswith(" ") and text != " " for text in sample.continuations)
    assert task.max_new_tokens > 0 or task.method == "loglikelihood"


def test_the_answer_is_not_in_the_question():
    for name in ("multiq", "use", "parus", "rwsd"):
        task, sample, _ = _first(name)
        assert task.after_lead_in(sample.target) not in task.messages(sample)[0]["content"]


def test_braces_in_items_stay():
    task, sample, _ = _first("rucola")
    row = sample.row.model_copy(update={"sentence": "Вот {sentence} и {0}."})
    assert "Вот {sentence} и {0}." in task.messages(replace(sample, row=row))[0]["content"]


def test_parus_asks_twice():
    task = tasks()["parus"]
    first, second = task.samples(load_dataset("parus"))[:2]
    assert second.row.choices == first.row.choices[::-1] and {first.target, second.target} == {"1", "2"}
    assert first.row.unit == second.row.unit and second.id == f"{first.id}#swapped"
    always = [task.score(sample, Answer(label="1")) for sample in (first, second)]
    assert task.measure.score(task.measure.units(always).vectors.sum(0)) == 0


def test_exam_is_a_mean_over_variants():
    """One variant right and one wrong is a half, however many points each has."""
    task = tasks()["use"]
    samples = task.samples(load_dataset("use"))
    scores = [task.score(s, Answer(text=s.target if s.row.variant == 1 else "")) for s in samples]
    units = task.measure.units(scores)
    assert len(units.names) == 2 and task.measure.score(units.vectors.sum(0)) == 0.5


def test_mmlu_headline_and_shots():
    """Current: a headline always. Legacy: only with examples. Examples are of the question's subject."""
    for name, word in (("mmlu_ru", "абстрактная алгебра"), ("mmlu_en", "abstract algebra")):
        task, sample, shots = _first(name)
        old = tasks("legacy")[name]
        assert {shot.row.subject for shot in shots} == {sample.row.subject} and len(shots) == 2
        assert word in task.messages(sample)[0]["content"] and word not in old.messages(sample)[0]["content"]
        for either in (task, old):
            texts = [message["content"] for message in either.messages(sample, shots)]
            assert [word in text for text in texts] == [True] + [False] * 5


def test_examples_are_of_the_subject():
    task, dataset = tasks()["mmlu_ru"], load_dataset("mmlu_ru")
    for sample in task.samples(dataset):
        assert {shot.row.subject for shot in task.shots(dataset, sample, 5)} == {sample.row.subject}


def test_rummlu_words_differ():
    """Instructions vary from item to item, and are the same each time."""
    task = tasks()["rummlu"]
    samples = task.samples(load_dataset("rummlu"))
    openings = {task.messages(sample)[0]["content"].replace(sample.row.question, "")[:25] for sample in samples}
    assert len(openings) > 3


def test_copies_of_both_kinds():
    """A row says which task it serves; without that its first sentence serves the other."""
    dataset = load_dataset("copy_ru")
    plain, sentence, paragraph = (
        make_row("copy_ru", {"id": str(n), "text": "Первое. Второе.", **kind}, "here")
        for n, kind in enumerate(({}, {"kind": "sentence"}, {"kind": "paragraph"}))
    )
    dataset = replace(dataset, test=(plain, sentence, paragraph))
    targets = {
        unit: [sample.target for sample in tasks()[f"copy_{unit}_ru"].samples(dataset)]
        for unit in ("sentence", "paragraph")
    }
    assert targets == {
        "sentence": ["Первое.", "Первое. Второе."],
        "paragraph": ["Первое. Второе.", "Первое. Второе."],
    }
    with pytest.raises(LeptaError, match="no row for the task copy_sentence_ru"):
        tasks()["copy_sentence_ru"].samples(replace(dataset, test=(paragraph,)))


def test_stop_strings_spare_the_answer():
    task, sample, _ = _first("copy_paragraph_ru")
    assert task.stop_for(sample) == ("\n\n",)
    assert task.stop_for(replace(sample, target="Раз.\n\nДва.")) == ()


def test_summaries_current_and_legacy():
    """Recall now, F-measure in the paper's code; both are reported."""
    values = {}
    for definition in ("current", "legacy"):
        task, sample, _ = _first("summary_abstractive", definition)
        text = sample.target + " И ещё много лишних слов, которых в пересказе быть не должно."
        units = task.measure.units([task.score(sample, Answer(text=text))])
        values[definition] = task.measure.score(units.vectors.sum(0))
        parts = task.measure.parts(units.vectors.sum(0))
        assert parts["rouge1_recall"] == 1 > parts["rouge1_f1"]
    assert values["current"] == 1 > values["legacy"]


def test_missing_parts_of_answers():
    for name, answer, message in [
        ("multiq", Answer(), "the answer has no text"),
        ("rcb", Answer(label="4"), "label '4'; expected one of 1, 2, 3"),
        ("rcb", Answer(text="1"), "label None"),
        ("summary_extractive", Answer(log_probs=(0.0,)), "1 log-probabilities for 8 sentences"),
        ("copy_paragraph_en", Answer(text="x", tokens=(1,)), "no reference_tokens, emitted"),
    ]:
        task, sample, _ = _first(name)
        with pytest.raises(LeptaError, match=f"{name}, {sample.id}: .*{message}"):
            task.score(sample, answer)


def test_wrong_dataset():
    with pytest.raises(LeptaError, match="needs the dataset parus"):
        tasks()["parus"].samples(load_dataset("rcb"))


def test_prompt_hash():
    """Words, lead-in, limits and definition are in the hash; 17 tasks and two definitions have hashes of their own."""
    task = tasks()["rcb"]
    changed = [
        replace(task, prompt=replace(task.prompt, lead_in="№:")),
        replace(task, prompt=replace(task.prompt, templates=("{premise}",))),
        replace(task, labels=("1", "2")),
        replace(task, max_new_tokens=2),
        replace(task, version=2),
    ]
    assert task.prompt_sha256 not in {other.prompt_sha256 for other in changed}
    assert task.prompt_sha256 == tasks()["rcb"].prompt_sha256
    assert tasks("legacy")["rcb"].prompt_sha256 != task.prompt_sha256
