"""Byte-level BPE (GPT-2, SmolLM2, LLaMA-3, Qwen, Tekken): tokens are bytes, written in an alphabet of 256 letters."""

import copy
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from lepta.vocabulary.pre_tokenizers import GPT2_REGEX, sequence, split
from lepta.vocabulary.tokens import Kind, Vocabulary, components


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
    return bytes(map(BYTE_OF_CHARACTER.__getitem__, token))


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

    def written(self, data: bytes) -> str:
        """See `Vocabulary.written`."""
        return to_byte_alphabet(data)

    def word_rules(self) -> dict[str, Any]:
        """See `Vocabulary.word_rules`: the tokenizer's own rules without the change of alphabet."""
        steps = []
        for step in components(self.spec["pre_tokenizer"]):
            if step["type"] != "ByteLevel":
                steps.append(step)
            elif step.get("use_regex", True):
                steps.append(split(GPT2_REGEX))
        return {"normalizer": self.spec.get("normalizer"), "pre_tokenizer": sequence(*steps)}

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
