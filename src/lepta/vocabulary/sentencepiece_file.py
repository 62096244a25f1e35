"""SentencePiece models as a `tokenizer.json`: `.model` files, and those that GGUF files were made of."""

import base64
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.vocabulary import tokenizer_json as parts
from lepta.vocabulary.tokenizer_json import NEVER, SPACE, Config, Part, Spec

UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # ModelProto.SentencePiece.Type


def read_sentencepiece(path: Path) -> tuple[Spec, Config]:
    """Read a SentencePiece model of type BPE or Unigram; LeptaError if it is damaged or of another type."""
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


def spec_and_config(proto: Any) -> tuple[Spec, Config]:
    """Write a SentencePiece model (`ModelProto`) of type BPE or Unigram as `tokenizer.json` and its config."""
    pieces, trainer, normalizer = proto.pieces, proto.trainer_spec, proto.normalizer_spec
    # User-defined pieces are found in text that has "▁" for its spaces: a run of spaces may be such a piece. Where more
    # is done to text, they are found before it: `tokenizers` would do the same to the pieces themselves.
    only_spaces = not (
        normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces or normalizer.precompiled_charsmap
    )
    added = []
    for i, piece in enumerate(pieces):
        if piece.type in (UNKNOWN, CONTROL):
            added.append(parts.added_token(i, piece.piece))
        elif piece.type == USER_DEFINED:
            added.append(parts.added_token(i, piece.piece, special=False) | {"normalized": only_spaces})
    roles = {}
    for role in ("bos", "eos", "unk", "pad"):
        token_id = getattr(trainer, f"{role}_id")
        if token_id >= 0:
            roles[f"{role}_token"] = pieces[token_id].piece
    first = {roles["bos_token"]: trainer.bos_id} if roles.get("bos_token") else {}
    spec = parts.tokenizer_json(
        _bpe(proto) if trainer.model_type == BPE else _unigram(proto),
        added,
        normalizer=_normalizer(normalizer),
        post_processor=parts.around(first, {}),
        decoder=parts.sentencepiece_decoder(strips=normalizer.add_dummy_prefix),
    )
    # The order of keys in files written by earlier versions.
    return spec, roles | parts.tokenizer_config({})


def _normalizer(settings: Any) -> Part:
    steps: list[Part] = []
    if settings.precompiled_charsmap:
        charsmap = base64.b64encode(settings.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if settings.remove_extra_whitespaces:
        steps += [parts.replace({"Regex": r"\A +|[ ▁]+\z"}, ""), parts.replace({"Regex": " {2,}"}, " ")]
    if settings.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append(parts.replace({"String": " "}, SPACE))
    return {"type": "Sequence", "normalizers": steps}


def _bpe(proto: Any) -> Part:
    """SentencePiece merges the neighbours that together make the piece of the best score, as tiktoken does by rank."""
    # User-defined pieces come first: whatever stands beside them, they are whole.
    ranked = [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED]
    ordinary = [(-piece.score, i, piece.piece) for i, piece in enumerate(proto.pieces) if piece.type == NORMAL]
    ranked += [piece for _, _, piece in sorted(ordinary)]
    return parts.bpe_model(
        {piece.piece: i for i, piece in enumerate(proto.pieces)},
        parts.pairs_of(ranked),
        unknown=next((piece.piece for piece in proto.pieces if piece.type == UNKNOWN), None),
        fuse_unknown=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def _unigram(proto: Any) -> Part:
    # Text does not match the names of bytes ("<0x41>"), unless the model does not know the letters of the name.
    vocab = [[piece.piece, piece.score if piece.type in (NORMAL, USER_DEFINED) else NEVER] for piece in proto.pieces]
    return {
        "type": "Unigram",
        "unk_id": next(i for i, piece in enumerate(proto.pieces) if piece.type == UNKNOWN),
        "vocab": vocab,
        "byte_fallback": proto.trainer_spec.byte_fallback,
    }
