"""GGUF files within limits of memory: gguf's own reader believes any length, and keeps two arrays for each value.

Of 262,144 tokens with scores and types (Gemma 3) those take 770 MB, as much as the model's weights in 16 bits.
"""

import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType
from gguf.gguf_reader import GGUFReader, ReaderField

MOST_VALUES = 4 << 20  # of a header; Gemma 3's 262,144 tokens are 0.8 million
ARRAY_HEAD = 12  # bytes: the type of its values (4) and their number (8)


class _Parts:
    """Parts of a field: a few at hand, and the values of an array, which are read when they are asked for."""

    def __init__(self, first: list[Any], value: Callable[[int], Any]) -> None:
        self._first, self._value = first, value

    def __getitem__(self, number: int) -> Any:
        return self._first[number] if number < len(self._first) else self._value(number - len(self._first))


class Reader(GGUFReader):
    """`gguf.GGUFReader`; ValueError for a file that ends too early or has more values than any vocabulary needs."""

    def __init__(self, path: Any) -> None:
        self._left = MOST_VALUES
        super().__init__(path)

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        if int(offset) + int(count) * np.dtype(dtype).itemsize > len(self.data):
            raise ValueError("ends too early")
        return super()._get(offset, dtype, count, override_order)

    def _build_fields(self, offs: int, count: int) -> int:
        for _ in range(self._counted(count)):
            start = offs
            length, name = self._get_str(offs)
            offs += length.nbytes + name.nbytes
            kind = self._get(offs, np.uint32)
            offs += kind.nbytes
            first = [length, name, kind]
            size, parts, numbers, types = self._get_field_parts(offs, kind[0])
            places = [number + len(first) for number in numbers]
            held: Any = [*first, *parts]
            if callable(parts[0]):
                held = _Parts(first, parts[0])
            self._push_field(ReaderField(start, str(bytes(name), "utf-8"), held, places, types), skip_sum=True)
            offs += size
        return offs

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        """Size, parts, places of the values among them, and types; of an array one part, which gives its values."""
        if GGUFValueType(raw_type) != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind = GGUFValueType(self._get(orig_offs, np.uint32)[0])
        number = self._counted(self._get(orig_offs + 4, np.uint64)[0])
        start, types = orig_offs + ARRAY_HEAD, [GGUFValueType.ARRAY, kind]
        if kind == GGUFValueType.STRING:
            ends = self._ends_of_strings(start, number)

            def text(place: int) -> Any:
                return self.data[ends[place] + 8 : ends[place + 1]]

            return ends[-1] - orig_offs, [text], range(number), types
        values = self._get(start, self.gguf_scalar_to_np[kind], number)
        return ARRAY_HEAD + values.nbytes, [lambda place: values[place : place + 1]], range(number), types

    def _ends_of_strings(self, offset: int, number: int) -> "array[int]":
        """Where the first of so many strings begins, and where each ends: they stand one after the other."""
        little = (sys.byteorder == "little") == (self.byte_order == "I")
        length, data, ends = struct.Struct("<Q" if little else ">Q"), self.data.data, array("Q", [offset])
        for _ in range(number):
            if offset + length.size > len(data):
                raise ValueError("ends too early")
            offset += length.size + length.unpack_from(data, offset)[0]
            if offset > len(data):
                raise ValueError("ends too early")
            ends.append(offset)
        return ends

    def _counted(self, number: Any) -> int:
        self._left -= int(number)
        if self._left < 0:
            raise ValueError(f"more than {MOST_VALUES:,} values before its weights")
        return int(number)


@contextmanager
def reading_within_limits() -> Iterator[None]:
    """Have whatever opens GGUF files in the block take this reader, transformers too."""
    module: Any = gguf
    kept = module.GGUFReader
    module.GGUFReader = Reader
    try:
        yield
    finally:
        module.GGUFReader = kept
