"""A `tokenizer.json` with other tokens: everything that names a token by id follows.

Special tokens keep their text and their order. Those that stood before all other tokens stay there; the others follow
after them, as they did before.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from lepta.vocabulary.sentencepiece import NEVER
from lepta.vocabulary.tokens import Kind, Vocabulary


def special_layout(vocabulary: Vocabulary) -> tuple[list[str], list[str]]:
    """Special tokens that stand before all other tokens, and those that stand after, both in order of id."""
    ordinary = [i for i, kind in enumerate(vocabulary.kinds) if kind in (Kind.TEXT, Kind.BYTE)]
    specials = [
        (i, (vocabulary.bytes_of[i] or b"").decode()) for i, kind in enumerate(vocabulary.kinds) if kind == Kind.SPECIAL
    ]
    first = ordinary[0] if ordinary else 0
    return [token for i, token in specials if i < first], [token for i, token in specials if i > first]


def rebuild(
    spec: Mapping[str, Any], ids: Mapping[str, int], model: Mapping[str, Any], **parts: dict[str, Any] | None
) -> dict[str, Any]:
    """Put another model into a `tokenizer.json`.

    Parameters
    ----------
    spec : mapping
        Contents of the old `tokenizer.json`; it is not changed.
    ids : mapping
        Token as `tokenizer.json` writes it -> new id, special tokens included.
    model : mapping
        The new `model`.
    parts : dict or None
        Other top-level parts to replace: `normalizer`, `pre_tokenizer`, `decoder`.
    """
    new = copy.deepcopy({key: value for key, value in spec.items() if key != "model"}) | parts | {"model": dict(model)}
    new["added_tokens"] = sorted(
        (token | {"id": ids[token["content"]]} for token in new.get("added_tokens") or []),
        key=lambda token: token["id"],
    )
    new["post_processor"] = post_processor_with_ids(new.get("post_processor"), ids)
    return new


def post_processor_with_ids(processor: dict[str, Any] | None, ids: Mapping[str, int]) -> dict[str, Any] | None:
    """A post-processor with the new ids of the special tokens that it adds."""
    if not processor:
        return None
    match processor["type"]:
        case "Sequence":
            return processor | {"processors": [post_processor_with_ids(part, ids) for part in processor["processors"]]}
        case "TemplateProcessing":
            added = {
                name: entry | {"ids": [ids[token] for token in entry["tokens"]]}
                for name, entry in processor["special_tokens"].items()
            }
            return processor | {"special_tokens": added}
        case "BertProcessing" | "RobertaProcessing":
            return processor | {role: [processor[role][0], ids[processor[role][0]]] for role in ("sep", "cls")}
        case _:
            return processor


def added_token(token_id: int, content: str, special: bool = True) -> dict[str, Any]:
    """An entry of `added_tokens`: a token that is matched in text as it is written."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": token_id, "content": content} | flags


def add_special_tokens(spec: Mapping[str, Any], tokens: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add special tokens whose ids follow the largest one, or that the model's own vocabulary has already.

    All special tokens join the model's own vocabulary: `tokenizers` gives one that is not in it the next free id.

    Parameters
    ----------
    spec : mapping
        Contents of a `tokenizer.json`; it is not changed.
    tokens : sequence of mapping
        Entries of `added_tokens`, in order of id.
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


def config_with_ids(config: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    """A `tokenizer_config.json` that names special tokens by their new ids, and is read by `tokenizer.json` alone.

    `PreTrainedTokenizerFast` runs what `tokenizer.json` says; classes of single models (`LlamaTokenizer`) rebuild parts
    of it as they think best.
    """
    changed = dict(config) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    if isinstance(config.get("added_tokens_decoder"), dict):
        tokens = config["added_tokens_decoder"].values()
        changed["added_tokens_decoder"] = {str(ids[token["content"]]): token for token in tokens}
    for key in ("auto_map", "add_prefix_space", "legacy", "sp_model_kwargs", "use_default_system_prompt"):
        changed.pop(key, None)
    return changed


def merge_lines(pairs: Sequence[tuple[str, str]], like: Sequence[Any]) -> list[Any]:
    """Merges as the file writes them: older files "a b", newer ones ["a", "b"]."""
    if like and isinstance(like[0], str):
        return [" ".join(pair) for pair in pairs]
    return [list(pair) for pair in pairs]


def merge_pairs(lines: Sequence[Any]) -> list[tuple[str, str]]:
    """Merges of a `tokenizer.json`, written as strings or as pairs."""
    return [tuple(line.split(" ")) if isinstance(line, str) else tuple(line) for line in lines]  # type: ignore[misc]
