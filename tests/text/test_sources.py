"""Text in."""

import gzip
import importlib.util
import json
import os

import pytest

from lepta.core.errors import LeptaError
from lepta.text import sources as corpus
from lepta.text.sources import (
    dialogue_file,
    is_word_list,
    read_documents,
    read_labelled,
    text_files,
    word_frequencies,
)


def row(text):
    return json.dumps({"text": text}, ensure_ascii=False)


def read(*paths):
    return list(read_documents(map(str, paths)))


def test_text_file_is_one_document(write_lines):
    assert read(write_lines("a.txt", ["Первая строка", "", "вторая"])) == ["Первая строка\n\nвторая\n"]


def test_jsonl_holds_a_document_a_line_and_empty_lines_do_not_count(write_lines):
    assert read(write_lines("a.jsonl", [row("раз"), "", row("два\nтри"), row("  ")])) == ["раз", "два\nтри"]


def test_gzipped_jsonl_reads_as_the_plain_one(write_lines, tmp_path):
    plain = write_lines("a.jsonl", [row("раз"), row("два")])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert read(tmp_path / "b.jsonl.gz") == read(plain) == ["раз", "два"]


def test_folder_is_read_whole_in_sorted_order(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("z.txt", "b/y.txt", "a.txt", "readme.md", "b/x.jsonl"):
        (tmp_path / name).write_text(row(name) if name.endswith("jsonl") else name)
    assert read(tmp_path) == ["a.txt", "b/x.jsonl", "b/y.txt", "z.txt"]


def labels(*paths):
    return [(document.text, document.source, document.name) for document in read_labelled(map(str, paths))]


def test_a_folder_that_vanishes_while_it_is_read_is_passed_over(tmp_path, monkeypatch):
    """As those of processes do, in /proc."""
    for name in ("gone/a.txt", "kept/b.txt", ".hidden/c.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("Текст.")
    scan = os.scandir

    def vanishing(place):
        if str(place).endswith("gone"):
            raise FileNotFoundError(2, "No such file or directory", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert text_files(str(tmp_path)) == [tmp_path / "kept" / "b.txt"]


def test_rows_name_their_source_and_work(write_lines):
    rows = [
        {"text": "раз", "source": "news", "doc": "Известия 7"},
        {"text": "два", "source": 5, "doc": 6},
        {"text": "три"},
    ]
    path = write_lines("a.jsonl", ["", *(json.dumps(row) for row in rows)])
    assert labels(path) == [
        ("раз", "news", "Известия 7"),
        ("два", "5", "6"),
        ("три", "a.jsonl", "a.jsonl#4"),
    ]


def test_text_files_of_different_folders_are_different_sources(tmp_path):
    for name in ("news/a.txt", "news/b.txt", "novels/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = labels(tmp_path)
    assert [text for text, _, _ in found] == ["news/a.txt", "news/b.txt", "novels/a.txt"]
    assert found[0][1] == found[1][1] != found[2][1]
    assert found[0][2] != found[1][2]


@pytest.fixture
def short_pieces(monkeypatch):
    monkeypatch.setattr(corpus, "LONGEST_PIECE", 1_000)


@pytest.mark.usefixtures("short_pieces")
def test_long_text_file_comes_in_pieces_that_end_with_a_line_and_join_to_the_file(write_lines):
    path = write_lines("a.txt", [f"Строка {n}: {'слово ' * (n % 30)}" for n in range(200)])
    documents = labels(path)
    assert len(documents) > 10
    assert "".join(text for text, _, _ in documents) == path.read_text(encoding="utf-8")
    assert all(text.endswith("\n") for text, _, _ in documents)
    assert all(len(text.encode()) < 1_000 + 400 for text, _, _ in documents)
    assert len({(source, name) for _, source, name in documents}) == 1


@pytest.mark.usefixtures("short_pieces")
def test_text_file_of_one_long_line_is_one_piece(write_lines):
    assert read(write_lines("a.txt", ["слово " * 1_000])) == ["слово " * 1_000 + "\n"]


@pytest.mark.usefixtures("short_pieces")
@pytest.mark.parametrize("before", [0, 3, 2_500])
def test_invalid_utf8_in_a_later_piece_names_the_byte_in_the_file(tmp_path, before):
    head = "".join(f"строка {n}\n" for n in range(before // 10)).encode()
    (tmp_path / "a.txt").write_bytes(head + b"ab\xff\n")
    with pytest.raises(LeptaError, match=rf"a\.txt: byte {len(head) + 2} is not UTF-8"):
        read(tmp_path / "a.txt")


def test_sources_are_read_in_the_order_given(write_lines):
    a, b = write_lines("a.txt", ["a"]), write_lines("b.txt", ["b"])
    assert read(b, a, b) == ["b\n", "a\n", "b\n"]


@pytest.mark.parametrize("source", ["starter:ru/train", "starter:ru/valid", "starter:en/train", "starter:en/valid"])
def test_starter_corpus_is_there_and_clean(source):
    documents = list(read_documents([source]))
    assert len(documents) == len(text_files(source)) == len(set(documents))
    assert all("\ufffd" not in document and "\r" not in document for document in documents)


def test_starter_training_and_held_out_documents_share_no_paragraph():
    for language in ("ru", "en"):
        parts = [
            {line for document in read_documents([f"starter:{language}/{part}"]) for line in document.splitlines()}
            for part in ("train", "valid")
        ]
        assert {line for line in parts[0] & parts[1] if len(line) > 40} == set()


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_invalid_utf8_names_the_byte(tmp_path, name):
    (tmp_path / name).write_bytes("текст ".encode() + "привет".encode("cp1251"))
    with pytest.raises(LeptaError, match=rf"{name}.*byte 11 is not UTF-8.*iconv"):
        read(tmp_path / name)


def test_binary_data_and_utf16_are_called_so(tmp_path):
    (tmp_path / "a.txt").write_bytes("текст\n".encode("utf-16"))
    with pytest.raises(LeptaError, match=r"a\.txt: byte 0 is not UTF-8, and some bytes are 0: binary data, or UTF-16"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a"', "not JSON"),
        ('"text"', "not an object"),
        ('{"body": "a"}', "no text field"),
        ('{"text": 5}', "no text field"),
    ],
)
def test_bad_json_names_file_and_line(write_lines, line, words):
    path = write_lines("a.jsonl", [row("раз"), "", line])
    with pytest.raises(LeptaError, match=rf"a\.jsonl, line 3: {words}"):
        read(path)


def test_invalid_utf8_in_jsonl_names_the_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(row("раз").encode() + b'\n{"text": "\xff"}\n')
    with pytest.raises(LeptaError, match=r"a\.jsonl, line 2: byte 10"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("content", ["", " \n\n "])
def test_empty_corpus_raises(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(LeptaError, match=r"a\.txt: no text"):
        read(tmp_path / "a.txt")


def test_no_source_and_folder_without_text_raise(tmp_path):
    with pytest.raises(LeptaError, match="corpus: no text"):
        read()
    (tmp_path / "readme.md").write_text("no corpus")
    with pytest.raises(LeptaError, match=r"no text here; expected files ending in \.txt"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["a.md", "a.json", "a", "a.txt.gz"])
def test_unknown_suffix_raises(tmp_path, name):
    (tmp_path / name).write_text("text")
    with pytest.raises(LeptaError, match="unknown type of text file"):
        read(tmp_path / name)


@pytest.mark.parametrize("source", ["absent.txt", "starter:xx/train", "starter:ru/test"])
def test_absent_source_raises_naming_it(source):
    with pytest.raises(LeptaError, match=source):
        list(read_documents([source]))


def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    for source in ("", "?field=text"):
        with pytest.raises(LeptaError, match="an empty text source; name a file or folder"):
            read(source)
    assert read(".") == ["text"]


@pytest.mark.parametrize("place", ["/etc", "../darumeru", "ru/../../darumeru"])
def test_starter_reads_nothing_outside_the_starter_corpus(place):
    with pytest.raises(LeptaError, match=f"starter:{place}: not in the starter corpus"):
        text_files(f"starter:{place}")
    with pytest.raises(LeptaError, match=f"starter:{place}: not in the starter corpus"):
        dialogue_file(f"starter:{place}")


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_truncated_gzip_raises(tmp_path, keep):
    data = gzip.compress("".join(row(str(n)) + "\n" for n in range(500)).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(LeptaError, match=r"a\.jsonl\.gz: not a whole gzip file"):
        read(tmp_path / "a.jsonl.gz")


def test_damaged_gzip_raises(tmp_path):
    """Bytes changed in the middle: the stream itself is wrong, not only its end."""
    data = bytearray(gzip.compress("".join(row(str(n)) + "\n" for n in range(500)).encode()))
    data[20:60] = bytes(40)
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    with pytest.raises(LeptaError, match=r"a\.jsonl\.gz: not a whole gzip file"):
        read(tmp_path / "a.jsonl.gz")


def test_text_that_claims_to_be_gzip_raises(tmp_path):
    (tmp_path / "a.jsonl.gz").write_text(row("text"))
    with pytest.raises(LeptaError, match="not a whole gzip file"):
        read(tmp_path / "a.jsonl.gz")


def test_word_list_is_told_from_text():
    assert is_word_list("wordfreq:ru")
    assert not is_word_list("starter:ru/train")


def test_word_frequencies_are_shares_in_falling_order():
    pytest.importorskip("wordfreq")
    shares = list(word_frequencies("wordfreq:ru").items())
    assert shares[0][0] in {"в", "и"}
    assert [share for _, share in shares] == sorted((share for _, share in shares), reverse=True)
    assert 0.9 < sum(share for _, share in shares) <= 1.05


def test_a_language_that_wordfreq_needs_another_package_for_is_one_line():
    pytest.importorskip("wordfreq")
    if importlib.util.find_spec("jieba"):
        pytest.skip("jieba is installed here, so nothing is missing")
    with pytest.raises(LeptaError, match=r"wordfreq:zh: wordfreq needs the package jieba.*pip install jieba"):
        word_frequencies("wordfreq:zh")


@pytest.mark.parametrize("language", ["zzz", "russian", "not a language"])
def test_unknown_language_of_a_word_list_raises(language):
    pytest.importorskip("wordfreq")
    with pytest.raises(LeptaError, match=f"wordfreq:{language}: .*no language '{language}'; it has .*ru"):
        word_frequencies(f"wordfreq:{language}")


@pytest.mark.parametrize("language", ["be", "tlh"])
def test_word_list_of_another_language_is_never_given_instead(language):
    """Asked for Belarusian, wordfreq gives Russian, its nearest match; for Klingon it gives English."""
    pytest.importorskip("wordfreq")
    with pytest.raises(LeptaError, match=f"no language '{language}'"):
        word_frequencies(f"wordfreq:{language}")


def test_absent_dialogue_file_raises(tmp_path):
    with pytest.raises(LeptaError, match="no such file"):
        dialogue_file(str(tmp_path / "absent.jsonl"))


def test_absent_source_is_answered_with_what_there_is_for_text_and_for_conversations():
    with pytest.raises(LeptaError, match="no such file") as error:
        text_files("absent.jsonl")
    named = [word for word in str(error.value).split() if word.startswith("starter:")]
    assert len(named) == 2 and all(map(text_files, named))


def test_items_of_the_benchmark_are_a_source():
    files = text_files("darumeru:builtin")
    assert {"test.jsonl", "shots.jsonl"} == {file.name for file in files}
    assert len({file.parent for file in files}) == 14


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("wordfreq:ru", r"wordfreq:ru: the package wordfreq is missing; pip install 'lepta\[wordfreq\]'"),
        ("dataset:some/name", r"the package datasets is missing; pip install 'lepta\[datasets\]'"),
        ("text.parquet", r"text.parquet: the package pyarrow is missing; pip install 'lepta\[corpus\]'"),
    ],
)
def test_a_package_that_a_source_needs_is_missed_before_it_is_read(source, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.parquet").write_bytes(b"PAR1")
    corpus.check_source(source)
    monkeypatch.setattr(corpus.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LeptaError, match=words):
        corpus.check_source(source)
