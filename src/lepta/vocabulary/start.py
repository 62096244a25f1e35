"""The vocabularies that scenarios start from: an alphabet (`bpe`), or the most useful old tokens (`optimized`)."""

from collections.abc import Sequence
from operator import itemgetter

import numpy as np

from lepta.core.errors import LeptaError
from lepta.core.progress import step
from lepta.vocabulary.extend import count_characters
from lepta.vocabulary.families import ByteLevelBPE, byte_token, to_byte_alphabet
from lepta.vocabulary.settings import KeepBy
from lepta.vocabulary.tokenizer_json import Part, Spec, components, model_with, rebuild, sentencepiece_decoder
from lepta.vocabulary.tokens import Kind, Vocabulary

# Characters that a new SentencePiece vocabulary has tokens for make up this share of the text; the others become bytes.
CHARACTER_COVERAGE = 0.99999
ORDINARY = (Kind.TEXT, Kind.BYTE)


def alphabet(vocabulary: Vocabulary, words: Sequence[str], weights: np.ndarray) -> Spec:
    """The tokenizer with nothing but special tokens (and their merges), bytes and characters: where `bpe` starts."""
    if isinstance(vocabulary, ByteLevelBPE):
        return _restart(vocabulary, list(to_byte_alphabet(bytes(range(256)))))
    characters = map(vocabulary.written, map(str.encode, _characters(words, weights)))
    spec = _restart(vocabulary, [*map(byte_token, range(256)), *characters])
    strips = any(map(_strips, components(spec.get("decoder"))))
    return spec | {"model": spec["model"] | {"byte_fallback": True}, "decoder": sentencepiece_decoder(strips)}


def _strips(step: Part) -> bool:
    """Whether a step of a decoder takes away the space that was put before the text."""
    puts = step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never"
    return puts or step["type"] == "Strip"


def _characters(words: Sequence[str], weights: np.ndarray) -> list[str]:
    """The most frequent characters that make up `CHARACTER_COVERAGE` of the text."""
    counts = count_characters(words, weights)
    ranked = dict(counts.most_common())
    shares = np.cumsum(list(ranked.values())) / counts.total()
    return list(ranked)[: int(np.searchsorted(shares, CHARACTER_COVERAGE)) + 1]


@step("choosing the tokens to keep")
def kept_tokens(
    vocabulary: Vocabulary, words: Sequence[str], weights: np.ndarray, number: int | None, by: KeepBy
) -> Spec:
    """Shrink a BPE vocabulary to its `number` most useful tokens (paper 2.4.1, scenario `optimized`), None: to half.

    Single bytes and characters and all special tokens are kept, and with each token the two that merge into it, so that
    what is kept is reached exactly as before. Special tokens do not count for `number`. `frequency` keeps what is most
    used in the words (the paper's text), `rank` the lowest ids (its published code). Tokens keep their order, ids are
    dense.
    """
    ids, specials = vocabulary.ids_of(*ORDINARY), vocabulary.ids_of(Kind.SPECIAL)
    most = number_to_keep(vocabulary, number) + len(specials)
    kept = _always_kept(vocabulary)
    usage = np.zeros(vocabulary.size)
    if by == "frequency":
        usage = vocabulary.usage(words, weights)
    kept = most_useful(sorted(ids, key=lambda i: (-usage[i], i)), most, vocabulary.merge_parts, kept)
    by_id = sorted(vocabulary.spec["model"]["vocab"].items(), key=itemgetter(1))
    return _restart(vocabulary, [token for token, i in by_id if i in kept])


def most_useful(order: Sequence[int], most: int, parts: dict[int, tuple[int, ...]], kept: set[int]) -> set[int]:
    """`kept` and the first ids of `order`, each with all that it is merged from, `most` in all."""
    kept = set(kept)
    for i in order:
        if len(kept) == most:
            break
        needed = closure(i, parts, kept)
        if len(kept) + len(needed) <= most:
            kept |= needed
    return kept


def number_to_keep(vocabulary: Vocabulary, number: int | None) -> int:
    """How many tokens `kept_tokens` keeps, without special ones; LeptaError if it cannot keep so many, or so few."""
    ids = vocabulary.ids_of(*ORDINARY)
    number = len(ids) // 2 if number is None else number
    least = len(_always_kept(vocabulary)) - len(vocabulary.ids_of(Kind.SPECIAL))
    if not least <= number < len(ids):
        raise LeptaError(f"keep: {number}; expected from {least} (bytes and characters) to {len(ids) - 1}")
    return number


def _always_kept(vocabulary: Vocabulary) -> set[int]:
    parts = vocabulary.merge_parts
    kept = set(vocabulary.ids_of(*ORDINARY)) - parts.keys()
    for i in vocabulary.ids_of(Kind.SPECIAL):
        kept |= closure(i, parts, kept)
    return kept


def closure(token: int, parts: dict[int, tuple[int, ...]], kept: set[int]) -> set[int]:
    """A token with all tokens that it is merged from, less those kept already."""
    needed: set[int] = set()
    waiting = [token]
    while waiting:
        i = waiting.pop()
        if i not in kept and i not in needed:
            needed.add(i)
            waiting += parts.get(i, ())
    return needed


def _restart(vocabulary: Vocabulary, tokens: Sequence[str]) -> Spec:
    """The tokenizer with these tokens and the merges between them only, special tokens before all others, or after."""
    before, after = vocabulary.special_layout()
    specials = {*before, *after}
    ordinary = [token for token in tokens if token not in specials]
    ids = {token: i for i, token in enumerate([*before, *ordinary, *after])}
    return rebuild(vocabulary.spec, ids, model_with(vocabulary.spec["model"], ids))
