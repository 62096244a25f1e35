"""What was written stays, what was cut off goes, what is damaged is named."""

import pytest

from lepta.core.errors import LeptaError
from lepta.core.journal import Journal, append_rows, read_rows, write_rows

ROWS = [{"id": f"{n}", "text": "Ёж \u2028\n"} for n in range(3)]


def test_a_journal_of_nothing(tmp_path):
    assert Journal(tmp_path / "new" / "rows.jsonl").done == set()


def test_a_row_that_was_cut_off_is_written_again(tmp_path):
    file = tmp_path / "rows.jsonl"
    Journal(file).add(ROWS[:2])
    whole = file.read_bytes()
    for cut in (b'{"id": "2", "te', b'{"id": "2"}', "{'Ё".encode()[:3]):
        file.write_bytes(whole + cut)
        assert list(read_rows(file)) == ROWS[:2]
        journal = Journal(file)
        assert journal.done == {"0", "1"} and file.read_bytes() == whole
    journal.add(ROWS[2:])
    assert list(read_rows(file)) == ROWS and journal.done == {"0", "1", "2"}


def test_written_anew_it_is_the_same_bytes(tmp_path):
    append_rows(tmp_path / "appended", ROWS)
    write_rows(tmp_path / "new" / "written", iter(ROWS))
    assert (tmp_path / "appended").read_bytes() == (tmp_path / "new" / "written").read_bytes()


@pytest.mark.parametrize("line", [b"{", b"[1]", b"{}", b'{"ID": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_row_is_named(tmp_path, line):
    file = tmp_path / "rows.jsonl"
    append_rows(file, ROWS[:1])
    file.write_bytes(file.read_bytes() + line + b"\n")
    for read in (lambda: list(read_rows(file)), lambda: Journal(file)):
        with pytest.raises(LeptaError, match=r"rows\.jsonl, line 2: .*start over with --force"):
            read()
