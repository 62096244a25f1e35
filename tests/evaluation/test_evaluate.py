"""Conversations that the evaluation measures behaviour on."""

import json

import pytest

from lepta.errors import LeptaError
from lepta.evaluation.evaluate import read_answered

ASKED = {"role": "user", "content": "a\u2028b"}  # a line separator to `str.splitlines`, and no end of a row
ANSWERED = {"role": "assistant", "content": "b"}
GOOD = json.dumps({"messages": [ASKED, ANSWERED]}, ensure_ascii=False)


@pytest.mark.parametrize("part", ["train", "valid"])
def test_starter_dialogues_end_with_an_answer(part):
    dialogues = read_answered(f"starter:dialogues/{part}.jsonl", 1000)
    assert len(dialogues) >= 50
    assert {messages[-1]["role"] for messages in dialogues} == {"assistant"}


def test_conversations_are_read_as_for_tuning(write_lines):
    rows = [GOOD, json.dumps({"prompt": ASKED["content"], "answer": "b"})]
    rows.append(json.dumps({"messages": [ASKED, {"role": "bot", "content": "b"}]}))
    assert read_answered(str(write_lines("a.jsonl", rows)), 3) == [[ASKED, ANSWERED]] * 3
    assert len(read_answered(str(write_lines("b.jsonl", [*rows, "{"])), 2)) == 2  # no more is read than is asked


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: not JSON"),
        ('{"text": "a"}', "line 2: no conversation"),
        ('{"messages": [{"role": "user"}]}', "line 2: no conversation"),
        ('{"messages": [{"role": "assistant", "content": 5}]}', "line 2: no conversation"),
        ('{"messages": []}', "line 2: no conversation"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "conversation 2: .*last an answer"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "conversation 2: expected a question"),
    ],
)
def test_bad_rows_are_named(write_lines, line, words):
    with pytest.raises(LeptaError, match=words):
        read_answered(str(write_lines("a.jsonl", [GOOD, line])), 8)


def test_file_without_a_conversation_raises(write_lines):
    with pytest.raises(LeptaError, match="no conversation in it"):
        read_answered(str(write_lines("a.jsonl", [""])), 8)
