"""Rows of files: what is read, and what is said of files that are damaged."""

import gzip
import json
import time
import tracemalloc

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from lepta.core.errors import LeptaError
from lepta.stages import Hashes
from lepta.text.formats import read_rows, read_text
from lepta.text.sources import read_documents, read_labelled, text_files

TEXTS = [f"документ {n} " + "слово " * (n % 7) for n in range(300)]
LINES = "".join(json.dumps({"text": text, "n": n}, ensure_ascii=False) + "\n" for n, text in enumerate(TEXTS)).encode()


def write(path, data=LINES):
    """Write lines as the name of the file says."""
    if path.name.endswith(".gz"):
        data = gzip.compress(data)
    elif path.name.endswith(".zst"):
        data = zstandard.compress(data)
    path.write_bytes(data)
    return path


def write_table(path, rows=None, group=100, **options):
    table = pyarrow.Table.from_pylist(rows or [{"text": text, "n": n} for n, text in enumerate(TEXTS)])
    parquet.write_table(table, path, row_group_size=group, **options)
    return path


def read(source, **options):
    return list(read_documents([str(source)], **options))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_lines_read_the_same_however_compressed(tmp_path, name):
    assert read(write(tmp_path / name)) == TEXTS


def test_parquet_reads_as_the_lines_do(tmp_path):
    assert read(write_table(tmp_path / "a.parquet")) == TEXTS


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    path = write(tmp_path / name, b"\xef\xbb\xbf" + LINES)
    assert read(path) == TEXTS and read_text(path) == LINES.decode()


def test_zstandard_in_several_frames_is_one_stream(tmp_path):
    half = LINES.index(b"\n", len(LINES) // 2) - 20  # in the middle of a line
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(LINES[:half]) + zstandard.compress(LINES[half:]))
    assert read(tmp_path / "a.jsonl.zst") == TEXTS


def test_folder_mixes_all_kinds_and_leaves_out_what_is_hidden_or_no_text(tmp_path):
    for name in ("b.jsonl.zst", "a.jsonl", ".hidden.jsonl"):
        write(tmp_path / name)
    (tmp_path / ".x.partial").mkdir()
    write(tmp_path / ".x.partial" / "c.jsonl")
    write_table(tmp_path / "c.parquet")
    for name in ("report.json", "manifest.json"):
        (tmp_path / name).write_text("{}")
    assert [file.name for file in text_files(str(tmp_path))] == ["a.jsonl", "b.jsonl.zst", "c.parquet"]
    assert read(tmp_path) == TEXTS * 3


def test_field_of_ones_own(tmp_path):
    rows = [{"text": "no", "body": f"да {n}"} for n in range(5)]
    write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    write_table(tmp_path / "b.parquet", rows)
    assert read(f"{tmp_path}/a.jsonl?field=body") == read(f"{tmp_path}/b.parquet?field=body")
    assert read(f"{tmp_path}?field=body") == [row["body"] for row in rows] * 2


def test_field_is_part_of_what_a_stage_depends_on(tmp_path):
    write(tmp_path / "a.jsonl", b'{"text": "a", "body": "b"}\n')
    hashes = {Hashes().text([f"{tmp_path}/a.jsonl{query}"]) for query in ("", "?field=text", "?field=body")}
    assert len(hashes) == 2


def test_unknown_option_raises(tmp_path):
    with pytest.raises(LeptaError, match="unknown option 'fields'; known is field"):
        read(f"{write(tmp_path / 'a.jsonl')}?fields=body")


def test_empty_option_raises(tmp_path):
    with pytest.raises(LeptaError, match="the option 'field' is empty; expected field=VALUE"):
        read(f"{write(tmp_path / 'a.jsonl')}?field=")
    with pytest.raises(LeptaError, match="the option 'split' is empty; expected split=VALUE"):
        read("dataset:x/y?split=&field=text")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_wrong_field_names_those_that_exist(tmp_path, kind):
    rows = [{"title": "a", "content": "b"}]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        write(path, json.dumps(rows[0]).encode())
    else:
        write_table(path, rows)
    with pytest.raises(LeptaError, match=r"field 'text', it has title, content; name one of these, as in FILE\?field="):
        read(path)


def test_null_is_an_empty_document(tmp_path):
    write(tmp_path / "a.jsonl", b'{"text": null}\n{"text": "a"}\n')
    assert read(tmp_path / "a.jsonl") == ["a"]


def test_labels_come_from_parquet_too(tmp_path):
    write_table(tmp_path / "a.parquet", [{"text": "a", "source": "news", "doc": "7", "more": 1}])
    assert [(d.source, d.name) for d in read_labelled([str(tmp_path)])] == [("news", "7")]


@pytest.mark.parametrize(("name", "kind"), [("a.jsonl.gz", "gzip"), ("a.jsonl.zst", "Zstandard")])
@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_cut_file_raises_naming_the_line(tmp_path, name, kind, keep):
    path = write(tmp_path / name)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(LeptaError, match=rf"{name}: not a whole {kind} file, it ends after line \d+ .*copy it again"):
        read(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_garbage_raises(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x00\x01 no such format" * 50)
    with pytest.raises(LeptaError, match=rf"{name}: not a whole"):
        read(tmp_path / name)


def test_cut_parquet_raises(tmp_path):
    path = write_table(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LeptaError, match=r"a\.parquet: not a whole Parquet file"):
        read(path)


def damaged_group(path):
    """A table whose second row group of three has other bytes in the middle."""
    write_table(path, write_page_checksum=True, use_dictionary=False)
    chunk = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    data[middle : middle + 40] = bytes(40)
    path.write_bytes(data)
    return path


def test_damaged_row_group_is_named(tmp_path):
    with pytest.raises(LeptaError, match=r"a\.parquet, row group 1: damaged"):
        read(damaged_group(tmp_path / "a.parquet"))


def test_damaged_rows_can_be_skipped_one_by_one(tmp_path):
    errors = []
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\nno json\n{"text": "b"}\n[1]\n{"text": "\xff"}\n{"text": "c"}\n')
    assert [row.value["text"] for row in read_rows(path, "text", errors.append)] == ["a", "b", "c"]
    assert [str(error).split(":")[0].rpartition(" ")[2] for error in errors] == ["2", "4", "5"]


@pytest.mark.parametrize(("line", "is_no"), [("{", "not JSON"), ('[{"messages": []}]', r"not an object \(list\)")])
def test_no_text_field_is_asked_of_rows_that_need_none(tmp_path, line, is_no):
    path = write(tmp_path / "a.jsonl", line.encode())
    with pytest.raises(LeptaError, match=rf"line 1: {is_no}.*; expected one object a line$"):
        list(read_rows(path))
    with pytest.raises(LeptaError, match=rf"line 1: {is_no}.*; expected one object a line, with .* field 'body'$"):
        list(read_rows(path, "body"))


def test_damaged_row_group_can_be_skipped(tmp_path):
    errors = []
    rows = [row.value["text"] for row in read_rows(damaged_group(tmp_path / "a.parquet"), "text", errors.append)]
    assert rows == TEXTS[:100] + TEXTS[200:]
    assert len(errors) == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
def test_line_of_50_megabytes_takes_no_quadratic_time(tmp_path, name):
    text = "слово " * 4_600_000
    path = write(tmp_path / name, json.dumps({"text": text}, ensure_ascii=False).encode())
    started = time.process_time()
    assert read(path) == [text]
    assert time.process_time() - started < 10


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_line_that_is_too_long_is_refused_before_it_is_in_memory(tmp_path, name, monkeypatch):
    """A small file may hold a line of many gigabytes."""
    monkeypatch.setattr("lepta.text.formats.LONGEST_LINE", 1 << 24)
    size = 1 << 28
    path = tmp_path / name
    with gzip.open(path, "wb", 1) if name.endswith("gz") else path.open("wb") as file:
        sink = zstandard.ZstdCompressor(1).stream_writer(file, closefd=False) if name.endswith("zst") else file
        sink.write(b'{"text": "first"}\n')
        for _ in range(size >> 24):
            sink.write(b" " * (1 << 24))
        if sink is not file:
            sink.close()
    errors = []
    tracemalloc.start()
    assert [row.value["text"] for row in read_rows(path, "text", errors.append)] == ["first"]
    with pytest.raises(LeptaError, match="longer than 16 MiB; divide the text"):
        read_text(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size
    assert [str(error).removeprefix(str(path)).split(";")[0] for error in errors] == [", line 2: longer than 16 MiB"]
