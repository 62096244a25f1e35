"""New tokens spelt by their two parts in training, as BPE-dropout does, where a part would learn too little.

A token that nearly always merges with its neighbours hardly stands in text by itself, so its row hardly learns; yet
words that nobody has seen are written with it. Its parents, the tokens that it is a part of, are therefore spelt by
their parts now and then.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from lepta.vocabulary.tokens import Kind, Vocabulary

Paragraphs = Sequence[list[int]]


class Substitution:
    """Which tokens may be spelt by which two, and how often, as a share of their occurrences."""

    def __init__(self, vocabulary: Vocabulary, new_ids: np.ndarray, share: float) -> None:
        self.share = share
        self._new = np.zeros(vocabulary.size, dtype=bool)
        self._new[new_ids] = True
        # Tokens without two parts have themselves twice: such parts are never rarer.
        self._parts = np.repeat(np.arange(vocabulary.size)[:, None], 2, axis=1)
        for token, parts in two_parts(vocabulary).items():
            if self._new[token] and len(parts) == 2:
                self._parts[token] = parts

    def begin(self, seed: int) -> Callable[[Paragraphs], list[list[int]]]:
        """A function for the paragraphs of a text, some at a time and in order; it counts tokens along the way."""
        counts, draw = np.zeros(len(self._new), dtype=np.int64), np.random.default_rng(seed)

        def spell(paragraphs: Paragraphs) -> list[list[int]]:
            flat = np.fromiter(itertools.chain.from_iterable(paragraphs), np.int64)
            nonlocal counts
            counts += np.bincount(flat, minlength=len(counts))
            of_parts = np.where(self._new, counts, counts.max())[self._parts]  # old parts have learned enough
            chosen = (of_parts.min(axis=1) < counts)[flat] & (draw.random(len(flat)) < self.share)
            ends = np.cumsum(list(map(len, paragraphs)))
            starts = np.arange(len(flat)) + np.cumsum(chosen) - chosen
            spelt = np.empty(len(flat) + chosen.sum(), dtype=np.int64)
            spelt[starts] = np.where(chosen, self._parts[flat, 0], flat)
            spelt[starts[chosen] + 1] = self._parts[flat[chosen], 1]
            ends += np.concatenate([[0], np.cumsum(chosen)])[ends]
            return [part.tolist() for part in np.split(spelt, ends[:-1])]

        return spell


def two_parts(vocabulary: Vocabulary) -> dict[int, tuple[int, ...]]:
    """The two tokens that each token is put together from: those that merge, or the likelier two of a Unigram."""
    model = vocabulary.spec["model"]
    if "merges" in model:
        return vocabulary.merge_parts
    ids, scores = vocabulary.ids_by_bytes(Kind.TEXT), [score for _, score in model["vocab"]]
    found: dict[int, tuple[int, ...]] = {}
    for data, token in ids.items():
        cuts = [(ids.get(data[:n], -1), ids.get(data[n:], -1)) for n in range(1, len(data))]
        pairs = [pair for pair in cuts if min(pair) >= 0]
        if pairs:
            found[token] = max(pairs, key=lambda pair: scores[pair[0]] + scores[pair[1]])
    return found
