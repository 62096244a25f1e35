"""The vocabularies that scenarios start from: an alphabet (`bpe`), or the most useful old tokens (`optimized`)."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lepta.core.errors import LeptaError
from lepta.vocabulary.byte_level import ByteLevelBPE
from lepta.vocabulary.rebuild import merge_lines, merge_pairs, rebuild, special_layout
from lepta.vocabulary.scenarios import KeepBy
from lepta.vocabulary.sentencepiece import byte_token
from lepta.vocabulary.sentencepiece_file import decoder
from lepta.vocabulary.tokens import Kind, Vocabulary, components

# Characters that a new SentencePiece vocabulary has tokens for make up this share of the text; the others become bytes.
CHARACTER_COVERAGE = 0.99999


def alphabet(vocabulary: Vocabulary, words: Sequence[str], weights: np.ndarray) -> dict[str, Any]:
    """The tokenizer with nothing but special tokens, bytes and characters: what a new BPE is learned from.

    Returns
    -------
    dict
        Contents of a `tokenizer.json` without merges, but those of special tokens.
    """
    if isinstance(vocabulary, ByteLevelBPE):
        tokens = [vocabulary.written(bytes([byte])) for byte in range(256)]
        return _restart(vocabulary, tokens)
    characters = (vocabulary.written(character.encode()) for character in _characters(words, weights))
    spec = _restart(vocabulary, [*map(byte_token, range(256)), *characters])
    strips = any(step["type"] == "Strip" for step in components(spec.get("decoder")))
    return spec | {"model": spec["model"] | {"byte_fallback": True}, "decoder": decoder(strips)}


def _characters(words: Sequence[str], weights: np.ndarray) -> list[str]:
    counts: Counter[str] = Counter()
    for word, weight in zip(words, weights.tolist(), strict=True):
        for character in word:
            counts[character] += weight
    shares = np.cumsum([count for _, count in counts.most_common()]) / counts.total()
    return [character for character, _ in counts.most_common()][: int(np.searchsorted(shares, CHARACTER_COVERAGE)) + 1]


def kept_tokens(
    vocabulary: Vocabulary,
    words: Sequence[str],
    weights: np.ndarray,
    number: int | None = None,
    by: KeepBy = "frequency",
) -> dict[str, Any]:
    """Shrink a BPE vocabulary to its most useful tokens (paper 2.4.1, scenario `optimized`).

    Single bytes and characters and all special tokens are kept, and with each token the two that merge into it, so that
    what is kept is reached exactly as before.

    Parameters
    ----------
    vocabulary : Vocabulary
    words : sequence of str
    weights : float array, shape (words,)
        How much each word counts.
    number : int, optional
        Tokens to keep, special tokens not counted; by default half.
    by : {"frequency", "rank"}
        `frequency`: most used in the words (the paper's text); `rank`: lowest ids (its published code).

    Returns
    -------
    dict
        Contents of the smaller `tokenizer.json`; tokens keep their order, ids are dense.
    """
    ids = [i for i, kind in enumerate(vocabulary.kinds) if kind in (Kind.TEXT, Kind.BYTE)]
    number = len(ids) // 2 if number is None else number
    parts = merge_parts(vocabulary)
    specials = np.flatnonzero(vocabulary.kinds == Kind.SPECIAL).tolist()
    kept = {i for i in ids if i not in parts}
    for i in specials:
        kept |= _closure(i, parts, kept)
    least, most = len(kept) - len(specials), number + len(specials)
    if not least <= number < len(ids):
        raise LeptaError(f"--keep {number}: expected from {least} (bytes and characters) to {len(ids) - 1}")
    usage = _usage(vocabulary, words, weights) if by == "frequency" else np.zeros(vocabulary.size)
    for i in sorted(ids, key=lambda i: (-usage[i], i)):
        needed = _closure(i, parts, kept)
        if len(kept) + len(needed) <= most:
            kept |= needed
        if len(kept) == most:
            break
    strings = {i: token for token, i in vocabulary.spec["model"]["vocab"].items()}
    return _restart(vocabulary, [strings[i] for i in ids if i in kept])


def merge_parts(vocabulary: Vocabulary) -> dict[int, tuple[int, ...]]:
    """The two tokens that really merge into each token, by running the merges of lower rank on it.

    LLaMA-3 has a few tokens that its merges do not lead to; it takes them for whole words only, and they have no parts.
    """
    model = vocabulary.spec["model"]
    vocab, ranks = model["vocab"], {}
    by_token: dict[str, list[tuple[str, str]]] = {}
    for rank, (left, right) in enumerate(merge_pairs(model["merges"])):
        ranks[left, right] = rank
        by_token.setdefault(left + right, []).append((left, right))
    parts: dict[int, tuple[int, ...]] = {}
    for token, ways in by_token.items():
        pair = ways[0] if len(ways) == 1 else _last_pair(token, ranks)
        parts[vocab[token]] = tuple(vocab[part] for part in pair)
    return parts


def _last_pair(token: str, ranks: dict[tuple[str, str], int]) -> tuple[str, ...]:
    """Merge a token up from its characters until two symbols are left; nothing if it does not come to that."""
    symbols = list(token)
    while len(symbols) > 2:
        pairs = ((ranks.get(pair), n) for n, pair in enumerate(itertools.pairwise(symbols)))
        best = min(((rank, n) for rank, n in pairs if rank is not None), default=None)
        if best is None:
            return ()
        n = best[1]
        symbols[n : n + 2] = ["".join(symbols[n : n + 2])]
    return tuple(symbols)


def _closure(token: int, parts: dict[int, tuple[int, ...]], kept: set[int]) -> set[int]:
    """A token with all tokens that it is merged from, less those kept already."""
    needed: set[int] = set()
    waiting = [token]
    while waiting:
        i = waiting.pop()
        if i not in kept and i not in needed:
            needed.add(i)
            waiting += parts.get(i, ())
    return needed


def _usage(vocabulary: Vocabulary, words: Sequence[str], weights: np.ndarray) -> np.ndarray:
    splits = vocabulary.split([word.encode() for word in words])
    lengths = np.fromiter(map(len, splits), np.int64, len(splits))
    flat = np.fromiter(itertools.chain.from_iterable(splits), np.int64, int(lengths.sum()))
    return np.bincount(flat, np.repeat(weights, lengths), minlength=vocabulary.size)


def _restart(vocabulary: Vocabulary, tokens: Sequence[str]) -> dict[str, Any]:
    """The tokenizer with these tokens and the merges between them only, special tokens before all others, or after."""
    before, after = special_layout(vocabulary)
    ids = {token: i for i, token in enumerate([*before, *(t for t in tokens if t not in {*before, *after}), *after])}
    model = vocabulary.spec["model"]
    merges = [pair for pair in merge_pairs(model["merges"]) if {*pair, "".join(pair)} <= ids.keys()]
    return rebuild(vocabulary.spec, ids, model | {"vocab": ids, "merges": merge_lines(merges, model["merges"])})
