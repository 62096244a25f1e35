"""The tokenizer inside a GGUF file, as a `tokenizer.json`.

Of byte-level BPE, GGUF stores tokens and merges but only the *name* of the pre-tokenizer, so each name needs its
definition here. transformers' own conversion (5.23) ignores the name: it lets SmolLM2 merge " 5" where the model was
trained with every digit alone. Of SentencePiece BPE it stores pieces, scores and kinds, which are put together to a
SentencePiece model again, to be read as a `.model` file is.
"""

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from lepta.core.errors import LeptaError, explained
from lepta.core.reading import conform
from lepta.vocabulary import tokenizer_json as parts
from lepta.vocabulary.schema import REMEDY, GgufTokenizer
from lepta.vocabulary.sentencepiece_file import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    empty_model,
    spec_and_config,
)
from lepta.vocabulary.tokenizer_json import SPACE, Config, Part, Spec

DIGITS: Part = {"type": "Digits", "individual_digits": True}
# tokenizer.ggml.pre -> (pre-tokenizer, normalizer, ignore_merges)
PRE_TOKENIZERS: dict[str, tuple[Part, Part | None, bool]] = {
    "gpt-2": (parts.byte_level(use_regex=True), None, False),
    "smollm": (parts.sequence(DIGITS, parts.byte_level(use_regex=True)), None, False),
    "llama-bpe": (parts.split_bytes(parts.LLAMA3_REGEX), None, True),
    "qwen2": (parts.split_bytes(parts.QWEN2_REGEX), {"type": "NFC"}, False),
}
PREFIX = "tokenizer.ggml."  # of the fields that describe the tokenizer; below they are named without it
# Role of a special token -> its name in tokenizer.ggml.NAME_token_id.
GGUF_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
LLAMA_ROLES = {"unk": 0, "bos": 1, "eos": 2}  # what llama.cpp takes if a SentencePiece tokenizer does not say


class Header(NamedTuple):
    """What a GGUF file says of itself, before its weights."""

    fields: dict[str, Any]
    shapes: dict[str, list[int]]  # of each tensor, the dimension that is contiguous first


def read_gguf_header(path: Path) -> Header:
    """Read metadata and the shapes of the tensors of a GGUF file; LeptaError if it is not a whole GGUF file."""
    with explained(path, "not a whole GGUF file", REMEDY):
        status = path.stat()
        return _read_header(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1)  # gguf takes 2.3 s for a vocabulary of 49,152 tokens, and a command asks several times
def _read_header(path: Path, changed: int, size: int) -> Header:
    from lepta.vocabulary.gguf_reader import Reader  # with gguf, which most commands do not need

    reader = Reader(path)
    fields = {name: value.contents() for name, value in reader.fields.items()}
    return Header(fields, {tensor.name: tensor.shape.tolist() for tensor in reader.tensors})


def read_gguf_fields(path: Path) -> dict[str, Any]:
    """Read the metadata of a GGUF file; LeptaError if it is not a whole GGUF file."""
    return dict(read_gguf_header(path).fields)


def read_gguf_tokenizer(path: Path, fields: dict[str, Any]) -> tuple[Spec, Config, str | None]:
    """Make tokenizer, its config and the chat template out of the metadata of a GGUF file (`read_gguf_fields`).

    LeptaError if the tokenizer is of a kind not known here.
    """
    own = {name.removeprefix(PREFIX): value for name, value in fields.items() if name.startswith(PREFIX)}
    if "model" in own:
        conform(GgufTokenizer, own, path, REMEDY)
    match own.get("model"):
        case "gpt2":
            spec, config = _byte_level(path, own)
        case "llama":
            with explained(path, "its tokens are no SentencePiece model", REMEDY):
                spec, config = spec_and_config(_sentencepiece_model(path, own))
            spec["post_processor"] = _post_processor(own, _roles(own, LLAMA_ROLES), starts=True)
        case other:
            raise LeptaError(
                f"{path}: tokenizer.ggml.model is {other!r}, known are gpt2 (byte-level BPE) and llama (SentencePiece "
                "BPE); give the model's tokenizer.json"
            )
    architecture = fields.get("general.architecture")
    if context := fields.get(f"{architecture}.context_length"):
        config["model_max_length"] = context
    return spec, config, fields.get("tokenizer.chat_template")


def _byte_level(path: Path, fields: Mapping[str, Any]) -> tuple[Spec, Config]:
    pre = fields.get("pre", "gpt-2")
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise LeptaError(f"{path}: tokenizer.ggml.pre is {pre!r}, known are {known}; give the model's tokenizer.json")
    pre_tokenizer, normalizer, ignore_merges = PRE_TOKENIZERS[pre]
    tokens, types = _columns(path, fields, "tokens", "token_type")
    added = []
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (CONTROL, USER_DEFINED):
            added.append(parts.added_token(i, token, special=kind == CONTROL))
    roles = _roles(fields, {})
    # llama.cpp's converter calls rows that no token has, which pad the matrix, "[PAD151665]" and the like.
    vocab = {token: i for i, token in enumerate(tokens) if types[i] != UNUSED}
    merges = [merge.split(" ") for merge in fields["merges"]]
    spec = parts.tokenizer_json(
        parts.bpe_model(vocab, merges, ignore_merges=ignore_merges),
        added,
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizer,
        post_processor=_post_processor(fields, roles, starts=pre == "llama-bpe"),
        decoder=parts.byte_level(use_regex=True),
    )
    return spec, parts.tokenizer_config({f"{role}_token": tokens[token_id] for role, token_id in roles.items()})


def _sentencepiece_model(path: Path, fields: Mapping[str, Any]) -> Any:
    """The SentencePiece model (`ModelProto`) that a GGUF file was made of; LeptaError if its columns do not agree."""
    proto = empty_model()
    prefix = bool(fields.get("add_space_prefix", True))
    tokens, scores, kinds = _columns(path, fields, "tokens", "scores", "token_type")
    if other := set(kinds) - set(range(NORMAL, BYTE + 1)):
        raise LeptaError(f"{path}: a token of type {min(other)}, expected {NORMAL} to {BYTE}; convert the model again")
    for token, score, kind in zip(tokens, scores, kinds, strict=True):
        if kind == USER_DEFINED and not prefix:
            # llama.cpp finds these before it writes "▁" for spaces, so GGUF has their spaces as they are.
            token = token.replace(" ", SPACE)
        proto.pieces.add(piece=token, score=score, type=kind)
    [(piece, number)] = Counter(piece.piece for piece in proto.pieces).most_common(1)
    if number > 1:
        raise LeptaError(f"{path}: {number:,} tokens are {piece!r}, expected one; give the model's tokenizer.json")
    roles = _roles(fields, LLAMA_ROLES)
    for role in GGUF_ROLES:
        setattr(proto.trainer_spec, f"{role}_id", roles.get(role, -1))
    if "unk" in roles:
        proto.pieces[roles["unk"]].type = UNKNOWN  # a file may call it a control token
    proto.trainer_spec.model_type = BPE
    proto.trainer_spec.byte_fallback = BYTE in kinds
    proto.normalizer_spec.add_dummy_prefix = prefix
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto


def _columns(path: Path, fields: Mapping[str, Any], *names: str) -> list[list[Any]]:
    """Lists with an entry for each token."""
    columns = [fields.get(name) or [] for name in names]
    lengths = set(map(len, columns))
    if len(lengths) > 1 or 0 in lengths:
        what = ", ".join(f"{len(column):,} {PREFIX}{name}" for name, column in zip(names, columns, strict=True))
        raise LeptaError(f"{path}: {what}; expected as many of each; convert the model again")
    return columns


def _roles(fields: Mapping[str, Any], defaults: Mapping[str, int]) -> dict[str, int]:
    """Ids of special tokens by role; as in llama.cpp, an id beyond the last token is as good as none."""
    size = len(fields["tokens"])
    roles = dict(defaults)
    for role, name in GGUF_ROLES.items():
        token_id = fields.get(f"{name}_token_id", size)
        if 0 <= token_id < size:
            roles[role] = token_id
    return {role: token_id for role, token_id in roles.items() if token_id < size}


def _post_processor(fields: Mapping[str, Any], roles: Mapping[str, int], starts: bool) -> Part | None:
    """Put around texts what the file says; `starts` is what llama.cpp does before them if it says nothing."""
    tokens = fields["tokens"]
    sides = []
    for role, default in (("bos", starts), ("eos", False)):
        wanted = fields.get(f"add_{role}_token", default) and role in roles
        sides.append({tokens[roles[role]]: roles[role]} if wanted else {})
    return parts.around(*sides)
