"""Shards: files of rows that hold about so much text each, so that many workers can share a corpus."""

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lepta.text.formats import read_rows

SHARD = 32_000_000  # characters of text
LEVEL = {"zst": 3, "gz": 6}


class ShardWriter:
    """Writes rows to one file (.zst or .gz), whose bytes depend on nothing but the rows."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")
        self._stream = _compressor(self._file, path.suffix[1:])
        self.characters = 0

    def write(self, row: dict[str, Any]) -> None:
        """Write a row with a field `text`."""
        self._stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.characters += len(row["text"])

    def close(self) -> None:
        """End the file."""
        self._stream.close()
        self._file.close()


def _compressor(file: BinaryIO, kind: str) -> Any:
    if kind == "gz":  # no name and no time in it: the same rows, the same bytes
        return gzip.GzipFile("", "wb", LEVEL[kind], file, mtime=0)
    import zstandard

    writer: Any = zstandard.ZstdCompressor(LEVEL[kind], write_checksum=True).stream_writer(file, closefd=False)
    return io.BufferedWriter(writer, 1 << 17)


def read_shard(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Stream the rows of a shard, with the bytes of the file that were read so far."""
    return ((row.value, row.position) for row in read_rows(path))
