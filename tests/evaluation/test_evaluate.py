"""What models are compared by, before any model is loaded."""

import json

import pytest

from lepta.errors import LeptaError
from lepta.evaluation.evaluate import behaviour_dialogues
from lepta.recipe import Behaviour


@pytest.fixture
def behaviour(write_lines):
    """Conversations with given answers."""

    def make(*answers, **options):
        turns = [{"role": "user", "content": "Вопрос: какой?"}]
        rows = [json.dumps({"messages": [*turns, {"role": "assistant", "content": answer}]}) for answer in answers]
        return Behaviour(dialogues=str(write_lines("talks.jsonl", rows)), **options)

    return make


def test_answers_without_a_mark_are_named(behaviour):
    with pytest.raises(LeptaError, match=r"talks\.jsonl, conversation 2: its answer has no ':'.*another mark"):
        behaviour_dialogues(behaviour("Коротко: да.", "Да.", "Нет."))


def test_only_answers_that_are_used_need_the_mark(behaviour):
    assert len(behaviour_dialogues(behaviour("Коротко: да.", "Да.", prompts=1))) == 1
    assert len(behaviour_dialogues(behaviour("Коротко — да.", "Да — да.", mark="—"))) == 2
