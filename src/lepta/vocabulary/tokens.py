"""What a vocabulary is to everything downstream: the bytes of each id, and the ids of any bytes.

Two tokenizers are compared through bytes alone, never through the strings in `tokenizer.json`: those are written in
alphabets of their own ("Ġпр" or "▁пр"), and feeding one tokenizer the strings of another gives nonsense.
"""

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lepta.errors import LeptaError


class Kind(IntEnum):
    """What an id stands for."""

    HOLE = 0  # no token has this id (reserved ids, padding rows)
    TEXT = 1  # bytes of text
    BYTE = 2  # one single byte, used where no text token fits (byte fallback)
    SPECIAL = 3  # an added token, matched in text as a literal: end of text, chat markers


class Vocabulary(ABC):
    """Ids and bytes of one tokenizer.

    Attributes
    ----------
    spec : dict
        The contents of `tokenizer.json`.
    size : int
        Largest id + 1. Not the number of tokens: ids may have holes.
    bytes_of : list of (bytes or None)
        Bytes of each id; `None` for holes. Special tokens have the bytes of their literal.
    kinds : uint8 array, shape (size,)
        `Kind` of each id.
    """

    family: str

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        tokens = self._token_strings()
        added = {token["id"]: token["content"] for token in spec.get("added_tokens") or []}
        self.size = 1 + max(max(tokens, default=-1), max(added, default=-1))
        self.bytes_of: list[bytes | None] = [None] * self.size
        self.kinds = np.full(self.size, Kind.HOLE, dtype=np.uint8)
        for token_id, token in tokens.items():
            self.bytes_of[token_id], self.kinds[token_id] = self._read(token)
        for token_id, literal in added.items():
            self.bytes_of[token_id], self.kinds[token_id] = literal.encode(), Kind.SPECIAL

    @abstractmethod
    def _token_strings(self) -> dict[int, str]:
        """Id -> token as `tokenizer.json` writes it."""

    @abstractmethod
    def _read(self, token: str) -> tuple[bytes, Kind]:
        """Bytes and kind of a token as `tokenizer.json` writes it."""

    @abstractmethod
    def split(self, pieces: Sequence[bytes]) -> list[list[int]]:
        """Split byte strings, valid UTF-8 or not, into ids of this vocabulary; special tokens are never matched."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer itself, as `tokenizers` runs it."""
        return Tokenizer.from_str(json.dumps(self.spec))

    def ids_by_bytes(self, kind: Kind) -> dict[bytes, int]:
        """Bytes -> id over all tokens of one kind; the lowest id wins where two have the same bytes."""
        ids = np.flatnonzero(self.kinds == kind)[::-1]
        return {data: int(i) for i in ids if (data := self.bytes_of[i]) is not None}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of whole texts, exactly as the tokenizer gives them, without an added start or end of text."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte, in the alphabet of byte-level BPE (GPT-2): printable bytes stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return alphabet | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_alphabet()
CHARACTER_OF_BYTE = [character for character, _ in sorted(BYTE_OF_CHARACTER.items(), key=lambda item: item[1])]


def to_byte_alphabet(data: bytes) -> str:
    """Write bytes as byte-level BPE does in `tokenizer.json`: b" hi" -> "Ġhi"."""
    return "".join(CHARACTER_OF_BYTE[byte] for byte in data)


def from_byte_alphabet(token: str) -> bytes:
    """Read what `to_byte_alphabet` wrote; KeyError for characters outside the alphabet."""
    return bytes(BYTE_OF_CHARACTER[character] for character in token)


class ByteLevelBPE(Vocabulary):
    """Byte-level BPE: GPT-2, SmolLM2, LLaMA-3, Qwen, Mistral's Tekken."""

    family = "byte-level BPE"

    def _token_strings(self) -> dict[int, str]:
        return {token_id: token for token, token_id in self.spec["model"]["vocab"].items()}

    def _read(self, token: str) -> tuple[bytes, Kind]:
        try:
            return from_byte_alphabet(token), Kind.TEXT
        except KeyError:
            return token.encode(), Kind.SPECIAL  # not in the byte alphabet: text can never produce it

    @cached_property
    def _splitter(self) -> Tokenizer:
        """The tokenizer without added tokens, normalisation and prefix space: text to ids and nothing else."""
        spec = copy.copy(self.spec) | {"added_tokens": [], "normalizer": None, "post_processor": None}
        spec["pre_tokenizer"] = _without_prefix_space(spec["pre_tokenizer"])
        return Tokenizer.from_str(json.dumps(spec))

    def split(self, pieces: Sequence[bytes]) -> list[list[int]]:
        """See `Vocabulary.split`. Bytes that are no text by themselves go through the merges in one piece."""
        texts = {}
        for position, piece in enumerate(pieces):
            try:
                texts[position] = piece.decode("utf-8")
            except UnicodeDecodeError:
                continue
        encodings = iter(self._splitter.encode_batch_fast(list(texts.values()), add_special_tokens=False))
        return [
            next(encodings).ids
            if position in texts
            else [token.id for token in self._splitter.model.tokenize(to_byte_alphabet(piece))]
            for position, piece in enumerate(pieces)
        ]


def _without_prefix_space(pre_tokenizer: dict[str, Any]) -> dict[str, Any]:
    if pre_tokenizer["type"] == "Sequence":
        parts = [_without_prefix_space(part) for part in pre_tokenizer["pretokenizers"]]
        return pre_tokenizer | {"pretokenizers": parts}
    return pre_tokenizer | {"add_prefix_space": False} if pre_tokenizer["type"] == "ByteLevel" else pre_tokenizer


def _parts(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The parts of a `tokenizer.json` component, a Sequence flattened."""
    if not component:
        return []
    return component[key] if component.get("type") == "Sequence" else [component]


def read_vocabulary(spec: dict[str, Any], origin: str = "tokenizer.json") -> Vocabulary:
    """Find the family of a tokenizer and read its vocabulary.

    Parameters
    ----------
    spec : dict
        The contents of `tokenizer.json`.
    origin : str
        Where it came from, for error messages.

    Raises
    ------
    LeptaError
        If the tokenizer is of a family that is not supported, naming the part.
    """
    model = spec.get("model") or {}
    byte_level = any(part["type"] == "ByteLevel" for part in _parts(spec.get("pre_tokenizer"), "pretokenizers"))
    if model.get("type") == "BPE" and byte_level:
        return ByteLevelBPE(spec)
    what = f"model {model.get('type')!r} with {'a' if byte_level else 'no'} ByteLevel pre-tokenizer"
    raise LeptaError(
        f"{origin}: {what} is not supported; expected byte-level BPE (as in GPT-2, LLaMA-3, Qwen, SmolLM2)"
    )
