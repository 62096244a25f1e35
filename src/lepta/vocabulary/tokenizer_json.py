"""The contents of `tokenizer.json`: its parts, putting them together, and putting other tokens into a whole one.

`Part` is a normalizer, pre-tokenizer, post-processor, decoder or model, with its `type`; `Spec` is a whole file. The
format is that of the library `tokenizers`.
"""

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

Part = dict[str, Any]
Spec = dict[str, Any]
Config = dict[str, Any]  # contents of `tokenizer_config.json`

SPACE = "▁"  # what SentencePiece writes for a space
NEVER = -10_000.0  # score of tokens that text must not match by their names: special tokens and single bytes

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_REGEX = LLAMA3_REGEX.replace(r"\p{N}{1,3}", r"\p{N}")
# What ByteLevel itself does when it is told to use its expression.
GPT2_REGEX = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


# Parts.


def components(part: Part | None) -> list[Part]:
    """Flatten a normalizer, pre-tokenizer, post-processor or decoder to its single steps."""
    if not part:
        return []
    if part["type"] != "Sequence":
        return [part]
    key = next(key for key in ("normalizers", "pretokenizers", "processors", "decoders") if key in part)
    return list(itertools.chain.from_iterable(map(components, part[key])))


def byte_level(use_regex: bool) -> Part:
    """Change to the byte alphabet, without a space put before the text."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def split(regex: str) -> Part:
    """Pre-tokenizer that makes each match of a regular expression a word."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def sequence(*parts: Part) -> Part:
    """Pre-tokenizers one after the other."""
    return {"type": "Sequence", "pretokenizers": list(parts)}


def split_bytes(regex: str) -> Part:
    """The pre-tokenizer of byte-level BPE with a regular expression of its own."""
    return sequence(split(regex), byte_level(use_regex=False))


def replace(pattern: Part, content: str) -> Part:
    """Normalizer or decoder that replaces `{"String": ...}` or `{"Regex": ...}`."""
    return {"type": "Replace", "pattern": pattern, "content": content}


def sentencepiece_decoder(strips: bool) -> Part:
    """From tokens back to text; `strips` takes away the space that was put before the text."""
    steps: list[Part] = [replace({"String": SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if strips:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def around(first: Mapping[str, int], last: Mapping[str, int]) -> Part | None:
    """A post-processor that puts special tokens (token -> id) before and after each text; None if there are none."""
    if not first and not last:
        return None
    texts = []
    for type_id, name in enumerate("AB"):
        texts.append([{"SpecialToken": {"id": token, "type_id": type_id}} for token in first])
        texts[-1].append({"Sequence": {"id": name, "type_id": type_id}})
        texts[-1] += [{"SpecialToken": {"id": token, "type_id": type_id}} for token in last]
    tokens = {}
    for token, token_id in {**first, **last}.items():
        tokens[token] = {"id": token, "ids": [token_id], "tokens": [token]}
    return {
        "type": "TemplateProcessing",
        "single": texts[0],
        "pair": texts[0] + texts[1],
        "special_tokens": tokens,
    }


def start_with(token: str | None, ids: Mapping[str, int]) -> Part | None:
    """A post-processor that puts a special token before each text; None if there is no such token."""
    if not token or token not in ids:
        return None
    return around({token: ids[token]}, {})


def added_token(token_id: int, content: str, special: bool = True) -> Part:
    """An entry of `added_tokens`: a token that is matched in text as it is written."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": token_id, "content": content} | flags


def bpe_model(
    vocab: dict[str, int],
    merges: list[list[str]],
    *,
    ignore_merges: bool = False,
    unknown: str | None = None,
    fuse_unknown: bool = False,
    byte_fallback: bool = False,
) -> Part:
    """A BPE model. With `ignore_merges`, words that are tokens are not split, whatever the merges (LLaMA-3)."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": fuse_unknown,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": merges,
    }


# Whole files.


def tokenizer_json(
    model: Part,
    added_tokens: list[Part],
    *,
    normalizer: Part | None = None,
    pre_tokenizer: Part | None = None,
    post_processor: Part | None = None,
    decoder: Part,
) -> Spec:
    """Put a `tokenizer.json` together."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
    }


def tokenizer_config(roles: Mapping[str, str]) -> Config:
    """A `tokenizer_config.json` for `AutoTokenizer`; `roles` are `bos_token` and the like."""
    return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **roles}


def pairs_of(tokens: Sequence[str]) -> list[list[str]]:
    """The merges of a vocabulary that only ranks its tokens (tiktoken, SentencePiece): all pairs that form a token.

    They merge the neighbours that form the token of the lowest rank, so pairs come in order of what they form, then of
    their left and right parts.
    """
    rank = {token: n for n, token in enumerate(tokens)}
    pairs: list[list[str]] = []
    for token in tokens:
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        ways = [[left, right] for left, right in cuts if left in rank and right in rank]
        pairs += sorted(ways, key=lambda pair: (rank[pair[0]], rank[pair[1]]))
    return pairs


# Other tokens in a whole file: everything that names a token by id follows.


def rebuild(spec: Mapping[str, Any], ids: Mapping[str, int], model: Part, **parts: Part | None) -> Spec:
    """Put another model, and other top-level `parts`, into a copy of a `tokenizer.json`.

    `ids` gives the new id of each token as `tokenizer.json` writes it, special tokens included.
    """
    new = copy.deepcopy({key: value for key, value in spec.items() if key != "model"}) | parts | {"model": model}
    added = [token | {"id": ids[token["content"]]} for token in new.get("added_tokens") or []]
    new["added_tokens"] = sorted(added, key=lambda token: token["id"])
    new["post_processor"] = post_processor_with_ids(new.get("post_processor"), ids)
    return new


def post_processor_with_ids(processor: Part | None, ids: Mapping[str, int]) -> Part | None:
    """A post-processor with the new ids of the special tokens that it adds."""
    if not processor:
        return None
    match processor["type"]:
        case "Sequence":
            return processor | {"processors": [post_processor_with_ids(part, ids) for part in processor["processors"]]}
        case "TemplateProcessing":
            tokens = {}
            for name, entry in processor["special_tokens"].items():
                tokens[name] = entry | {"ids": [ids[token] for token in entry["tokens"]]}
            return processor | {"special_tokens": tokens}
        case "BertProcessing" | "RobertaProcessing":
            sep, cls = processor["sep"][0], processor["cls"][0]
            return processor | {"sep": [sep, ids[sep]], "cls": [cls, ids[cls]]}
        case _:
            return processor


def tokens_of(vocab: Any) -> Iterable[tuple[str, int]]:
    """Tokens with their ids in the vocabulary of a BPE, a mapping, or of a Unigram, a list of pieces with scores."""
    return vocab.items() if isinstance(vocab, dict) else [(piece[0], i) for i, piece in enumerate(vocab)]


def ids_of(vocab: Any) -> dict[str, int]:
    """Token -> id in the vocabulary of a BPE or of a Unigram."""
    return dict(tokens_of(vocab))


def added_tokens_of(spec: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Added tokens with their ids."""
    for token in spec.get("added_tokens") or []:
        yield token["content"], token["id"]


def add_special_tokens(spec: Spec, tokens: Sequence[Mapping[str, Any]]) -> Spec:
    """Add entries of `added_tokens`, in order of id: ids that follow the largest one or are in the vocabulary already.

    All special tokens join the model's own vocabulary: `tokenizers` gives one that is not in it the next free id.
    """
    if not tokens:
        return dict(spec)
    added = [*(spec.get("added_tokens") or []), *map(dict, tokens)]
    vocab = spec["model"]["vocab"]
    if isinstance(vocab, dict):
        vocab = vocab | {token["content"]: token["id"] for token in added if token["content"] not in vocab}
    else:  # Unigram: a list by id, with scores; special tokens are never chosen
        vocab = [*vocab, *([token["content"], NEVER] for token in added if token["id"] >= len(vocab))]
    return dict(spec) | {"model": spec["model"] | {"vocab": vocab}, "added_tokens": added}


def config_with_ids(config: Mapping[str, Any], spec: Spec) -> Config:
    """A `tokenizer_config.json` that names special tokens by their ids in `spec`.

    `PreTrainedTokenizerFast` runs what `tokenizer.json` says; classes of single models (`LlamaTokenizer`) rebuild parts
    of it as they think best.
    """
    ids = dict(added_tokens_of(spec))
    changed = dict(config) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    if isinstance(config.get("added_tokens_decoder"), dict):
        tokens = config["added_tokens_decoder"].values()
        changed["added_tokens_decoder"] = {str(ids[token["content"]]): token for token in tokens}
    for key in ("auto_map", "add_prefix_space", "legacy", "sp_model_kwargs", "use_default_system_prompt"):
        changed.pop(key, None)
    return changed


def config_for_all_versions(config: Mapping[str, Any]) -> Config:
    """A `tokenizer_config.json` whose names transformers 4 knows as well as 5."""
    changed = dict(config)
    if changed.get("tokenizer_class") == "TokenizersBackend":
        changed["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(changed.get("extra_special_tokens"), list):  # transformers 4 expects names of tokens here
        changed["additional_special_tokens"] = changed.pop("extra_special_tokens")
    return changed


def added_tokens_decoder(spec: Spec) -> dict[str, Part]:
    """The added tokens of a `tokenizer.json` as `tokenizer_config.json` lists them."""
    described = {}
    for token in spec.get("added_tokens") or []:
        fields = dict(token)
        described[str(fields.pop("id"))] = fields
    return described


def merge_lines(pairs: Sequence[tuple[str, str]], like: Sequence[Any]) -> list[Any]:
    """Merges as the file writes them: older files "a b", newer ones ["a", "b"]."""
    if like and isinstance(like[0], str):
        return list(map(" ".join, pairs))
    return list(map(list, pairs))


def model_with(model: Part, vocab: Mapping[str, int]) -> Part:
    """A BPE model with other tokens, and of its merges those between them."""
    merges = [pair for pair in merge_pairs(model["merges"]) if {*pair, "".join(pair)} <= vocab.keys()]
    return {**model, "vocab": dict(vocab), "merges": merge_lines(merges, model["merges"])}


def merge_pairs(lines: Sequence[Any]) -> list[tuple[str, str]]:
    """Merges of a `tokenizer.json`, written as strings or as pairs."""
    pairs = []
    for line in lines:
        if isinstance(line, str):
            line = line.split(" ")
        pairs.append(cast(tuple[str, str], tuple(line)))  # a merge is of two parts
    return pairs
