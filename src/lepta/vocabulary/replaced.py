"""Scenario `replaced`: the least useful tokens give their ids to new ones, so the vocabulary keeps its size.

start = without_least_useful(vocabulary, 8_000, words, weights, "Cyrillic")  # ids of all other tokens stay
spec = into_freed_ids(vocabulary, start, extend(start, ...))

Text whose tokens all stay is split as before: the merges that it needs are still there, in their order, and new ones
come after them.
"""

from collections import Counter
from collections.abc import Sequence
from operator import itemgetter

import numpy as np
import regex

from lepta.core.errors import LeptaError
from lepta.core.progress import step
from lepta.vocabulary.extend import count_characters, is_certain, only_characters
from lepta.vocabulary.families import ByteLevelBPE
from lepta.vocabulary.start import closure, most_useful
from lepta.vocabulary.tokenizer_json import Spec, model_with
from lepta.vocabulary.tokens import Kind, Vocabulary

# Scripts whose letters stand in text of every language, or in none. What is not assigned is in no text.
COMMON_SCRIPTS = ("Latin", "Common", "Inherited", "Unknown")


@step("choosing the tokens to replace")
def without_least_useful(
    vocabulary: Vocabulary, number: int, words: Sequence[str], weights: np.ndarray, own_script: str | None
) -> Spec:
    """The tokenizer without its `number` least useful tokens; all others keep their ids.

    `own_script` is the one of the new tokens, which with Latin stays whole; None lets tokens of any script go.
    Special tokens, bytes and whatever a kept token is merged from never go. Of tokens that the words use equally
    seldom, most of them never, those go first whose rarest character is rarest in the words, then the last ones.
    LeptaError if so many cannot go.
    """
    parts = vocabulary.merge_parts
    kept = _needed(vocabulary, parts)
    if own_script:
        for i in _not_foreign(vocabulary, own_script):
            kept |= closure(i, parts, kept)
    candidates = [i for i in vocabulary.ids_of(Kind.TEXT) if i not in kept]
    if number > len(candidates):
        raise LeptaError(_too_many(number, len(candidates), own_script))
    usage = vocabulary.usage(words, weights)
    rarest = _rarest_characters(vocabulary, candidates, count_characters(words, weights))
    order = sorted(candidates, key=lambda i: (-usage[i], -rarest[i], i))
    kept = most_useful(order, len(kept) + len(candidates) - number, parts, kept)
    freed = set(candidates) - kept
    model = vocabulary.spec["model"]
    vocab = {token: i for token, i in model["vocab"].items() if i not in freed}
    return vocabulary.spec | {"model": model_with(model, vocab)}


def _too_many(number: int, available: int, own_script: str | None) -> str:
    if own_script is None:
        return (
            f"add: {number:,}, but only {available:,} tokens can give up their ids; special tokens, bytes and what "
            "they are merged from must stay. Ask for fewer"
        )
    return (
        f"add: {number:,}, but only {available:,} tokens of scripts other than Latin and {own_script} can give up "
        "their ids; ask for fewer, or give `keep_text`, text of all languages that shall stay, so that any token can"
    )


def _needed(vocabulary: Vocabulary, parts: dict[int, tuple[int, ...]]) -> set[int]:
    """Ids of special tokens, bytes and the unknown token, and what special ones are merged from.

    Single characters are needed too where they cannot be written as bytes.
    """
    model = vocabulary.spec["model"]
    written_as_bytes = isinstance(vocabulary, ByteLevelBPE) or model.get("byte_fallback")
    kept = set(vocabulary.ids_of(Kind.BYTE))
    for i in vocabulary.ids_of(Kind.TEXT):
        if len(vocabulary.data(i)) == 1 or (not written_as_bytes and i not in parts):
            kept.add(i)
    if (unknown := model.get("unk_token")) in model["vocab"]:
        kept.add(model["vocab"][unknown])
    for i in vocabulary.ids_of(Kind.SPECIAL):
        kept |= closure(i, parts, kept)
    return kept


def _not_foreign(vocabulary: Vocabulary, own_script: str) -> list[int]:
    """Ids of tokens that text in Latin, in the own script or in no script at all can have."""
    known = "".join(rf"\p{{Script={script}}}" for script in (*COMMON_SCRIPTS, own_script))
    foreign, only_foreign = regex.compile(f"[^{known}]"), only_characters(f"[^{known}]")
    ids = vocabulary.ids_of(Kind.TEXT)
    return [i for i in ids if not is_certain(vocabulary.data(i), foreign, only_foreign)]


def _rarest_characters(vocabulary: Vocabulary, ids: Sequence[int], counts: Counter[str]) -> dict[int, float]:
    """How much the rarest character of each token counts in the words; 0 for tokens of parts of characters."""
    rarest = {}
    for i in ids:
        text = vocabulary.data(i).decode(errors="ignore")
        rarest[i] = min((counts[character] for character in text.strip(" ") or text), default=0.0)
    return rarest


def into_freed_ids(old: Vocabulary, start: Vocabulary, extended: Spec) -> Spec:
    """The tokenizer with the tokens that were learned on top of `start` at the ids that `old` has more than that.

    A token that was learned again gets its old id, so it keeps its row.
    """
    old_ids, freed = old.spec["model"]["vocab"], set(old.spec["model"]["vocab"].values())
    freed.difference_update(start.spec["model"]["vocab"].values())
    ids, learned = {}, []
    for token, i in sorted(extended["model"]["vocab"].items(), key=itemgetter(1)):
        if i < start.size:
            ids[token] = i
        elif token in old_ids:
            ids[token] = old_ids[token]
            freed.discard(old_ids[token])
        else:
            learned.append(token)
    free = iter(sorted(freed))
    for token in learned:
        ids[token] = next(free)
    vocab = dict(sorted(ids.items(), key=itemgetter(1)))
    return extended | {"model": extended["model"] | {"vocab": vocab}}
