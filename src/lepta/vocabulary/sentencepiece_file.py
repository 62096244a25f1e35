"""SentencePiece models as a `tokenizer.json`: `.model` files, and those that GGUF files were made of."""

import base64
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.vocabulary.pre_tokenizers import starts_with
from lepta.vocabulary.rebuild import added_token
from lepta.vocabulary.sentencepiece import NEVER, SPACE
from lepta.vocabulary.tiktoken_file import pairs_of

UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # ModelProto.SentencePiece.Type


def is_sentencepiece(head: bytes) -> bool:
    """Tell by its first bytes whether a file may be a SentencePiece model: field 1, a message."""
    return head[:1] == b"\x0a"


def read_sentencepiece(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a SentencePiece model of type BPE or Unigram.

    Returns
    -------
    spec : dict
        Contents of a `tokenizer.json`.
    config : dict
        Contents of a `tokenizer_config.json`.

    Raises
    ------
    LeptaError
        If the file is damaged or of another type.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise LeptaError(f"{path}: not a whole SentencePiece model ({error}); copy or download it again") from error
    if not proto.pieces or not proto.HasField("trainer_spec"):
        raise LeptaError(f"{path}: not a whole SentencePiece model, its end is missing; copy or download it again")
    if proto.trainer_spec.model_type not in (UNIGRAM, BPE):
        raise LeptaError(f"{path}: a SentencePiece model of type WORD or CHAR; expected BPE or UNIGRAM")
    return spec_and_config(proto)


def spec_and_config(proto: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write a SentencePiece model of type BPE or Unigram as `tokenizer.json` and `tokenizer_config.json`.

    Parameters
    ----------
    proto : ModelProto
    """
    pieces, trainer, normalizer = proto.pieces, proto.trainer_spec, proto.normalizer_spec
    # User-defined pieces are found in text that has "▁" for its spaces: a run of spaces may be such a piece. Where more
    # is done to text, they are found before it: `tokenizers` would do the same to the pieces themselves.
    only_spaces = not (
        normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces or normalizer.precompiled_charsmap
    )
    added = []
    for i, piece in enumerate(pieces):
        if piece.type in (UNKNOWN, CONTROL):
            added.append(added_token(i, piece.piece))
        elif piece.type == USER_DEFINED:
            added.append(added_token(i, piece.piece, special=False) | {"normalized": only_spaces})
    roles = {
        "bos_token": trainer.bos_id,
        "eos_token": trainer.eos_id,
        "unk_token": trainer.unk_id,
        "pad_token": trainer.pad_id,
    }
    config = {role: pieces[i].piece for role, i in roles.items() if i >= 0} | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    start = pieces[trainer.bos_id].piece if trainer.bos_id >= 0 else None
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": _normalizer(normalizer),
        "pre_tokenizer": None,
        "post_processor": starts_with(start, trainer.bos_id) if start else None,
        "decoder": decoder(normalizer.add_dummy_prefix),
        "model": _bpe(proto) if trainer.model_type == BPE else _unigram(proto),
    }
    return spec, config


def _normalizer(settings: Any) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if settings.precompiled_charsmap:
        charsmap = base64.b64encode(settings.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if settings.remove_extra_whitespaces:
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A +|[ ▁]+\z"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if settings.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return {"type": "Sequence", "normalizers": steps}


def decoder(strips: bool) -> dict[str, Any]:
    """From tokens back to text; `strips` takes away the space that was put before the text."""
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if strips:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _bpe(proto: Any) -> dict[str, Any]:
    """SentencePiece merges the neighbours that together make the piece of the best score, as tiktoken does by rank.

    User-defined pieces come first: whatever stands beside them, they are whole.
    """
    user_defined = [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED]
    ordinary = [(-piece.score, i, piece.piece) for i, piece in enumerate(proto.pieces) if piece.type == NORMAL]
    unknown = next((piece.piece for piece in proto.pieces if piece.type == UNKNOWN), None)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": proto.trainer_spec.byte_fallback,
        "ignore_merges": False,
        "vocab": {piece.piece: i for i, piece in enumerate(proto.pieces)},
        "merges": pairs_of([*user_defined, *(piece for _, _, piece in sorted(ordinary))]),
    }


def _unigram(proto: Any) -> dict[str, Any]:
    """Text does not match the names of bytes ("<0x41>"), unless the model does not know the letters of the name."""
    unknown = next(i for i, piece in enumerate(proto.pieces) if piece.type == UNKNOWN)
    return {
        "type": "Unigram",
        "unk_id": unknown,
        "vocab": [[p.piece, p.score if p.type in (NORMAL, USER_DEFINED) else NEVER] for p in proto.pieces],
        "byte_fallback": proto.trainer_spec.byte_fallback,
    }
