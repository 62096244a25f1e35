"""Files of settings and facts: what no reader may accept, and what must stay readable."""

from pathlib import Path

import pytest

from lepta.core.errors import LeptaError, explained, printable
from lepta.core.reading import is_there, parse_json, parse_yaml, read_bytes, read_json, read_utf8
from lepta.text.locate import locate

NINE = "[{0},{0},{0},{0},{0},{0},{0},{0},{0}]"
LEVELS = [f"{new}: &{new} {NINE.format('*' + old)}" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
EXPONENTIAL = "\n".join([f"a: &a {NINE.format(1)}", *LEVELS])


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "1" * 10_000, r'"\ud800"', b'"\xff"', "", '{"a": 1', "{'a': 1}", '{"a": 01}', "[1,]"],
)
def test_json_that_is_none_is_one_line_that_names_the_file_and_the_remedy(text: str | bytes) -> None:
    with pytest.raises(LeptaError, match=r"^model/config\.json: not JSON \(.+\); .*download it again$"):
        parse_json(text, "model/config.json")


def test_a_text_that_can_be_no_path_is_no_place(tmp_path):
    for text in ("~nobody-of-this-name/model", "x" * 5000, "a\0b", str(tmp_path / "missing")):
        assert not is_there(text)
        with pytest.raises(LeptaError, match="no such file or folder"):
            locate(text, [])
    assert is_there(tmp_path)
    with pytest.raises(LeptaError, match=r"^'': an empty name of a model or tokenizer"):
        locate("", [])


def test_json_of_real_configs_is_read() -> None:
    assert parse_json('{"time_step_limit": [0.0, Infinity], "n": 1e30, "s": "\\u0000"}', "x")["s"] == "\0"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "line 2: not YAML .*'a' is there twice"),
        ("[" * 5_000, "not YAML"),
        ("a: 2026-13-45", "not YAML"),
        ("a: " + "9" * 10_000, "not YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not YAML"),
        ("? [1, 2]\n: 3", "not YAML"),
        ("a: &a [*a]", "aliases"),
        (EXPONENTIAL, "aliases"),
        (b"a: \xff", "not YAML"),
        ("a: \x1b", "not YAML"),
        (r'a: ["\ud800"]', "line 1: not YAML .*half of a UTF-16 pair"),
    ],
)
def test_yaml_that_is_none_is_one_line_that_names_the_file(text: str | bytes, words: str) -> None:
    with pytest.raises(LeptaError, match=rf"^recipe\.yaml.*{words}"):
        parse_yaml(text, "recipe.yaml")


def test_yaml_keeps_aliases_and_merges() -> None:
    read = parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: *a", "x")
    assert read["b"] == {"x": 3, "y": 2} and read["c"] == read["a"]
    assert parse_yaml(r'["\ud83d\ude00"]', "x") == ["😀"]  # as JSON writes it, which is YAML


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for name, words in ((".", "cannot be read"), ("a", "no such file"), ("x\0", "cannot be read")):
        with pytest.raises(LeptaError, match=words):
            read_json(tmp_path / name)
    (tmp_path / "large").write_bytes(b"1" * 11)
    with pytest.raises(LeptaError, match="larger"):
        read_bytes(tmp_path / "large", largest=10)
    (tmp_path / "koi8").write_bytes("привет".encode("koi8-r"))
    with pytest.raises(LeptaError, match="byte 0 is not UTF-8"):
        read_utf8(tmp_path / "koi8")


def test_whatever_a_library_raises_is_one_line() -> None:
    from tokenizers import Tokenizer

    message = r"^a\.json: no tokenizer \(.*\); download it again$"
    with pytest.raises(LeptaError, match=message), explained("a.json", "no tokenizer", "download it again"):
        Tokenizer.from_str('{"version": "1.0"}')
    with pytest.raises(LeptaError, match=r"^a: b \(KeyError\); c$"), explained("a", "b", "c"):
        raise KeyError
    with pytest.raises(KeyboardInterrupt), explained("a", "b", "c"):
        raise KeyboardInterrupt


def test_escape_sequences_become_visible_and_text_stays_as_it_is() -> None:
    assert printable("a\x1b[2Jb\x9b31m\u202ec\ud800") == r"a\x1b[2Jb\x9b31m\u202ec\ud800"
    assert printable("Привет,\n\tмир 👨‍👩‍👧 קָמָץ") == "Привет,\n\tмир 👨‍👩‍👧 קָמָץ"


def test_a_message_shows_no_more_of_a_value_than_can_be_read() -> None:
    message = str(LeptaError(f"a.json: x is {'1 ' * 10_000}; download it again"))
    assert message.startswith("a.json: x is 1") and message.endswith("; download it again") and len(message) < 2_000
