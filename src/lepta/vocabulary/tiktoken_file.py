"""Tokenizers of OpenAI's tiktoken form: LLaMA-3 `tokenizer.model`, Qwen `*.tiktoken`, Mistral `tekken.json`.

Such a file ranks the bytes of tokens and names no merges (see `pairs_of`). How text is cut into words is not in it
(Tekken's has it), so it is known here by the number of tokens.
"""

import base64
import binascii
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lepta.core.errors import LeptaError
from lepta.core.reading import conform, read_json
from lepta.vocabulary import tokenizer_json as parts
from lepta.vocabulary.families import to_byte_alphabet
from lepta.vocabulary.schema import REMEDY, Tekken
from lepta.vocabulary.tokenizer_json import Config, Part, Spec

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
# Special tokens of Tekken files that do not list them (before version v7).
_TOOLS = ["[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]"]
_OTHERS = ["[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"]
TEKKEN_SPECIALS = dict(enumerate(["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *_TOOLS, *_OTHERS]))


def _llama3_specials() -> list[str]:
    reserved = map("<|reserved_special_token_{}|>".format, itertools.count())
    return [_LLAMA3_NAMED.get(n) or next(reserved) for n in range(256)]


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What a tiktoken file does not say about its tokenizer."""

    name: str
    regex: str
    specials: list[str]
    roles: dict[str, str]
    normalizer: Part | None = None
    ignore_merges: bool = False


KNOWN_BY_SIZE = {
    128_000: _Known(
        name="LLaMA-3",
        regex=parts.LLAMA3_REGEX,
        specials=_llama3_specials(),
        roles={"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        ignore_merges=True,
    ),
    151_643: _Known(
        name="Qwen",
        regex=parts.QWEN2_REGEX,
        specials=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        roles={"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        normalizer={"type": "NFC"},
    ),
}


def read_tiktoken(path: Path) -> tuple[Spec, Config]:
    """Read a tiktoken file; LeptaError if it is none, or of a tokenizer that is not known here."""
    tokens: list[bytes] = []
    for number, line in enumerate(path.read_bytes().splitlines()):
        try:
            token, rank = line.split()
            tokens.append(base64.b64decode(token, validate=True))
            whole = int(rank) == number
        except (ValueError, binascii.Error):
            whole = False
        if not whole:
            raise LeptaError(f"{path}, line {number + 1}: expected a token in base64 and its rank {number}")
    known = KNOWN_BY_SIZE.get(len(tokens))
    if known is None:
        names = ", ".join(f"{known.name} ({size:,})" for size, known in KNOWN_BY_SIZE.items())
        raise LeptaError(
            f"{path}: a tiktoken file of {len(tokens):,} tokens does not say how it cuts text; known are {names}; "
            "give the model's tokenizer.json"
        )
    specials = dict(enumerate(known.specials, len(tokens)))
    return _spec_and_config(dict(enumerate(tokens)), specials, known)


def read_tekken(path: Path) -> tuple[Spec, Config]:
    """Read Mistral's `tekken.json`; see `read_tiktoken`. Special tokens come first, then tokens by rank."""
    data = conform(Tekken, read_json(path), path, REMEDY)
    config, first = data.config, data.config.default_num_special_tokens
    rows = data.vocab[: config.default_vocab_size - first]
    tokens = {first + row.rank: row.token_bytes for row in rows}
    named = {token.rank: token.token_str for token in data.special_tokens or []} or TEKKEN_SPECIALS
    known = _Known(
        name="Tekken",
        regex=config.pattern,
        specials=[named.get(n, f"<SPECIAL_{n}>") for n in range(first)],
        roles={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        ignore_merges=True,
    )
    return _spec_and_config(tokens, dict(enumerate(known.specials)), known)


def _spec_and_config(tokens: Mapping[int, bytes], specials: dict[int, str], known: _Known) -> tuple[Spec, Config]:
    written = {token_id: to_byte_alphabet(token) for token_id, token in tokens.items()}
    vocab = {token: token_id for token_id, token in sorted((specials | written).items())}
    spec = parts.tokenizer_json(
        parts.bpe_model(vocab, parts.pairs_of(list(written.values())), ignore_merges=known.ignore_merges),
        [parts.added_token(*item) for item in specials.items()],
        normalizer=known.normalizer,
        pre_tokenizer=parts.split_bytes(known.regex),
        post_processor=parts.start_with(known.roles.get("bos_token"), vocab),
        decoder=parts.byte_level(use_regex=True),
    )
    return spec, parts.tokenizer_config(known.roles)
