"""Two tokenisations of the same text, and the places where both have a token end.

At such a place the original model, which reads the old tokens, and the adapted one, which reads the new ones, know the
same text. So hidden states may be compared there, and likelihoods of what lies between two such places.
Ends inside a character do not count: no text is known there that could be written down.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lepta.vocabulary.tokens import Kind, Vocabulary

NONE = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Alignment:
    """A passage in old and in new tokens, int64, each beginning with the token that starts a text."""

    old_ids: np.ndarray
    new_ids: np.ndarray
    # Positions in `old_ids` and `new_ids` of tokens that end at the same byte; the first is 0 in both.
    old_ends: np.ndarray
    new_ends: np.ndarray
    size: int  # bytes of the text


class Aligner:
    """Aligns passages between two vocabularies, whose texts start with tokens of these ids."""

    def __init__(self, old: Vocabulary, new: Vocabulary, old_start: int = -1, new_start: int = -1) -> None:
        self.old, self.new, self._starts = old, new, (old_start, new_start)
        self._specials = old.ids_by_bytes(Kind.SPECIAL)
        self._lengths = _byte_lengths(old), _byte_lengths(new)

    def align(self, passages: Sequence[str]) -> list[Alignment | None]:
        """Tokenise passages both ways; None for one whose bytes a tokenizer changes (by normalising them, say)."""
        return list(map(self._one, passages, self.old.encode(passages), self.new.encode(passages)))

    def _one(self, passage: str, old_ids: list[int], new_ids: list[int]) -> Alignment | None:
        written = _written(self.old, old_ids)
        if written != _written(self.new, new_ids) or not written.endswith(passage.encode()):
            return None
        old_ends, new_ends = self._common_ends(written, old_ids, new_ids)
        old_start, new_start = self._starts
        return Alignment(
            np.asarray([old_start, *old_ids], dtype=np.int64),
            np.asarray([new_start, *new_ids], dtype=np.int64),
            np.concatenate([[0], 1 + old_ends]),
            np.concatenate([[0], 1 + new_ends]),
            len(passage.encode()),
        )

    def _common_ends(
        self, text: bytes, old_ids: Sequence[int], new_ids: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions in both of tokens that end at the same byte of what both write."""
        old_bytes, new_bytes = np.cumsum(self._lengths[0][old_ids]), np.cumsum(self._lengths[1][new_ids])
        common = np.intersect1d(old_bytes, new_bytes)
        padded = np.frombuffer(text + b"\0", dtype=np.uint8)
        common = common[(padded[common] & 0xC0) != 0x80]  # between characters of UTF-8, whose later bytes are 10xxxxxx
        return np.searchsorted(old_bytes, common), np.searchsorted(new_bytes, common)

    def align_ids(self, new_ids: list[int]) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Old ids of what new ids write, and positions in both of tokens that end at the same byte.

        No start of text is added. A special token that only the new vocabulary has is left out of the old ids.
        """
        old, new = self.old, self.new
        old_ids: list[int] = []
        for special, run in itertools.groupby(new_ids, lambda i: bool(new.kinds[i] == Kind.SPECIAL)):
            ids = list(run)
            if special:
                old_ids += [self._specials[new.data(i)] for i in ids if new.data(i) in self._specials]
            else:
                old_ids += _encoded(old, _written(new, ids))
        text = _written(new, new_ids)
        if _written(old, old_ids) != text:
            return old_ids, NONE, NONE
        return old_ids, *self._common_ends(text, old_ids, new_ids)


def _byte_lengths(vocabulary: Vocabulary) -> np.ndarray:
    return np.fromiter(map(len, map(vocabulary.data, range(vocabulary.size))), np.int64, vocabulary.size)


def _written(vocabulary: Vocabulary, ids: Sequence[int]) -> bytes:
    return b"".join(map(vocabulary.data, ids))


def _encoded(vocabulary: Vocabulary, data: bytes) -> list[int]:
    """Ids that write some bytes, as the tokenizer writes text where it can.

    It may put a space before a text, so one that begins with a space is tried without; what is no whole text (cut
    inside a character) is split as the bytes of a token are.
    """
    text = data.decode(errors="replace")
    for part in (text, text.removeprefix(" ")):
        ids = vocabulary.encode([part])[0]
        if _written(vocabulary, ids) == data:
            return ids
    return vocabulary.split([data])[0]
