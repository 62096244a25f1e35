"""SentencePiece models as a `tokenizer.json`, and back: `.model` files, and those that GGUF files were made of."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError, explained
from lepta.core.reading import read_bytes
from lepta.vocabulary import tokenizer_json as parts
from lepta.vocabulary.families import BYTE_TOKEN
from lepta.vocabulary.schema import REMEDY
from lepta.vocabulary.tokenizer_json import NEVER, SPACE, Config, Part, Spec, components, merge_pairs

UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # ModelProto.SentencePiece.Type
# What a normalizer does to white space where the model removes what is superfluous.
TRIMMED = [parts.replace({"Regex": r"\A +|[ ▁]+\z"}, ""), parts.replace({"Regex": " {2,}"}, " ")]


def empty_model() -> Any:
    """A SentencePiece model (`ModelProto`) to fill."""
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # protobuf makes its classes at run time


def read_sentencepiece(path: Path) -> tuple[Spec, Config]:
    """Read a SentencePiece model of type BPE or Unigram; LeptaError if it is damaged or of another type."""
    proto = empty_model()
    with explained(path, "not a whole SentencePiece model", REMEDY):
        proto.ParseFromString(read_bytes(path))
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
    bos = roles.get("bos_token", "")
    spec = parts.tokenizer_json(
        {BPE: _bpe, UNIGRAM: _unigram}[trainer.model_type](proto),
        added,
        normalizer=_normalizer(normalizer),
        post_processor=parts.start_with(bos, {bos: trainer.bos_id}),
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
        steps += TRIMMED
    if settings.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append(parts.replace({"String": " "}, SPACE))
    return {"type": "Sequence", "normalizers": steps}


def _bpe(proto: Any) -> Part:
    """SentencePiece merges the neighbours that together make the piece of the best score, as tiktoken does by rank."""
    # User-defined pieces come first: whatever stands beside them, they are whole.
    ranked = [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED]
    ordinary = (piece for piece in proto.pieces if piece.type == NORMAL)
    ranked += [piece.piece for piece in sorted(ordinary, key=lambda piece: -piece.score)]
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


def as_sentencepiece(spec: Spec, roles: Mapping[str, str | None]) -> bytes | None:
    """Write a `tokenizer.json` as a SentencePiece model; None if it is none, or SentencePiece cannot do what it does.

    `roles` are `bos_token` and the like. llama.cpp's converter needs it: a `tokenizer.json` has no scores of pieces.
    """
    model, proto = spec["model"], empty_model()
    if model["type"] not in ("BPE", "Unigram") or not _describe_text(spec, proto.normalizer_spec):
        return None
    added = {token["content"]: token for token in spec.get("added_tokens") or []}
    ids = parts.ids_of(model["vocab"]) | dict(parts.added_tokens_of(spec))
    tokens = {i: token for token, i in ids.items()}
    if model["type"] == "BPE":
        model_type, scores, unknown = BPE, _merge_scores(model), model.get("unk_token")
    else:
        model_type, scores, unknown = UNIGRAM, dict(model["vocab"]), tokens.get(model.get("unk_id"))
    if unknown not in ids:
        return None  # SentencePiece needs one
    byte_fallback, lowest = bool(model.get("byte_fallback")), min(scores.values(), default=0.0) - 1
    for i in range(1 + max(tokens)):
        token, kind, score = tokens.get(i, f"<hole {i}>"), UNUSED, 0.0
        if i in tokens:
            kind = _kind(token, unknown, added.get(token), byte_fallback)
        if kind in (NORMAL, USER_DEFINED):
            score = scores.get(token, lowest)
        proto.pieces.add(piece=token, score=score, type=kind)
    trainer = proto.trainer_spec
    trainer.model_type, trainer.byte_fallback = model_type, byte_fallback
    trainer.vocab_size = len(proto.pieces)
    for role, token in {**roles, "unk_token": unknown}.items():
        name = role.removesuffix("_token")
        setattr(trainer, f"{name}_id", ids.get(token, -1))
        if token in ids:
            setattr(trainer, f"{name}_piece", token)
    return bytes(proto.SerializeToString())


def _kind(token: str, unknown: str, added: Part | None, byte_fallback: bool) -> int:
    """The type of a piece."""
    if token == unknown:
        return UNKNOWN
    if added:
        return CONTROL if added["special"] else USER_DEFINED
    return BYTE if byte_fallback and BYTE_TOKEN.fullmatch(token) else NORMAL


def _merge_scores(model: Part) -> dict[str, float]:
    """Scores with which SentencePiece merges in the order of the merges: minus the rank of the first that forms it.

    It merges any neighbours that form a piece, the merges only those that they name. That is the same: two parts that
    no merge names never come to stand beside each other, since merges of lower rank have joined one of them to more.
    """
    ranks: dict[str, float] = {}
    for left, right in merge_pairs(model["merges"]):
        ranks.setdefault(left + right, -float(len(ranks)))
    return ranks


def adds_space(spec: Spec) -> bool | None:
    """Whether a SentencePiece tokenizer puts a space before text; None if SentencePiece cannot do what it does."""
    settings = empty_model().normalizer_spec
    return bool(settings.add_dummy_prefix) if _describe_text(spec, settings) else None


def _describe_text(spec: Spec, settings: Any) -> bool:
    """Write what is done to text before it is split into a `NormalizerSpec`; False if it cannot say so."""
    settings.name = "identity"
    settings.add_dummy_prefix = settings.remove_extra_whitespaces = False
    marked, trims = False, []
    for step in [*components(spec.get("normalizer")), *components(spec.get("pre_tokenizer"))]:
        match step:
            case {"type": "Precompiled", "precompiled_charsmap": charsmap}:
                settings.name, settings.precompiled_charsmap = "user_defined", base64.b64decode(charsmap)
            case {"type": "Prepend", "prepend": "▁"}:
                settings.add_dummy_prefix = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                marked = True
            case {"type": "Metaspace", "replacement": "▁", "split": False}:
                marked = True
                settings.add_dummy_prefix |= step.get("prepend_scheme", "always") != "never"
            case {"type": "Split", "pattern": {"String": " "}} if marked:
                pass  # Gemma's: no space is left to split at
            case _ if step in TRIMMED:
                trims.append(step)
            case _:
                return False
    settings.remove_extra_whitespaces = trims == TRIMMED
    return marked and trims in ([], TRIMMED)
