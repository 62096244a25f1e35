"""Minimal pairs: of two sentences that differ in one thing, is the right one likelier? By phenomenon, as in BLiMP.

A sentence counts as a whole, after the token that starts a text, so vocabularies may differ.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lepta.core.errors import LeptaError
from lepta.core.intervals import Share, shares_of
from lepta.core.progress import progress
from lepta.core.reading import expanded
from lepta.evaluation.shipped import evaluation_file
from lepta.inference.bits import start_of_text
from lepta.inference.scoring import Branch, Scorer, token_ids
from lepta.models.load import load_model, load_tokenizer, opened
from lepta.text.formats import read_rows

BATCH = 64  # pairs that are read together
ALL = "all"


@dataclass(frozen=True)
class Pair:
    """Two sentences, and what they differ in."""

    good: str
    bad: str
    phenomenon: str


def read_pairs(source: str | Path) -> list[Pair]:
    """Pairs of a file of rows, or of those that come with LEPTA (`ru`); LeptaError names a line that is none."""
    pairs = []
    for row in read_rows(evaluation_file(source, "pairs", ".jsonl")):
        fields = list(map(row.value.get, ("good", "bad", "phenomenon")))
        if not all(isinstance(text, str) and text.strip() for text in fields) or fields[0] == fields[1]:
            raise LeptaError(
                f'{row.where}: no pair; expected "good" and "bad", two different sentences, and "phenomenon"'
            )
        pairs.append(Pair(*map(str, fields)))
    if not pairs:
        raise LeptaError(f"{expanded(source)}: no pair in it")
    return pairs


def minimal_pairs(model: str | Path, pairs: Sequence[Pair]) -> dict[str, Share]:
    """Ask a model (a folder, a GGUF file, `package:NAME/FILE` or a hub id) which sentence of each pair is likelier.

    Gives phenomenon -> pairs whose right sentence is likelier; `all` comes last. Equal likelihoods count as wrong.
    LeptaError if the model cannot be read, or its tokenizer has no token that starts a text.
    """
    right = _likelier(model, pairs)
    named = zip((pair.phenomenon for pair in pairs), right, strict=True)
    return shares_of(named) | {ALL: Share.of(sum(right), len(right))}


def _likelier(model: str | Path, pairs: Sequence[Pair]) -> list[bool]:
    """Whether the right sentence of each pair is the likelier one."""
    right = list[bool]()
    with opened(model) as checkpoint, progress(f"{model}: reading pairs", len(pairs)) as bar:
        scorer, tokenizer = Scorer(load_model(checkpoint.folder)), load_tokenizer(checkpoint.folder)
        start = start_of_text(tokenizer, model)
        for begin in range(0, len(pairs), BATCH):
            part = pairs[begin : begin + BATCH]
            texts = [pair.good for pair in part] + [pair.bad for pair in part]
            branches = [Branch(ids, 1) for ids in token_ids(tokenizer, texts, (start,))]
            sums = list(map(sum, scorer.score(branches)))
            right += map(operator.gt, sums[: len(part)], sums[len(part) :])
            bar.set(len(right))
    return right
