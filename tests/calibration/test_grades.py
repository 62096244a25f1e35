"""Replies of judges as they come, and what is made of those that are no grades."""

import json
from collections import Counter

import pytest

from lepta.calibration.calibrate import make_examples
from lepta.calibration.judge import count_grades, grade_answers, kept_answers, load_rubric, read_grades
from lepta.calibration.settings import CalibrateSettings, JudgeSettings
from lepta.calibration.writers import Answer, Refusal
from lepta.core.errors import LeptaError
from lepta.core.journal import Journal, read_rows


@pytest.mark.parametrize(
    ("reply", "grades"),
    [
        ('{"grammar": 5, "relevance": 4}', (5, 4)),
        ('Sure!\n```json\n{"grammar":3,\n "relevance": 2}\n```\nThe answer is short.', (3, 2)),
        ("<think>grammar: 1, relevance: 1?</think>Grammar: 4/5\nRelevance: **5**", (4, 5)),
        ("grammar = 4, relevance - 3", (4, 3)),
        ('{"grammar": 5, "relevance": 4} so grammar: 5', (5, 4)),
        ('{"grammar": 7, "relevance": 4}', None),
        ('{"grammar": 0, "relevance": 4}', None),
        ('{"grammar": 45, "relevance": 4}', None),
        ('{"grammar": 4.5, "relevance": 4}', None),
        ('{"grammar": 5}', None),
        ("grammar: 4 or grammar: 5, relevance: 3", None),
        ("I think that the answer is quite good.", None),
        ("I cannot grade this.", None),
        ("", None),
    ],
)
def test_grades_are_read_from_replies(reply, grades):
    expected = None if grades is None else dict(zip(("grammar", "relevance"), grades, strict=True))
    assert read_grades(reply) == expected


def test_the_rubric_shows_all_turns_and_leaves_braces_as_they_are():
    rubric = load_rubric()
    *examples, turn = rubric.conversation([{"role": "user", "content": "{answer} {x}"}], "{conversation} 4")
    assert "user: {answer} {x}" in turn["content"] and "{conversation} 4" in turn["content"]
    assert rubric.version >= 2 and read_grades(turn["content"]) is None
    assert [turn["role"] for turn in examples] == ["user", "assistant"] * 5
    assert all(read_grades(turn["content"]) for turn in examples[1::2])


def texts(messages):
    return "\n".join(message["content"] for message in messages)


class Judge:
    """Says what it is told to about each answer, one reply after the other, and remembers what it was asked."""

    at_once, keeps_form = 2, None

    def __init__(self, replies):
        self.replies, self.asked = {key: list(values) for key, values in replies.items()}, []

    def write(self, conversations, sampling, form=None):
        result = []
        for messages in conversations:
            self.asked.append(messages)
            key = next(key for key in self.replies if f"answer {key}." in texts(messages))
            said = self.replies[key].pop(0) if self.replies[key] else "no idea"
            result.append(said if isinstance(said, Refusal) else [Answer(said, 5, True)])
        return result


def answered(key, *texts, whole=True):
    answers = [{"text": text, "tokens": 3, "whole": whole} for text in texts]
    return {"id": f"{key:024x}", "messages": [{"role": "user", "content": "Вопрос"}], "answers": answers}


def grades(grammar, relevance):
    return f'{{"grammar": {grammar}, "relevance": {relevance}}}'


def test_what_is_graded_kept_and_why_not(tmp_path):
    rows = [
        answered(1, "answer a."),
        answered(2, "answer b."),
        answered(3, "answer c."),
        answered(4, "answer d."),
        answered(5, "answer e.", whole=False),
        answered(6, ""),
        {"id": f"{7:024x}", "messages": [], "refused": "too long"},
        answered(8, "answer f.", "answer g.", "answer h."),
    ]
    judge = Judge(
        {
            "a": [grades(5, 4)],
            "b": ["It is a good one.", grades(7, 7), grades(4, 4)],
            "c": ["prose", "prose", "prose"],
            "d": [grades(5, 3)],
            "f": [Refusal("400 no")],
            "g": [grades(4, 4)],
            "h": [grades(5, 5)],
        }
    )
    settings = JudgeSettings(model="judge", repeat_share=0, tries=3)
    file = tmp_path / "grades.jsonl"
    grade_answers(rows, judge, settings, 1, Journal(file))
    facts = count_grades(read_rows(file), settings.keep)
    assert (facts["graded"], facts["unreadable"]) == (5, 2)
    assert facts["grammar"]["5"] == 3 and facts["relevance"]["3"] == 1
    reminded = next(
        messages for messages in judge.asked if "1 to 5" in messages[-1]["content"] and "answer b." in texts(messages)
    )
    assert reminded[-2]["content"] == "It is a good one."
    counts = Counter()
    kept = list(kept_answers(rows, read_rows(file), settings.keep, counts))
    assert [row["messages"][-1]["content"] for row in kept] == ["answer a.", "answer b.", "answer h."]
    assert counts == {"kept": 3, "low_grades": 1, "unreadable_grades": 1}
    asked = len(judge.asked)
    grade_answers(rows, judge, settings, 1, Journal(file))
    assert len(judge.asked) == asked  # all is done


def test_agreement_of_repeated_grades(tmp_path):
    rows = [answered(1, "answer a."), answered(2, "answer b."), answered(3, "answer c.")]
    judge = Judge(
        {
            "a": [grades(5, 5), grades(5, 5)],
            "b": [grades(4, 4), grades(4, 3)],
            "c": [grades(5, 1), grades(1, 1)],
        }
    )
    judge.at_once = 1
    file = tmp_path / "grades.jsonl"
    grade_answers(rows, judge, JudgeSettings(model="judge", repeat_share=1), 1, Journal(file))
    found = count_grades(read_rows(file), 4)["agreement"]
    assert found == {"graded_twice": 3, "same": 0.3333, "within_one": 0.6667, "same_decision": 0.6667}


def test_without_a_judge_the_first_whole_answer_is_taken():
    rows = [answered(1, "a", "b"), answered(2, "c", whole=False)]
    kept = list(kept_answers(rows, None, 1, Counter()))
    assert [row["messages"][-1] for row in kept] == [{"role": "assistant", "content": "a"}]


def test_answers_that_were_cut_short_are_told_with_the_setting_that_helps(tmp_path):
    (tmp_path / "answers").mkdir()
    rows = [
        {
            "id": str(n),
            "messages": [{"role": "user", "content": "?"}],
            "answers": [{"text": "a", "whole": False, "tokens": 7}],
        }
        for n in range(3)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "answers" / "answers.jsonl").write_text(lines, encoding="utf-8")
    settings = CalibrateSettings(prompts=["x"], answers={"max_tokens": 7})
    with pytest.raises(LeptaError, match="3 of 3 were cut short at 7 tokens; give a larger --max-tokens"):
        make_examples({"answers": tmp_path / "answers"}, settings, [], 1, tmp_path)


def test_why_prompts_were_refused_is_told(tmp_path):
    row = {"id": "1", "messages": [{"role": "user", "content": "?"}], "refused": "prompt: 600 tokens, too long"}
    (tmp_path / "answers.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(LeptaError, match="0 of 1 were empty, 1 refused, the first: prompt: 600 tokens, too long"):
        make_examples({"answers": tmp_path}, CalibrateSettings(prompts=["x"]), [], 1, tmp_path)
