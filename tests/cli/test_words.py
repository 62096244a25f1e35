"""Facts of results as people read them."""

import string

import pytest

from lepta.cli.words import FORMS, counted, line, percent
from lepta.core.shipped import shipped_data


@pytest.mark.parametrize(("number", "text"), [(0, "0 tokens"), (1, "1 token"), (1200, "1,200 tokens")])
def test_what_is_counted_is_one_or_several(number, text):
    assert counted(number, "token") == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (0.004, "0.4%"), (0.5161, "52%"), (0.9964, "99.6%"), (1, "100%")]
)
def test_a_share_that_is_not_all_does_not_look_like_all_or_nothing(share, text):
    assert percent(share) == text


def test_names_of_facts_are_words_with_units():
    assert line("trained", "passes", [0.516, 0.487]) == (
        "text used: 0.52 passes of the target text, 0.49 passes of the source text"
    )
    assert line("trained", "passes", [0.516]) == "text used: 0.52 passes of the target text"
    assert line("trained", "full", 0.94) == "blocks filled: 94%"
    assert line("trained", "warmup_steps", 1) == "warm-up: 1 step"
    assert line("trained", "sweep", {"0.1": None, "0.01": 1.5}) == (
        "learning rates tried: 0.1: diverged or forgot, 0.01: 1.500 bits per byte"
    )
    assert line("vocabulary", "kept", 4000) == "kept of the original: 4,000 tokens"
    found = {"rows": 6, "exact": 4, "mixed": 2, "empty": 0, "mean_fan_in": 3.66, "max_fan_in": 7}
    assert line("rows", "transfer", found) == (
        "rows of the result: 4 copied, 2 the mean of 3.7 old rows on average (7 at most)"
    )
    assert line("cost", "minutes", 90) == "time: about 1.5 h"
    assert line("cost", "memory_gib", 1.5) == "memory, about: 1.5 GiB"
    assert line("trained", "merged_error", 0.00123) == "error of the written weights: 0.0012 of the logits"
    assert line("calibrated", "tokens", 1200) == "trained on: 1,200 tokens", "what was trained is in both"
    assert line("rows", "not_there", [1.25, "a"]) == line("", "not_there", [1.25, "a"]) == "not there: 1.25; a"


def test_the_share_of_new_tokens_is_told_of_what_the_model_writes_not_of_the_text():
    measured = {"step": 9, "tokens": 4208, "target_bits_per_byte": 1.69, "new_token_share": 0.016}
    assert line("trained", "held_out", [measured]) == (
        "held-out text: step 9 (4,208 tokens), target 1.690 bits per byte, 1.6% of a few tokens that it wrote are new"
    )


def test_tokens_without_a_passage_are_told_of_the_passages_and_with_the_remedy():
    assert line("trained", "passages", 25) == "learned from: 25 passages"
    assert line("trained", "whole_text", False) == (
        "text used: a part, as many tokens as were asked for (more --tokens reach more new tokens)"
    )
    assert "give more text" in line("trained", "whole_text", True)
    assert line("trained", "tokens_absent", 339) == "of which in none of these passages, so not learned: 339 new tokens"


def test_one_matrix_that_is_kept_though_two_are_better_is_explained():
    assert line("trained", "kept", "fitted, 60% to the text") == "rows kept: fitted, 60% to the text"
    said = line("trained", "kept", "one matrix, pull 0.25")
    assert said.startswith("rows kept: one matrix, pull 0.25 (the best of these: ") and "--untie" in said


def test_each_line_has_one_value_in_a_form_that_there_is():
    counted_things = {"token", "new token", "step", "conversation", "prompt", "answer", "grade", "example", "passage"}
    headings = ("calibration_parts", "repair_steps")
    for kind, words in shipped_data("words.yaml").items():
        for text in words.values() if kind not in headings else ():
            [form] = [form for _, name, form, _ in string.Formatter().parse(text) if name is not None]
            assert form in {*FORMS, *counted_things, ",", ".2g", ".6g"}, text
