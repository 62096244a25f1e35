"""The tokenizer inside a GGUF file, as a `tokenizer.json`.

GGUF stores tokens and merges but only the *name* of the pre-tokenizer, so each name needs its definition here.
transformers' own conversion (5.23) ignores the name: it lets SmolLM2 merge " 5" where the model was trained with every
digit alone.
"""

from pathlib import Path
from typing import Any

from lepta.errors import LeptaError
from lepta.vocabulary.pre_tokenizers import LLAMA3_REGEX, QWEN2_REGEX, byte_level, sequence, split, starts_with
from lepta.vocabulary.rebuild import added_token

CONTROL_TOKEN, USER_DEFINED_TOKEN = 3, 4  # tokenizer.ggml.token_type

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


def read_gguf_tokenizer(path: Path) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """Read the tokenizer of a GGUF file.

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
    fields = read_gguf_fields(path)
    model, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "gpt-2")
    if model != "gpt2":
        raise LeptaError(f"{path}: tokenizer.ggml.model is {model!r}; expected 'gpt2' (byte-level BPE)")
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise LeptaError(f"{path}: tokenizer.ggml.pre is {pre!r}, known are {known}; give the model's tokenizer.json")
    pre_tokenizer, normalizer, ignore_merges = PRE_TOKENIZERS[pre]
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    added = [
        added_token(i, token, special=kind == CONTROL_TOKEN)
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL_TOKEN, USER_DEFINED_TOKEN)
    ]
    bos: int = fields.get("tokenizer.ggml.bos_token_id", -1)
    starts = bos >= 0 and fields.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe")  # the default of llama.cpp
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": starts_with(tokens[bos], bos) if starts else None,
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
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role, gguf_role in roles.items():
        if (token_id := fields.get(f"tokenizer.ggml.{gguf_role}_token_id")) is not None:
            config[f"{role}_token"] = tokens[token_id]
    architecture = fields.get("general.architecture")
    if context := fields.get(f"{architecture}.context_length"):
        config["model_max_length"] = context
    return spec, config, fields.get("tokenizer.chat_template")


def read_gguf_fields(path: Path) -> dict[str, Any]:
    """Read the metadata of a GGUF file; LeptaError if it is not a whole GGUF file."""
    from gguf import GGUFReader

    try:
        return {name: value.contents() for name, value in GGUFReader(path).fields.items()}
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise LeptaError(f"{path}: not a whole GGUF file ({error}); download it again") from error
