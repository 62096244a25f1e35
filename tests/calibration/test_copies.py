"""Texts to repeat: drawn from a stream, and apart from what is known."""

import json
import random

import pytest

from lepta.calibration.copies import copy_examples, draw, known_elsewhere
from lepta.calibration.settings import CopySettings
from lepta.core.errors import LeptaError


def test_passages_are_whole_paragraphs_of_many_lengths(russian):
    passages = draw(russian, 40, 1500, random.Random(1))
    paragraphs = {line.strip() for text in russian for line in text.split("\n") if line.strip()}
    assert len(passages) == len(set(passages)) == 40
    for passage in passages:
        assert 60 <= len(passage) <= 1500
        assert {line.strip() for line in passage.split("\n") if line.strip()} <= paragraphs
    assert min(map(len, passages)) < 250 and max(map(len, passages)) > 700


def test_drawing_is_fair():
    """A reservoir: every passage of the stream is as likely as any other."""
    documents = [f"{number} " + "слово " * 12 for number in range(40)]
    drawn = [text.split()[0] for seed in range(300) for text in draw(documents, 4, 100, random.Random(seed))]
    assert len(drawn) == 1200
    assert all(10 < drawn.count(str(number)) < 60 for number in range(40))


def test_texts_that_are_known_elsewhere_are_not_copied(tmp_path, russian):
    seen = tmp_path / "seen.jsonl"
    seen.write_text(json.dumps({"text": russian[0].upper().replace(",", " ;")}) + "\n", encoding="utf-8")
    passages = [russian[0][-400:], russian[1][:400], "Коротко."]
    assert known_elsewhere(passages, [str(seen)], 13).tolist() == [True, False, True]
    everything = CopySettings(text=["starter:ru/valid"], number=500)
    examples, facts = copy_examples(everything, [str(seen), "darumeru:builtin"], 1)
    assert facts["copied"] == len(examples) == facts["drawn"] - facts["known"] > 20 and facts["known"] > 0
    copied = "\n".join(messages[1]["content"] for messages in examples)
    assert not any(line in copied for line in russian[0].split("\n") if len(line) > 120)


def test_requests_hold_the_text_and_are_of_the_language(tmp_path):
    settings = CopySettings(text=["starter:ru/valid"], number=15, language="ru")
    examples, facts = copy_examples(settings, [], 1)
    assert facts == {"drawn": 30, "known": 0, "copied": 15}
    assert all(messages[1]["content"] in messages[0]["content"] for messages in examples)
    assert len({messages[0]["content"].replace(messages[1]["content"], "") for messages in examples}) > 2
    assert copy_examples(settings, [], 1)[0] == examples
    own = settings.model_copy(update={"prompts": ["COPY {text}"]})
    assert copy_examples(own, [], 1)[0][0][0]["content"].startswith("COPY ")


def test_bad_settings():
    with pytest.raises(LeptaError, match=r"no requests in 'xx', only in ru, en; write `copies\.prompts`"):
        copy_examples(CopySettings(text=["starter:ru/valid"], number=1, language="xx"), [], 1)
    with pytest.raises(LeptaError, match=r"all \d+ texts of starter:ru/valid are in starter:ru/valid"):
        copy_examples(CopySettings(text=["starter:ru/valid"], number=5), ["starter:ru/valid"], 1)
    with pytest.raises(ValueError, match=r"no \{text\} in"):
        CopySettings(prompts=["repeat"])
