"""The page that shows tokenizers side by side."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lepta.cli import app
from lepta.core.errors import LeptaError
from lepta.report.compare import choose_examples, excerpt, short_names, write_comparison
from lepta.text.sources import Document, read_labelled
from lepta.vocabulary.measure import parts_of, pieces

EXAMPLES = 3
TEXTS = {
    "prose": ["Добрый день, мир!\n\n\tЁжик сказал: «Здравствуй» 👩‍🚀\u00a0<|im_end|>", "Вот и лето прошло."],
    "<b>tags</b> & co": ["<script>alert('мир')</script> & </div>"],
}


@pytest.fixture(scope="module")
def place(tiny_tokenizer, tiny_extended, tmp_path_factory):
    """Folder with two tokenizers, `old` and `new`, and text of two sources."""
    folder = tmp_path_factory.mktemp("compare")
    for name, tokenizer in (("old", tiny_tokenizer), ("new", tiny_extended)):
        (folder / name).mkdir()
        tokenizer.save(folder / name)
    rows = [json.dumps({"text": text, "source": source}) for source, texts in TEXTS.items() for text in texts]
    (folder / "text.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def compare(place, output, **settings):
    return write_comparison([str(place / "old"), str(place / "new")], [str(place / "text.jsonl")], output, **settings)


@pytest.fixture(scope="module")
def page(place):
    """The page of all examples."""
    compare(place, place / "page.html", examples=EXAMPLES)
    return (place / "page.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Keeps ids and texts of the coloured pieces, card by card, and all tags and attributes."""

    def __init__(self, page):
        super().__init__()
        self.cards, self.tags, self.attributes, self._open = [], set(), {}, []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        self.attributes |= attributes
        if tag in ("meta", "br"):
            return
        self._open.append(attributes.get("class") or "")
        if attributes.get("class") == "pieces":
            self.cards.append([])
        elif self._open[-2:-1] == ["pieces"]:
            self.cards[-1].append([int(attributes["title"].removeprefix("id ")), ""])

    def handle_endtag(self, tag):
        self._open.pop()

    def handle_data(self, data):
        if "pieces" in self._open and data.strip("\n"):
            self.cards[-1][-1][1] += data


def test_page_shows_each_example_cut_by_each_tokenizer(page, place, tiny_tokenizer, tiny_extended):
    examples = [text for _, text in choose_examples(list(read_labelled([str(place / "text.jsonl")])), EXAMPLES)]
    assert sorted(examples) == sorted(text.strip() for texts in TEXTS.values() for text in texts)
    vocabularies = [tiny_tokenizer.vocabulary(), tiny_extended.vocabulary()]
    expected = [vocabulary.encode([text])[0] for text in examples for vocabulary in vocabularies]
    cards = Reader(page).cards
    assert [[token_id for token_id, _ in card] for card in cards] == expected
    counts = [int(n) for n in re.findall(r"<small>(\d+) tokens</small>", page)]
    assert counts == [len(ids) for ids in expected]
    # the new vocabulary holds whole letters: nothing but letters, marks and the spaces between tags
    summer = next(n for n, text in enumerate(examples) if "лето" in text)
    assert "".join(text for _, text in cards[2 * summer + 1]) == "Вот и лето прошло."


def test_page_fetches_and_runs_nothing(page):
    read = Reader(page)
    assert not read.tags & {"script", "link", "img", "iframe", "object"}
    assert not read.attributes.keys() & {"src", "href", "onload"}
    assert "url(" not in page and "@import" not in page and "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page
    assert "&lt;b&gt;tags&lt;/b&gt; &amp; co" in page


def test_bars_are_in_proportion(page):
    widths = [float(width) for width in re.findall(r"style=\"width: ([\d.]+)%", page)]
    values = [float(value) for value in re.findall(r"</span></span>([\d.]+)</div>", page)]
    assert len(values) == 2 * len(TEXTS) and max(widths) == 100
    for width, value in zip(widths, values, strict=True):
        assert width == pytest.approx(100 * value / max(values), abs=0.5)


def test_same_bytes_every_time_and_nothing_beside_the_page(page, place, tmp_path):
    compare(place, tmp_path / "deep" / "page.html", examples=EXAMPLES)
    assert (tmp_path / "deep" / "page.html").read_text(encoding="utf-8") == page
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["page.html"]


def test_an_existing_page_is_replaced_only_by_force(place, tmp_path):
    output = tmp_path / "page.html"
    output.write_text("mine")
    with pytest.raises(LeptaError, match="exists already"):
        compare(place, output)
    with pytest.raises(LeptaError, match="no such file"):
        write_comparison([str(place / "absent")], [str(place / "text.jsonl")], output, force=True)
    assert output.read_text() == "mine"
    compare(place, output, examples=0, force=True)
    page = output.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "Examples" not in page


def test_a_page_that_cannot_be_written_leaves_nothing(place, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(LeptaError, match="exists already"):
        compare(place, tmp_path / "taken", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_command(place, tmp_path):
    output = tmp_path / "page.html"
    tokenizers = ["--tokenizer", str(place / "old"), "--tokenizer", str(place / "new")]
    arguments = ["vocab", "compare", *tokenizers, "--text", str(place / "text.jsonl"), "--output", str(output)]
    facts = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert Path(facts["output"]).is_file()
    old, new = facts["tokenizers"].values()
    assert list(new["sources"]) == list(TEXTS)
    assert new["tokens"] < old["tokens"] and new["characters"] == old["characters"]
    assert isinstance(CliRunner().invoke(app, arguments).exception, LeptaError)
    assert str(output) in CliRunner().invoke(app, [*arguments, "--force"], env={"COLUMNS": "300"}).stdout


def test_parts_of_a_token():
    assert parts_of(b"\xd0") == [("hex", "D0")]
    assert parts_of(b" \xd0") == [("space", " "), ("hex", "D0")]
    assert parts_of("й\n\n\tx\u00a0".encode()) == [
        *(("text", "й"), ("newline", "\n"), ("newline", "\n"), ("tab", "\t"), ("text", "x"), ("code", "U+00A0"))
    ]
    assert parts_of(b"\x91\xd0\xb8\xe2\x82") == [("hex", "91"), ("text", "и"), ("hex", "E2 82")]


def test_parts_hold_every_byte_of_the_text(tiny_extended, russian):
    vocabulary = tiny_extended.vocabulary()
    text = russian[0] + TEXTS["prose"][0]
    read = {"hex": bytes.fromhex, "code": lambda shown: chr(int(shown[2:], 16)).encode()}
    cut = pieces(vocabulary, text)
    data = [b"".join(read.get(look, str.encode)(shown) for look, shown in piece["parts"]) for piece in cut]
    assert b"".join(data).decode() == text
    assert [vocabulary.data(piece["id"]) for piece in cut if piece["special"]] == [b"<|im_end|>"]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, []),
        (1, ["large"]),
        (2, ["large", "small"]),
        (4, ["large", "large", "small", "single"]),
        (99, ["large"] * 5 + ["small"] * 2 + ["single"]),
    ],
)
def test_examples_are_spread_over_sources_and_documents(number, expected):
    sizes = {"single": [1], "large": [90, 91, 92, 93, 94], "small": [10, 11]}
    documents = [Document("я" * size, source, "") for source, each in sizes.items() for size in each]
    chosen = choose_examples(documents, number)
    assert [source for source, _ in chosen] == expected
    assert len(set(chosen)) == len(chosen)
    if number == 4:  # two of five documents: neither the first two nor the last two
        assert [len(text) for _, text in chosen[:2]] == [91, 93]


def test_excerpt_is_of_the_middle_and_of_whole_lines_and_words():
    lines = [f"Строка номер {n} этого текста." for n in range(100)]
    cut = excerpt("\n".join(lines))
    assert cut in "\n".join(lines)
    assert 250 < len(cut) <= 320
    assert cut.split("\n")[0] in lines[35:55]
    assert set(cut.split()) <= set(" ".join(lines).split())
    assert len(excerpt("ж" * 1000)) == 320  # no place to cut at
    assert excerpt(" короткий ") == "короткий"


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["runs/a/vocabulary", "runs/b/vocabulary/"], ["a/vocabulary", "b/vocabulary"]),
        (["package:x/File.gguf", "new"], ["File.gguf", "new"]),
        (["a", "a/"], ["a", "a/"]),
    ],
)
def test_short_names(names, short):
    assert short_names(names) == short
