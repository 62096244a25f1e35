"""Minimal pairs, instructions with checkable rules, and answers side by side."""

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lepta.calibration.calibrate import Place
from lepta.calibration.settings import AnswerSettings
from lepta.cli import app
from lepta.core.errors import LeptaError
from lepta.core.intervals import Share, wilson
from lepta.darumeru.aggregate import Estimate
from lepta.evaluation.instructions import Rules, instruction_following, kept_rules, read_instructions
from lepta.evaluation.minimal_pairs import ALL, Pair, minimal_pairs, read_pairs
from lepta.evaluation.pairwise import compare_models, read_verdict
from lepta.inference.bits import score_text
from lepta.models.load import load_model, load_tokenizer
from lepta.report.darumeru import _numbers
from lepta.report.page import signed

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


@pytest.fixture(scope="module")
def chat(tiny_model_folder, tiny_tokenizer):
    folder = tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer, context=4096)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return str(folder)


def test_wilson_is_the_published_interval():
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Brown, Cai and DasGupta 2001
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_a_difference_that_rounds_to_zero_has_no_minus():
    estimate = Estimate(-0.0004, -0.0001, 0.25)
    assert _numbers(estimate, sign="+") == ("+0.000", "+0.000 to +0.250") and _numbers(estimate)[0] == "0.000"
    assert [signed(value) for value in (-0.0004, -0.0006, 0.1)] == ["+0.000", "-0.001", "+0.100"]


def test_wilson_stays_between_0_and_1():
    for number in range(1, 200):
        none, all_right = wilson(0.0, number), wilson(1.0, number)
        assert none[0] >= 0 and all_right[1] <= 1, number
        assert f"{none[0]:.3f}" == "0.000"
    assert Share.of(2.5, 5).share == 0.5


def test_the_likelier_sentence_is_that_of_fewer_bits(chat):
    pairs = read_pairs("ru")
    assert len(pairs) >= 60 and min(len([p for p in pairs if p.phenomenon == q.phenomenon]) for q in pairs) >= 8
    assert len({pair.good for pair in pairs}) == len(pairs)
    model, tokenizer = load_model(Path(chat)), load_tokenizer(Path(chat))
    expected = {}
    for pair in pairs[::8]:
        bits = [score_text(model, tokenizer, [text]).bits for text in (pair.good, pair.bad)]
        expected[pair.phenomenon] = bits[0] < bits[1]
    found = minimal_pairs(chat, pairs[::8])
    assert {name: share.right == 1 for name, share in found.items() if name != ALL} == expected
    assert found[ALL].right == sum(expected.values()) and found[ALL].number == len(expected)
    assert list(found)[-1] == ALL
    assert minimal_pairs(chat, [Pair("А.", "А. ", "x"), Pair("А. ", "А.", "x")])["x"].right == 1


@pytest.mark.parametrize(
    "row", ['{"good": "А", "bad": "А", "phenomenon": "x"}', '{"good": "А", "phenomenon": "x"}', '{"good": 1}']
)
def test_a_row_that_is_no_pair_is_named(row, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"good": "А", "bad": "Б", "phenomenon": "x"}\n' + row + "\n")
    with pytest.raises(LeptaError, match=r"p.jsonl.*2: no pair; expected"):
        read_pairs(tmp_path / "p.jsonl")
    with pytest.raises(
        LeptaError, match="nope: no such file; expected a file of pairs, or one that comes with LEPTA: ru"
    ):
        read_pairs("nope")


@pytest.mark.parametrize(
    ("rules", "good", "bad"),
    [
        ({"words": {"exactly": 3}}, "Раз, два-три четыре!", "раз два"),
        ({"words": {"at_least": 2, "at_most": 3}}, "раз два", "раз два три четыре"),
        ({"characters": {"at_most": 5}}, "  абвгд \n", "абвгде"),
        ({"sentences": {"exactly": 2}}, "Раз. Два?!", "Раз, два."),
        ({"sentences": {"exactly": 1}}, "Без точки", "Раз… Два."),
        ({"paragraphs": {"exactly": 2}}, "Раз.\n\nДва.", "Раз.\nДва."),
        ({"points": {"exactly": 2}}, "Вот:\n- раз\n* два", "- раз\n- два\n3. три"),
        ({"points": {"exactly": 2}}, "1. раз\n2) два", "раз, два"),
        ({"contains": ["Память"]}, "о ПАМЯТИ и памяти: память", "сон"),
        ({"lacks": ["кот"]}, "пёс", "Котёнок"),
        ({"starts": "дело в том"}, "Дело в том, что", "В том дело"),
        ({"ends": "Твой друг"}, "Пока! твой друг", "Твой друг."),
        ({"script": "Cyrillic"}, "Привет, 123!", "Hello, привет"),
        ({"script": "Greek"}, "Καλημέρα", "Доброе утро"),
        ({"case": "upper"}, "ПАРИЖ 1", "Париж"),
        ({"case": "lower"}, "весна", "Весна"),
        ({"format": "json"}, '```json\n{"а": 1}\n```', 'Вот: {"а": 1}'),
    ],
)
def test_rules_are_checked(rules, good, bad):
    rules = Rules.model_validate(rules)
    assert all(kept_rules(rules, good).values()) and not any(kept_rules(rules, bad).values())
    assert not any(kept_rules(rules, " ").values())


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("instructions: []", "instructions"),
        ("instructions: [{prompt: Раз, rules: {}}]", "give at least one rule"),
        ("instructions: [{prompt: Раз, rules: {words: {}}}]", "give exactly, at_least or at_most"),
        ("instructions: [{prompt: Раз, rules: {word: {exactly: 1}}}]", "words"),
        ("instructions: [{prompt: Раз, rules: {script: Klingon}}]", "unknown script 'Klingon'"),
        ("instructions: [{prompt: Раз, rules: {words: , format: json}}]", "words says nothing"),
        ("instructions: [{prompt: Раз, rules: {words: {exactly: }}}]", "give exactly, at_least or at_most"),
        ("instructions: [{prompt: Раз, rules: {words: {at_least: 3, at_most: 2}}}]", "at_least 3 is above at_most 2"),
        ("instructions: [{prompt: Раз, rules: {words: {exactly: 3, at_most: 2}}}]", "exactly stands alone"),
        ("instructions: [{prompt: Раз, rules: {starts: ''}}]", "starts"),
        ("[1]", "expected `instructions`"),
    ],
)
def test_a_file_of_instructions_that_is_wrong_is_one_line(content, match, tmp_path):
    (tmp_path / "i.yaml").write_text(content)
    with pytest.raises(LeptaError, match=match):
        read_instructions(tmp_path / "i.yaml")


@pytest.mark.parametrize("place", ["", ".", "no/ru"])
def test_a_place_that_is_no_file_is_told_with_the_names_that_are_known(place):
    for read in (read_instructions, read_pairs):
        with pytest.raises(LeptaError, match=rf"^{place}: no such file; expected a file of .* comes with LEPTA: ru"):
            read(place)


@pytest.mark.parametrize("answer", ["[" * 100_000, "-" * 100_000, "- " * 50_000, "1" * 10_000, "\n" * 99_999 + "x"])
def test_no_answer_stops_the_check_or_takes_long(answer):
    count = {"at_least": 1_000}
    names = ("words", "sentences", "paragraphs", "points")
    rules = Rules.model_validate(dict.fromkeys(names, count) | {"format": "json", "script": "Cyrillic"})
    started = time.process_time()
    assert not any(kept_rules(rules, answer).values())
    assert time.process_time() - started < 2


def test_a_model_is_asked_and_its_answers_are_counted(chat):
    instructions = read_instructions("ru")
    assert len(instructions) >= 20 and {name for one in instructions for name in one.rules.model_fields_set} == set(
        Rules.model_fields
    )
    found = instruction_following(Place(chat), instructions[:4], AnswerSettings(max_tokens=12))
    assert [row["prompt"] for row in found.answers] == [one.prompt for one in instructions[:4]]
    for row, one in zip(found.answers, instructions, strict=False):
        assert row["kept"] == kept_rules(one.rules, row["answer"])
    assert found.all_rules.right == sum(all(row["kept"].values()) for row in found.answers)
    assert found.rules["points"].number == 2


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ('{"better": 2}', 2),
        ("Better: **1**", 1),
        ("<think>better: 1</think>better = 2", 2),
        ("better 1, better 2", None),
    ],
)
def test_verdicts_are_read(reply, verdict):
    assert read_verdict(reply) == verdict


def test_both_orders_are_judged(chat, tmp_path, write_lines):
    rows = [json.dumps({"prompt": f"Скажи {n}. {{first}}", "answer": "x"}, ensure_ascii=False) for n in range(6)]
    prompts = write_lines("p.jsonl", rows)
    settings = AnswerSettings(max_tokens=8)
    same = compare_models(Place(chat), Place(chat), Place(chat), [str(prompts)], settings, limit=5)
    # Of equal answers the judge sees the same text twice, so the place decides, and nobody wins.
    assert (same.first, same.second, same.undecided, same.share.share) == (0, 0, 5, 0.5)
    assert same.agreement.right == 0 and same.unreadable == 0
    assert all(row["verdicts"][0] + row["verdicts"][1] == 3 for row in same.rows)


def test_the_commands(chat, write_lines):
    def run(*arguments):
        done = CliRunner().invoke(app, ["evaluate", *arguments, "--json"], catch_exceptions=False)
        assert done.exit_code == 0
        return json.loads(done.stdout)

    few = write_lines("few.jsonl", ['{"good": "Дом стоит.", "bad": "Дом стоят.", "phenomenon": "x"}'])
    assert run("pairs", chat, "--data", str(few))[chat]["all"]["number"] == 1
    prompts = write_lines("p.jsonl", ['{"prompt": "Раз?", "answer": "Да"}', '{"prompt": "Два?", "answer": "Да"}'])
    compared = run("compare", chat, chat, "--prompts", str(prompts), "--judge", chat, "--max-tokens", "4")
    assert compared["undecided"] == 2 and compared["share"]["share"] == 0.5
    one = write_lines("i.yaml", ["instructions: [{prompt: Раз, rules: {words: {at_most: 99}}}]"])
    followed = run("instructions", chat, "--data", str(one), "--max-tokens", "4")[chat]
    assert followed["all_rules"]["number"] == 1 and set(followed["rules"]) == {"words"}
    shown = CliRunner().invoke(app, ["evaluate", "pairs", chat, "--data", str(few)]).stdout
    assert "Wilson" in shown and "all" in shown
    with pytest.raises(LeptaError, match="compare: give either --judge or --judge-server"):
        CliRunner().invoke(app, ["evaluate", "compare", chat, chat, "--prompts", "p"], catch_exceptions=False)
