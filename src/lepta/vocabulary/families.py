"""From a `tokenizer.json` to the vocabulary class that reads its family."""

from typing import Any

from lepta.core.errors import LeptaError
from lepta.vocabulary.byte_level import ByteLevelBPE
from lepta.vocabulary.sentencepiece import SPACE, SentencePieceBPE, SentencePieceUnigram
from lepta.vocabulary.tokens import Vocabulary, components


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
    normalizer, pre_tokenizer = components(spec.get("normalizer")), components(spec.get("pre_tokenizer"))
    if any(part["type"] == "ByteLevel" for part in normalizer):
        raise LeptaError(
            f"{origin}: ByteLevel as a normalizer; expected it in pre_tokenizer, as in all byte-level BPE known here "
            "(GPT-2, LLaMA-3, Qwen, SmolLM2)"
        )
    before = [*normalizer, *pre_tokenizer]
    byte_level = any(part["type"] == "ByteLevel" for part in pre_tokenizer)
    spaces_marked = any(
        part["type"] == "Metaspace" or (part["type"] == "Replace" and part["content"] == SPACE) for part in before
    )
    match model.get("type"), byte_level, spaces_marked:
        case "BPE", True, _:
            return ByteLevelBPE(spec)
        case "BPE", _, True:
            return SentencePieceBPE(spec)
        case "Unigram", False, True:
            return SentencePieceUnigram(spec)
    parts = ", ".join(str(part["type"]) for part in before) or "no normalizer or pre-tokenizer"
    raise LeptaError(
        f"{origin}: model {model.get('type')!r} with {parts} is of no family known here; expected byte-level BPE "
        "(GPT-2, LLaMA-3, Qwen, SmolLM2), SentencePiece BPE (Mistral-7B, LLaMA-2) or SentencePiece Unigram"
    )
