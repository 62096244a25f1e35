"""Which passages of a text rows are learned from: each new token occurs often enough, as far as the text can."""

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import regex

from lepta.core.errors import LeptaError
from lepta.core.progress import track
from lepta.distillation.settings import HELD_OUT_SHARE, SHORTEST
from lepta.vocabulary.alignment import Aligner, Alignment

POOL = 6  # times the tokens that are wanted: what passages are chosen from
AT_ONCE = 512  # passages that are tokenised together


@dataclass(frozen=True)
class Passages:
    """Aligned passages, and how often each token occurs."""

    chosen: list[Alignment]  # to learn from, in random order
    held_out: list[Alignment]  # to measure on
    counts: np.ndarray  # (V,), int64: occurrences in what was chosen
    whole: bool  # nothing of the text is left but what was put aside
    # The same of the language that the model knows, if it is read.
    source: list[Alignment] = field(default_factory=list)
    source_held_out: list[Alignment] = field(default_factory=list)


def cut(document: str, length: int) -> list[str]:
    """Cut a document into passages of about `length` characters, at white space where there is some."""
    pieces = regex.findall(rf"(?s).{{1,{length}}}(?=\s|$)|.{{{length}}}", document.strip())
    return list(map(str.strip, pieces))


def _shuffled_pieces(documents: Iterable[str], length: int, draw: random.Random) -> list[str]:
    pieces: list[str] = []
    for document in documents:
        pieces += cut(document, length)
    draw.shuffle(pieces)
    return pieces


def choose_passages(
    documents: Iterable[str],
    aligner: Aligner,
    learned: np.ndarray,
    tokens: int,
    length: int,
    occurrences: int,
    held_out: int,
    seed: int,
) -> Passages:
    """Choose passages with `tokens` tokens of the new vocabulary in all.

    First those in which some learned token (by its id) has occurred less than `occurrences` times so far, then any. The
    text is read to its end: of much more than what is wanted, passages of `length` characters are drawn from all of it.
    `held_out` passages are put aside, if those are at most a tenth of all and have at most a fifth of `tokens`: to
    measure should not take longer than to learn. LeptaError if no learned token occurs.
    """
    draw = random.Random(seed)
    pieces = _shuffled_pieces(documents, length, draw)
    held_out = min(held_out, len(pieces) // 10)
    counts, learns = np.zeros(aligner.new.size, dtype=np.int64), np.zeros(aligner.new.size, dtype=bool)
    learns[learned] = True
    chosen: list[Alignment] = []
    others: list[Alignment] = []
    aside: list[Alignment] = []
    seen = taken = put_aside = 0
    whole = True
    batches = [pieces[start : start + AT_ONCE] for start in range(0, len(pieces), AT_ONCE)]
    for batch in track(batches, "aligning passages, batches", len(batches)):
        for passage in aligner.align(batch):
            if passage is None or len(passage.new_ids) < SHORTEST:
                continue
            ids = passage.new_ids[1:]
            if len(aside) < held_out and put_aside < tokens * HELD_OUT_SHARE:
                aside.append(passage)
                put_aside += len(ids)
                continue
            seen += len(ids)
            lacking = learns[ids] & (counts[ids] < occurrences)
            if taken < tokens and lacking.any():
                chosen.append(passage)
                taken += len(ids)
                np.add.at(counts, ids, 1)
            else:
                others.append(passage)
        if seen >= POOL * tokens:
            whole = batch is batches[-1]
            break
    for passage in others:
        if taken >= tokens:
            whole = False
            break
        chosen.append(passage)
        taken += len(passage.new_ids) - 1
        np.add.at(counts, passage.new_ids[1:], 1)
    if not counts[learned].any():
        raise LeptaError(
            f"distill: of {len(learned):,} tokens that are to learn none occurs in the text; expected text that the "
            "vocabulary was made for"
        )
    draw.shuffle(chosen)
    return Passages(chosen, aside, counts, whole)


def draw_passages(
    documents: Iterable[str], aligner: Aligner, tokens: int, length: int, held_out: int, seed: int
) -> tuple[list[Alignment], list[Alignment]]:
    """Draw passages with `tokens` tokens in all from a text, and at most `held_out` others (a tenth).

    Passages of a shorter text are used several times: they only have to stay what they are. LeptaError if there is
    none.
    """
    pieces = _shuffled_pieces(documents, length, random.Random(seed))
    held_out = min(held_out, len(pieces) // 10)
    drawn: list[Alignment] = []
    taken = 0
    for start in range(0, len(pieces), AT_ONCE):
        for passage in aligner.align(pieces[start : start + AT_ONCE]):
            if taken >= tokens or passage is None or len(passage.new_ids) < SHORTEST:
                continue
            drawn.append(passage)
            if len(drawn) > held_out:
                taken += len(passage.new_ids) - 1
        if taken >= tokens:
            break
    if not taken:
        raise LeptaError("distill: text of the source language has no passage to learn from; expected more of it")
    aside, chosen = drawn[:held_out], drawn[held_out:]
    different = len(chosen)
    while taken < tokens:
        chosen.append(chosen[len(chosen) % different])
        taken += len(chosen[-1].new_ids) - 1
    return chosen, aside


class Examples:
    """Aligned passages as examples of a run, in batches of similar length so that little is padding.

    A batch holds passages of one kind; what does not fill a batch is left out. `learned` are ids of the tokens that
    learn, of `size`. All positions count (`everywhere`), or those from the first learned token on: nothing changes
    before it.
    """

    def __init__(
        self, kinds: Sequence[list[Alignment]], learned: np.ndarray, size: int, batch: int, everywhere: bool, seed: int
    ) -> None:
        self._everywhere = everywhere
        self._learns = np.zeros(size, dtype=bool)
        self._learns[learned] = True
        batches: list[list[Alignment]] = []
        for passages in kinds:
            whole = len(passages) // batch * batch
            ordered = sorted(passages[:whole], key=lambda passage: len(passage.old_ids))
            batches.extend(ordered[start : start + batch] for start in range(0, whole, batch))
        random.Random(seed).shuffle(batches)
        self._passages = list(itertools.chain.from_iterable(batches))
        self.sizes = np.asarray([len(passage.new_ids) - 1 for passage in self._passages])

    def __len__(self) -> int:
        return len(self._passages)

    def __getitem__(self, number: Any) -> dict[str, Any]:
        passage = self._passages[number]
        learns = self._learns[passage.new_ids[passage.new_ends]]
        weights = (np.cumsum(learns) > 0) | self._everywhere  # the first learned token, and all that read it
        return {
            "old_ids": passage.old_ids,
            "new_ids": passage.new_ids,
            "old_ends": passage.old_ends,
            "new_ends": passage.new_ends,
            "weights": weights.astype(np.float32),
        }
