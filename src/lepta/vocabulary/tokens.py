"""What a vocabulary is to everything downstream: the bytes of each id, and the ids of any bytes.

Two tokenizers are compared through bytes alone, never through the strings in `tokenizer.json`: those are written in
alphabets of their own ("Ġпр" or "▁пр"), and feeding one tokenizer the strings of another gives nonsense.
"""

import itertools
import json
import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lepta.vocabulary.tokenizer_json import added_tokens_of, merge_pairs, tokens_of


class Kind(IntEnum):
    """What an id stands for."""

    HOLE = 0  # no token has this id (reserved ids, padding rows)
    TEXT = 1  # bytes of text
    BYTE = 2  # one single byte, used where no text token fits (byte fallback)
    SPECIAL = 3  # an added token, matched in text as a literal: end of text, chat markers


class Vocabulary(ABC):
    """Ids and bytes of one tokenizer; the families are in `lepta.vocabulary.families`.

    `spec` is the contents of `tokenizer.json`. `size` is the largest id + 1, not the number of tokens: ids may have
    holes. `bytes_of` has the bytes of each id, None for holes; special tokens have those of their literal. `kinds` is a
    uint8 array, shape (size,): the `Kind` of each id.
    """

    family: str

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        tokens = {token_id: token for token, token_id in tokens_of(spec["model"]["vocab"])}
        added = {token_id: literal for literal, token_id in added_tokens_of(spec)}
        self.size = 1 + max(max(tokens, default=-1), max(added, default=-1))
        self.bytes_of: list[bytes | None] = [None] * self.size
        self.kinds = np.full(self.size, Kind.HOLE, dtype=np.uint8)
        for token_id, token in tokens.items():
            self.bytes_of[token_id], self.kinds[token_id] = self._read(token)
        for token_id, literal in added.items():
            self.bytes_of[token_id], self.kinds[token_id] = literal.encode(), Kind.SPECIAL

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size:,} ids)"

    @abstractmethod
    def _read(self, token: str) -> tuple[bytes, Kind]:
        """Bytes and kind of a token as `tokenizer.json` writes it."""

    @abstractmethod
    def split(self, pieces: Sequence[bytes]) -> list[list[int]]:
        """Split byte strings, valid UTF-8 or not, into ids of this vocabulary; special tokens are never matched."""

    @abstractmethod
    def written(self, data: bytes) -> str:
        """Write the bytes of a token as `tokenizer.json` does."""

    @abstractmethod
    def word_rules(self) -> dict[str, Any]:
        """`normalizer` and `pre_tokenizer` that cut text into the words that tokens are learned in, as plain text."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer itself, as `tokenizers` runs it, whole texts whatever their length."""
        tokenizer = Tokenizer.from_str(json.dumps(self.spec))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def data(self, token_id: int) -> bytes:
        """Bytes of an id that is no hole."""
        return self.bytes_of[token_id] or b""

    def token(self, token_id: int) -> bytes | None:
        """Bytes of any id; None for holes, and beyond the last id."""
        return self.bytes_of[token_id] if token_id < self.size else None

    def ids_of(self, *kinds: Kind) -> list[int]:
        """All ids of some kinds, ascending."""
        ids: list[int] = np.flatnonzero(np.isin(self.kinds, kinds)).tolist()
        return ids

    def ids_by_bytes(self, kind: Kind) -> dict[bytes, int]:
        """Bytes -> id over all tokens of one kind; the lowest id wins where two have the same bytes."""
        return {self.data(i): i for i in reversed(self.ids_of(kind))}

    def usage(self, words: Sequence[str], weights: np.ndarray) -> np.ndarray:
        """Weight of the words that each token is used in, as often as it is used; float array, shape (size,)."""
        splits = self.split(list(map(str.encode, words)))
        lengths = np.fromiter(map(len, splits), np.int64, len(splits))
        ids = np.fromiter(itertools.chain.from_iterable(splits), np.int64, int(lengths.sum()))
        return np.bincount(ids, np.repeat(weights, lengths), minlength=self.size)

    def special_layout(self) -> tuple[list[str], list[str]]:
        """Special tokens that stand before all other tokens, and those that stand after, both in order of id."""
        first = min(self.ids_of(Kind.TEXT, Kind.BYTE), default=0)
        ids = self.ids_of(Kind.SPECIAL)
        before, specials = bisect_left(ids, first), [self.data(i).decode() for i in ids]
        return specials[:before], specials[before:]

    def spelled_specials(self) -> set[str]:
        """Added tokens that merges or pieces lead to as well: Gemma lists its runs of spaces so."""
        added = self.spec.get("added_tokens") or []
        plain = {token["content"]: token["id"] for token in added if not token.get("special")}
        return {token for token, i in plain.items() if self.split([token.encode()]) == [[i]]}

    @cached_property
    def merge_parts(self) -> dict[int, tuple[int, ...]]:
        """The two tokens that really merge into each token, by running the merges of lower rank on it.

        LLaMA-3 has a few tokens that its merges do not lead to; it takes them for whole words only, and they have no
        parts.
        """
        model = self.spec["model"]
        vocab, ranks = model["vocab"], {}
        by_token: dict[str, list[tuple[str, str]]] = {}
        for rank, (left, right) in enumerate(merge_pairs(model["merges"])):
            ranks[left, right] = rank
            by_token.setdefault(left + right, []).append((left, right))
        parts: dict[int, tuple[int, ...]] = {}
        for token, ways in by_token.items():
            pair: tuple[str, ...] = ways[0]
            if len(ways) > 1:
                pair = _last_pair(token, ranks)
            parts[vocab[token]] = tuple(map(vocab.__getitem__, pair))
        return parts

    def is_hole(self, token_id: int) -> bool:
        """Tell whether no token has this id."""
        return token_id >= self.size or self.kinds[token_id] == Kind.HOLE

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of whole texts, exactly as the tokenizer gives them, without an added start or end of text."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _last_pair(token: str, ranks: dict[tuple[str, str], int]) -> tuple[str, ...]:
    """Merge a token up from its characters until two symbols are left; nothing if it does not come to that."""
    symbols = list(token)
    while len(symbols) > 2:
        n, pair = min(enumerate(itertools.pairwise(symbols)), key=lambda place: ranks.get(place[1], math.inf))
        if pair not in ranks:
            return ()
        symbols[n : n + 2] = ["".join(pair)]
    return tuple(symbols)


def runs_of_text(data: bytes) -> Iterator[str | bytes]:
    """Cut bytes into runs of valid UTF-8 (`str`) and the bytes between them (`bytes`)."""
    while data:
        try:
            yield data.decode("utf-8")
            return
        except UnicodeDecodeError as error:
            if error.start:
                yield data[: error.start].decode("utf-8")
            yield data[error.start : error.end]
            data = data[error.end :]
