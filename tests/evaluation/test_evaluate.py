"""What models are compared by, before any model is loaded: the conversations whose style is counted."""

import json

import pytest

from lepta.core.errors import LeptaError
from lepta.evaluation.evaluate import _judge_answers, behaviour_dialogues
from lepta.evaluation.settings import Behaviour
from lepta.models.load import load_model, load_tokenizer

ASKED = {"role": "user", "content": "a\u2028b"}  # a line separator to `str.splitlines`, and no end of a row
ANSWERED = {"role": "assistant", "content": "b: c"}
GOOD = json.dumps({"messages": [ASKED, ANSWERED]}, ensure_ascii=False)


@pytest.fixture
def behaviour(write_lines):
    """Conversations with given answers."""

    def make(*answers, **options):
        turns = [{"role": "user", "content": "Вопрос: какой?"}]
        rows = [json.dumps({"messages": [*turns, {"role": "assistant", "content": answer}]}) for answer in answers]
        return Behaviour(dialogues=str(write_lines("talks.jsonl", rows)), **options)

    return make


@pytest.mark.parametrize("part", ["train", "valid"])
def test_starter_dialogues_end_with_an_answer(part):
    dialogues = behaviour_dialogues(Behaviour(dialogues=f"starter:dialogues/{part}.jsonl", prompts=1000))
    assert len(dialogues) >= 50
    assert {messages[-1]["role"] for messages in dialogues} == {"assistant"}


def test_conversations_are_read_as_for_tuning(write_lines):
    rows = [GOOD, json.dumps({"prompt": ASKED["content"], "answer": "b: c"})]
    rows.append(json.dumps({"messages": [ASKED, {"role": "bot", "content": "b: c"}]}))
    file = str(write_lines("a.jsonl", rows))
    assert behaviour_dialogues(Behaviour(dialogues=file, prompts=3)) == [[ASKED, ANSWERED]] * 3
    file = str(write_lines("b.jsonl", [*rows, "{"]))
    assert len(behaviour_dialogues(Behaviour(dialogues=file, prompts=2))) == 2  # no more is read than is asked


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: not JSON"),
        ('{"text": "a"}', "line 2: no conversation"),
        ('{"messages": [{"role": "user"}]}', "line 2: no conversation"),
        ('{"messages": [{"role": "assistant", "content": 5}]}', "line 2: no conversation"),
        ('{"messages": []}', "line 2: no conversation"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "conversation 2: .*last an answer"),
        ('{"messages": [{"role": "assistant", "content": "a: b"}]}', "conversation 2: expected a question"),
    ],
)
def test_bad_rows_are_named(write_lines, line, words):
    with pytest.raises(LeptaError, match=words):
        behaviour_dialogues(Behaviour(dialogues=str(write_lines("a.jsonl", [GOOD, line])), prompts=8))


def test_file_without_a_conversation_raises(write_lines):
    with pytest.raises(LeptaError, match="no conversation in it"):
        behaviour_dialogues(Behaviour(dialogues=str(write_lines("a.jsonl", [""]))))


def test_answers_without_a_mark_are_named(behaviour):
    with pytest.raises(LeptaError, match=r"talks\.jsonl, conversation 2: its answer has no ':'.*another mark"):
        behaviour_dialogues(behaviour("Коротко: да.", "Да.", "Нет."))


def test_only_answers_that_are_used_need_the_mark(behaviour):
    assert len(behaviour_dialogues(behaviour("Коротко: да.", "Да.", prompts=1))) == 1
    assert len(behaviour_dialogues(behaviour("Коротко — да.", "Да — да.", mark="—"))) == 2


def test_an_opening_before_nonsense_does_not_keep_the_style(smollm2_folder):
    """The real model reads what follows: words of a language are text, letters at random are none."""
    entries = {
        "original": {"answers": ["In short: the cat sleeps on the mat.", "In short: bread is made of flour."]},
        "adapted": {"answers": ["In short: the dog is in the garden.", "In short: xq zzj qqwv kkjx vvzq pxq"]},
        "silent": {"answers": ["In short:", "The house is old and warm."]},
    }
    for name, kept in (("original", [True, True]), ("adapted", [True, True]), ("silent", [True, False])):
        entries[name]["kept_each"] = kept
    _judge_answers(entries, "original", load_model(smollm2_folder), load_tokenizer(smollm2_folder), ":")
    assert [entries[name]["text_each"] for name in entries] == [[True, True], [True, False], [False, True]]
    assert [entries[name]["whole"] for name in entries] == [2, 1, 0]
