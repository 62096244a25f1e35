"""How much text a token holds, and how much of a vocabulary a text uses."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lepta.cli import app
from lepta.core.errors import LeptaError
from lepta.text.sources import Document
from lepta.vocabulary import measure as module
from lepta.vocabulary.measure import measure, measure_sources
from lepta.vocabulary.tokens import Kind

COUNTS = ("characters", "utf8_bytes", "words", "tokens", "single_token_words")


def counts(measured):
    return [getattr(measured, name) for name in COUNTS]


def test_counts_of_a_text_counted_by_hand(old):
    text = "The world: мир 5"
    measured = measure(old, [text])
    ids = old.encode([text])[0]
    # one token each: " The" and " world", but not " мир", nor " 5": a space and a digit
    assert counts(measured) == [16, 19, 4, len(ids), 2]


def test_ratios(old):
    summary = measure(old, ["The world of the people"]).summary()
    assert summary == {
        "characters": 23,
        "tokens": 5,
        "characters_per_token": 23 / 5,
        "bytes_per_token": 23 / 5,
        "words_per_token": 1.0,
        "single_token_words": 1.0,
        "vocabulary_tokens": 49152 - 17,
        "unused_tokens": 49152 - 17 - 5,
        "unused_share": (49152 - 17 - 5) / (49152 - 17),
    }
    assert json.loads(json.dumps(summary)) == summary  # plain numbers


def test_every_occurrence_counts(old):
    measured = measure(old, ["world world", "world"])
    assert measured.single_token_words == 3
    assert measured.unused_tokens == measured.vocabulary_tokens - 2  # "world" and " world"


def test_special_tokens_in_the_text_are_tokens_but_use_nothing_of_the_vocabulary(old):
    special = next(old.data(i).decode() for i in range(old.size) if old.kinds[i] == Kind.SPECIAL)
    plain, marked = measure(old, ["world"]), measure(old, [f"world{special}"])
    assert marked.tokens == plain.tokens + 1
    assert (marked.vocabulary_tokens, marked.unused_tokens) == (plain.vocabulary_tokens, plain.unused_tokens)


def test_sources_are_measured_apart_and_add_up_however_they_come(old, russian, monkeypatch):
    texts = [(text, "even" if n % 2 == 0 else "odd") for n, text in enumerate([*russian, "The world"])]
    documents = [Document(text, source, str(n)) for n, (text, source) in enumerate(texts)]
    total, sources = measure_sources(old, iter(documents))
    assert list(sources) == ["even", "odd"]
    for source, part in sources.items():
        assert part == measure(old, [text for text, of in texts if of == source])
    assert counts(total) == [sum(column) for column in zip(*map(counts, sources.values()), strict=True)]
    assert total.unused_tokens == measure(old, [text for text, _ in texts]).unused_tokens
    assert total.unused_tokens < min(part.unused_tokens for part in sources.values())
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 1)
    assert measure_sources(old, documents) == (total, sources)


def test_extended_vocabulary_holds_more_russian_in_a_token_and_the_same_english(old, new, russian, english):
    before, after = measure(old, russian), measure(new, russian)
    assert after.summary()["characters_per_token"] > 1.8 * before.summary()["characters_per_token"]
    assert after.single_token_words > before.single_token_words
    before, after = measure(old, english), measure(new, english)
    assert counts(before) == counts(after)
    assert after.unused_tokens - before.unused_tokens == new.size - old.size  # English uses no new token


@pytest.mark.parametrize("texts", [["!!!"], []])
def test_text_without_words_has_ratios(old, texts):
    summary = measure(old, texts).summary()
    assert (summary["words_per_token"], summary["single_token_words"]) == (0, 0)


@pytest.fixture
def arguments(tiny_tokenizer, tiny_extended, write_lines, tmp_path):
    """`vocab measure` on two tokenizers and two sources, one of them with a name that rich would read as markup."""
    rows = [{"text": "Добрый день", "source": "[red]ru"}, {"text": "The world", "source": "en"}]
    text = write_lines("text.jsonl", [json.dumps(row) for row in rows])
    for name, tokenizer in (("old", tiny_tokenizer), ("new", tiny_extended)):
        (tmp_path / name).mkdir()
        tokenizer.save(tmp_path / name)
    tokenizers = [part for name in ("old", "new") for part in ("--tokenizer", str(tmp_path / name))]
    return ["vocab", "measure", *tokenizers, "--text", str(text)]


def test_command_prints_json(arguments, tiny_extended):
    rows = json.loads(CliRunner().invoke(app, [*arguments, "--json", "--by-source"]).stdout)
    assert [list(row["sources"]) for row in rows.values()] == [["[red]ru", "en"]] * 2
    vocabulary = tiny_extended.vocabulary()
    assert rows[arguments[5]]["sources"]["[red]ru"] == measure(vocabulary, ["Добрый день"]).summary()
    short = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert short[arguments[5]] == measure(vocabulary, ["Добрый день", "The world"]).summary()


@pytest.mark.parametrize(
    ("options", "begins"),
    [
        ([], [["old"], ["new"]]),
        (["--by-source"], [[f"{s}: {t}"] for s in ("[red]ru", "en", "all text") for t in ("old", "new")]),
    ],
)
def test_command_prints_a_row_for_each_tokenizer_and_source(arguments, options, begins):
    output = CliRunner().invoke(app, [*arguments, *options], env={"COLUMNS": "120"}).stdout
    below = output[output.rindex("──") :].splitlines()[1:]
    rows = [re.split(r"\s{2,}", line.strip()) for line in below if line.strip()]
    assert [row[: len(begins[0])] for row in rows] == begins


def test_several_texts_have_numbers_of_their_own(arguments, tiny_extended, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = Path("other.txt")
    other.write_text("Ещё один", encoding="utf-8")
    more = [*arguments, "--text", str(other)]
    row = json.loads(CliRunner().invoke(app, [*more, "--json"]).stdout)[arguments[5]]
    vocabulary = tiny_extended.vocabulary()
    texts = {arguments[-1]: ["Добрый день", "The world"], str(other): ["Ещё один"]}
    assert row.pop("sources") == {name: measure(vocabulary, documents).summary() for name, documents in texts.items()}
    assert row == measure(vocabulary, ["Добрый день", "The world", "Ещё один"]).summary()
    shown = CliRunner().invoke(app, more).stdout
    assert f"{other}: new" in shown and "all text: new" in shown


@pytest.mark.parametrize("documents", ["starter:ru/valid", ["starter:ru/valid"], ["текст", __file__]])
def test_names_of_sources_are_not_texts(documents, tiny_tokenizer):
    with pytest.raises(LeptaError, match=r"^measure: .*expected (several|its) texts"):
        measure(tiny_tokenizer, documents)


@pytest.mark.parametrize("text", ["", ".", "tests", "a/b", "end."])
def test_short_texts_are_no_names(text, tiny_tokenizer, tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    assert measure(tiny_tokenizer, [text]).characters == len(text)
