"""The tokenizer inside a GGUF file, as a `tokenizer.json`.

Of byte-level BPE, GGUF stores tokens and merges but only the *name* of the pre-tokenizer, so each name needs its
definition here. transformers' own conversion (5.23) ignores the name: it lets SmolLM2 merge " 5" where the model was
trained with every digit alone. Of SentencePiece BPE it stores pieces, scores and kinds, which are put together to a
SentencePiece model again, to be read as a `.model` file is.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.vocabulary.pre_tokenizers import LLAMA3_REGEX, QWEN2_REGEX, around, byte_level, sequence, split
from lepta.vocabulary.rebuild import added_token
from lepta.vocabulary.sentencepiece import SPACE
from lepta.vocabulary.sentencepiece_file import BPE, BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, spec_and_config

# tokenizer.ggml.pre -> (pre-tokenizer, normalizer, ignore_merges)
PRE_TOKENIZERS: dict[str, tuple[dict[str, Any], dict[str, Any] | None, bool]] = {
    "gpt-2": (byte_level(use_regex=True), None, False),
    "smollm": (
        sequence({"type": "Digits", "individual_digits": True}, byte_level(use_regex=True)),
        None,
        False,
    ),
    "llama-bpe": (sequence(split(LLAMA3_REGEX), byte_level(use_regex=False)), None, True),
    "qwen2": (sequence(split(QWEN2_REGEX), byte_level(use_regex=False)), {"type": "NFC"}, False),
}
# Role of a special token -> its name in tokenizer.ggml.NAME_token_id.
GGUF_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
LLAMA_ROLES = {"unk": 0, "bos": 1, "eos": 2}  # what llama.cpp takes if a SentencePiece tokenizer does not say


def read_gguf_tokenizer(
    path: Path, fields: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """Read the tokenizer of a GGUF file.

    Parameters
    ----------
    path : Path
    fields : dict, optional
        What `read_gguf_fields` gave for it, to save reading it again.

    Returns
    -------
    spec : dict
        Contents of a `tokenizer.json`.
    config : dict
        Contents of a `tokenizer_config.json`.
    chat_template : str or None

    Raises
    ------
    LeptaError
        If the file is no GGUF file, or its tokenizer is of a kind not known here.
    """
    fields = read_gguf_fields(path) if fields is None else fields
    match fields.get("tokenizer.ggml.model"):
        case "gpt2":
            spec, config = _byte_level(path, fields)
        case "llama":
            spec, config = spec_and_config(sentencepiece_model(path, fields))
            spec["post_processor"] = _post_processor(fields, _roles(fields, LLAMA_ROLES), starts=True)
        case other:
            raise LeptaError(
                f"{path}: tokenizer.ggml.model is {other!r}, known are gpt2 (byte-level BPE) and llama (SentencePiece "
                "BPE); give the model's tokenizer.json"
            )
    architecture = fields.get("general.architecture")
    if context := fields.get(f"{architecture}.context_length"):
        config["model_max_length"] = context
    return spec, config, fields.get("tokenizer.chat_template")


def _byte_level(path: Path, fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    pre = fields.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise LeptaError(f"{path}: tokenizer.ggml.pre is {pre!r}, known are {known}; give the model's tokenizer.json")
    pre_tokenizer, normalizer, ignore_merges = PRE_TOKENIZERS[pre]
    tokens, types = _columns(path, fields, "tokens", "token_type")
    added = [
        added_token(i, token, special=kind == CONTROL)
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    roles = _roles(fields, {})
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": _post_processor(fields, roles, starts=pre == "llama-bpe"),
        "decoder": byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]],
        },
    }
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return spec, config | {f"{role}_token": tokens[token_id] for role, token_id in roles.items()}


def sentencepiece_model(path: Path, fields: dict[str, Any]) -> Any:
    """Put together the SentencePiece model (`ModelProto`) that a GGUF file was made of.

    Raises
    ------
    LeptaError
        If pieces, scores and kinds do not fit together.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    prefix = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
    tokens, scores, kinds = _columns(path, fields, "tokens", "scores", "token_type")
    if other := set(kinds) - set(range(NORMAL, BYTE + 1)):
        raise LeptaError(f"{path}: a token of type {min(other)}, expected {NORMAL} to {BYTE}; convert the model again")
    for token, score, kind in zip(tokens, scores, kinds, strict=True):
        # llama.cpp finds user-defined tokens before it writes "▁" for spaces, so GGUF has their spaces as they are.
        spaced = kind == USER_DEFINED and not prefix
        proto.pieces.add(piece=token.replace(" ", SPACE) if spaced else token, score=score, type=kind)
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


def _columns(path: Path, fields: dict[str, Any], *names: str) -> list[list[Any]]:
    """Lists with an entry for each token."""
    columns = {f"tokenizer.ggml.{name}": fields.get(f"tokenizer.ggml.{name}") for name in names}
    lengths = {name: len(column or []) for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or not all(lengths.values()):
        what = ", ".join(f"{length:,} {name}" for name, length in lengths.items())
        raise LeptaError(f"{path}: {what}; expected as many of each; convert the model again")
    return [column or [] for column in columns.values()]


def _roles(fields: dict[str, Any], defaults: dict[str, int]) -> dict[str, int]:
    """Ids of special tokens by role; as in llama.cpp, an id beyond the last token is as good as none."""
    size = len(fields["tokenizer.ggml.tokens"])
    given = {role: fields.get(f"tokenizer.ggml.{name}_token_id", size) for role, name in GGUF_ROLES.items()}
    roles = defaults | {role: token_id for role, token_id in given.items() if 0 <= token_id < size}
    return {role: token_id for role, token_id in roles.items() if token_id < size}


def _post_processor(fields: dict[str, Any], roles: dict[str, int], starts: bool) -> dict[str, Any] | None:
    """Put around texts what the file says; `starts` is what llama.cpp does before them if it says nothing."""
    tokens = fields["tokenizer.ggml.tokens"]
    wanted = {
        "bos": fields.get("tokenizer.ggml.add_bos_token", starts),
        "eos": fields.get("tokenizer.ggml.add_eos_token", False),
    }
    first, last = (
        {tokens[roles[role]]: roles[role]} if wanted[role] and role in roles else {} for role in ("bos", "eos")
    )
    return around(first, last) if first or last else None


def read_gguf_fields(path: Path) -> dict[str, Any]:
    """Read the metadata of a GGUF file; LeptaError if it is not a whole GGUF file."""
    from gguf import GGUFReader

    try:
        return {name: value.contents() for name, value in GGUFReader(path).fields.items()}
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise LeptaError(f"{path}: not a whole GGUF file ({error}); download it again") from error
