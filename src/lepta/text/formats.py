"""Rows of files, streamed: JSONL (plain, gzip, Zstandard) and Parquet. What is damaged is named with its place."""

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn, cast

from lepta.core.errors import LeptaError, optional
from lepta.core.reading import parse_json, read_most

PARQUET = ".parquet"
ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", PARQUET)
BATCH = 64  # rows of Parquet that are Python objects at once
CHUNK = 1 << 12  # compressed bytes at once; Zstandard may unpack them to 32,000 times as many
# Bytes of a line. A small gzip file can hold a line of many gigabytes (a "bomb"); text has none as long as this.
LONGEST_LINE = 1 << 28


class Row(NamedTuple):
    """One row of a file."""

    where: str  # file and line, or file, row group and row
    number: int  # from 1; of a JSONL file the line
    value: dict[str, Any]
    position: int  # bytes of the file that were read so far


def stop(error: LeptaError) -> NoReturn:
    """Raise: the default handler of damaged rows and files."""
    raise error


def read_rows(file: Path, field: str | None = None, bad: Callable[[LeptaError], None] = stop) -> Iterator[Row]:
    """Stream the rows of a file whose name ends in one of `ROW_SUFFIXES`.

    `field` holds the text; of a Parquet file, only it and `source` and `doc` are read. `bad` is told of each damaged
    row or row group, which is then skipped, and of a damaged file, which then ends.
    """
    if file.name.endswith(PARQUET):
        return _parquet_rows(file, field, bad)
    return _json_rows(file, field, bad)


def read_text(file: Path) -> str:
    """Read a whole UTF-8 text file, plain or packed like those of `read_rows`; LeptaError if it is damaged."""
    with _opened(file) as (_, lines):
        try:
            data = read_most(lines, LONGEST_LINE)
        except DAMAGE as error:
            raise LeptaError(f"{file}: not a whole {_kind(file)} file ({error}); copy it again") from error
    if len(data) > LONGEST_LINE:
        raise _too_long(str(file))
    return decode(data, str(file)).removeprefix("\ufeff")


def decode(data: bytes, where: str, start: int = 0) -> str:
    """Decode UTF-8; LeptaError naming the byte, counted from `start`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"{where}: byte {start + error.start} is not UTF-8"
        if 0 in data:
            raise LeptaError(f"{place}, and some bytes are 0: binary data, or UTF-16; expected UTF-8 text") from error
        raise LeptaError(f"{place}; convert the text first, for example iconv -f WINDOWS-1251 -t UTF-8") from error


def _json_rows(file: Path, field: str | None, bad: Callable[[LeptaError], None]) -> Iterator[Row]:
    number = 0
    try:
        with _opened(file) as (raw, lines):
            for number, line in enumerate(_lines(lines), 1):
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if not line.strip():
                    continue
                where = f"{file}, line {number}"
                try:
                    value = _object(line, where, field)
                except LeptaError as error:
                    bad(error)
                    continue
                yield Row(where, number, value, raw.tell())
    except LongLine:
        bad(_too_long(f"{file}, line {number + 1}"))
    except DAMAGE as error:
        bad(LeptaError(f"{file}: not a whole {_kind(file)} file, it ends after line {number} ({error}); copy it again"))


def _lines(data: BinaryIO) -> Iterator[bytes]:
    """Stream lines; `LongLine` at one that is longer than `LONGEST_LINE`, before all of it is in memory."""
    while line := data.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise LongLine
        yield line


def _too_long(where: str) -> LeptaError:
    return LeptaError(f"{where}: longer than {LONGEST_LINE >> 20} MiB; divide the text into several documents")


def _kind(file: Path) -> str:
    return "gzip" if file.suffix == ".gz" else "Zstandard"


def _object(line: bytes, where: str, field: str | None) -> dict[str, Any]:
    expected = "expected one object a line" + (f", with its text in the field {field!r}" if field else "")
    value = parse_json(decode(line, where), where, expected)
    if not isinstance(value, dict):
        raise LeptaError(f"{where}: not an object ({type(value).__name__}); {expected}")
    return value


@contextmanager
def _opened(file: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """A file, and the bytes in it once they are unpacked."""
    with file.open("rb") as raw:
        if file.suffix == ".gz":
            with gzip.open(raw) as lines:
                yield raw, cast(BinaryIO, lines)
        elif file.suffix == ".zst":
            yield raw, io.BufferedReader(_Chunks(_zstd_chunks(raw, file)), 1 << 17)
        else:
            yield raw, raw


class LongLine(Exception):
    """A line that is longer than `LONGEST_LINE`."""


class ZstdDamage(Exception):
    """A Zstandard stream that cannot be decompressed."""


DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error, ZstdDamage)


def _zstd_chunks(raw: BinaryIO, file: Path) -> Iterator[bytes]:
    """All frames of a stream. `zstandard.stream_reader` would take a cut frame for a whole one."""
    with optional(file, "corpus"):
        import zstandard
    frame = None
    try:
        while chunk := raw.read(CHUNK):
            while chunk:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(chunk)
                chunk, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    except zstandard.ZstdError as error:
        raise ZstdDamage(str(error)) from error
    if frame is not None:
        raise ZstdDamage("the last frame is cut")


class _Chunks(io.RawIOBase):
    """A stream of bytes out of chunks, for `io.BufferedReader` to find the lines in."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _parquet_rows(file: Path, field: str | None, bad: Callable[[LeptaError], None]) -> Iterator[Row]:
    with optional(file, "corpus"):
        import pyarrow
        from pyarrow import parquet
    damage = (pyarrow.ArrowException, OSError, UnicodeDecodeError)
    try:
        table = parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
    except damage as error:
        bad(LeptaError(f"{file}: not a whole Parquet file ({_first_line(error)}); copy it again"))
        return
    with table:
        names, number, size = table.schema_arrow.names, 0, file.stat().st_size
        columns = names if field is None else [name for name in names if name in {field, "source", "doc"}]
        if field is not None and field not in names:
            raise no_field(str(file), field, names)
        for group in range(table.num_row_groups):
            where, position = f"{file}, row group {group}", size * (group + 1) // table.num_row_groups
            try:
                for batch in table.iter_batches(BATCH, row_groups=[group], columns=columns, use_threads=False):
                    for value in batch.to_pylist():
                        number += 1
                        yield Row(f"{where}, row {number}", number, value, position)
            except damage as error:
                bad(LeptaError(f"{where}: damaged ({_first_line(error)}); copy the file again"))


def no_field(where: str, field: str, names: list[str]) -> LeptaError:
    """The error of a row without text, which names the fields that there are."""
    there = (
        f"it has {', '.join(names)}; name one of these, as in FILE?field={names[0]}" if names else "it has no fields"
    )
    return LeptaError(f"{where}: no text field; expected a string in the field {field!r}, {there}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
