"""Tokenizers of OpenAI's tiktoken form: LLaMA-3 `tokenizer.model`, Qwen `*.tiktoken`, Mistral `tekken.json`.

Such a file ranks the bytes of tokens and names no merges: two neighbours merge if together they are a token, lowest
rank first. As a `tokenizer.json` that is every pair of tokens that forms a token, by the rank of what it forms.
How text is cut into words is not in the file (Tekken's has it), so it is known here by the number of tokens.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.text.locate import read_json
from lepta.vocabulary.byte_level import to_byte_alphabet
from lepta.vocabulary.pre_tokenizers import LLAMA3_REGEX, QWEN2_REGEX, byte_level, sequence, split, starts_with
from lepta.vocabulary.rebuild import added_token

_LLAMA3_NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}


def _llama3_specials() -> list[str]:
    reserved = iter(range(256))
    return [_LLAMA3_NAMED.get(n) or f"<|reserved_special_token_{next(reserved)}|>" for n in range(256)]


@dataclass(frozen=True)
class _Known:
    """What a tiktoken file does not say about its tokenizer."""

    name: str
    regex: str
    specials: list[str]
    roles: dict[str, str]
    normalizer: dict[str, Any] | None
    ignore_merges: bool
    starts_with: str | None = None


KNOWN_BY_SIZE = {
    128_000: _Known(
        "LLaMA-3",
        LLAMA3_REGEX,
        _llama3_specials(),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        None,
        ignore_merges=True,
        starts_with="<|begin_of_text|>",
    ),
    151_643: _Known(
        "Qwen",
        QWEN2_REGEX,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        {"type": "NFC"},
        ignore_merges=False,
    ),
}


def read_tiktoken(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a tiktoken file.

    Returns
    -------
    spec : dict
        Contents of a `tokenizer.json`.
    config : dict
        Contents of a `tokenizer_config.json`.

    Raises
    ------
    LeptaError
        If it is no such file, or of a tokenizer that is not known here.
    """
    tokens: list[bytes] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            tokens.append(base64.b64decode(token, validate=True))
            whole = int(rank) == len(tokens) - 1
        except (ValueError, binascii.Error):
            whole = False
        if not whole:
            raise LeptaError(f"{path}, line {number}: expected a token in base64 and its rank {number - 1}")
    known = KNOWN_BY_SIZE.get(len(tokens))
    if known is None:
        names = ", ".join(f"{known.name} ({size:,})" for size, known in KNOWN_BY_SIZE.items())
        raise LeptaError(
            f"{path}: a tiktoken file of {len(tokens):,} tokens does not say how it cuts text; known are {names}; "
            "give the model's tokenizer.json"
        )
    specials = dict(enumerate(known.specials, len(tokens)))
    ranks = dict(enumerate(tokens))
    spec = _spec(ranks, specials, known.regex, known.normalizer, known.ignore_merges, known.starts_with)
    return spec, {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **known.roles}


def read_tekken(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read Mistral's `tekken.json`; see `read_tiktoken`. Special tokens come first, then tokens by rank."""
    data = read_json(path)
    try:
        config = data["config"]
        specials_number, size = config["default_num_special_tokens"], config["default_vocab_size"]
        rows = data["vocab"][: size - specials_number]
        tokens = {specials_number + row["rank"]: base64.b64decode(row["token_bytes"]) for row in rows}
        pattern = config["pattern"]
    except (KeyError, TypeError, binascii.Error) as error:
        raise LeptaError(f"{path}: not a Tekken tokenizer (field {error}); copy or download it again") from error
    named = {row["rank"]: row["token_str"] for row in data.get("special_tokens") or []} or TEKKEN_SPECIALS
    specials = {n: named.get(n, f"<SPECIAL_{n}>") for n in range(specials_number)}
    spec = _spec(tokens, specials, pattern, None, ignore_merges=True, first="<s>")
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return spec, {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **roles}


# Special tokens of Tekken files that do not list them (before version v7).
_TOOLS = ["[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]"]
_OTHERS = ["[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"]
TEKKEN_SPECIALS = dict(enumerate(["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *_TOOLS, *_OTHERS]))


def pairs_of(tokens: Sequence[str]) -> list[list[str]]:
    """All pairs of tokens that form a token: in order of what they form, then of the left and the right part."""
    rank = {token: n for n, token in enumerate(tokens)}
    pairs = []
    for token in tokens:
        parts = [
            (rank[left], rank[right], left, right)
            for cut in range(1, len(token))
            if (left := token[:cut]) in rank and (right := token[cut:]) in rank
        ]
        pairs += [[left, right] for _, _, left, right in sorted(parts)]
    return pairs


def _spec(
    tokens: dict[int, bytes],
    specials: dict[int, str],
    regex: str,
    normalizer: dict[str, Any] | None,
    ignore_merges: bool,
    first: str | None,
) -> dict[str, Any]:
    written = {token_id: to_byte_alphabet(token) for token_id, token in tokens.items()}
    vocab = {token: token_id for token_id, token in sorted((specials | written).items())}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(i, token) for i, token in specials.items()],
        "normalizer": normalizer,
        "pre_tokenizer": sequence(split(regex), byte_level(use_regex=False)),
        "post_processor": starts_with(first, vocab[first]) if first else None,
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
            "vocab": vocab,
            "merges": pairs_of(list(written.values())),
        },
    }
