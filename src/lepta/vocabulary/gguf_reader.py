"""GGUF files within limits: gguf's own reader believes any length, and would fill the memory with empty values."""

from typing import Any

import numpy as np
from gguf import GGUFReader

MOST_VALUES = 4 << 20  # of a header, as gguf reads them; Gemma 3's 262,144 tokens are 1.1 million


class Reader(GGUFReader):  # type: ignore[misc]  # gguf has no types
    """`gguf.GGUFReader`; ValueError for a file that ends too early or has more values than any vocabulary needs."""

    def __init__(self, path: Any) -> None:
        self._left = MOST_VALUES
        super().__init__(path)

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"more than {MOST_VALUES:,} values before its weights")
        if int(offset) + int(count) * np.dtype(dtype).itemsize > len(self.data):
            raise ValueError("ends too early")
        return super()._get(offset, dtype, count, override_order)
