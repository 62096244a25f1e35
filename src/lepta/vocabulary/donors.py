"""Tokens of other tokenizers as candidates beside what is learned from text.

A donor's token stands among the words with the weight of the text that the donor writes with it, so merges lead to it
if text is shorter for it. What the text never uses is no candidate.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import regex

from lepta.core.errors import LeptaError
from lepta.text.locate import locate
from lepta.vocabulary.extend import words_of_script
from lepta.vocabulary.source import TOKENIZER_FILES, AnyTokenizer, open_tokenizer
from lepta.vocabulary.tokens import Kind, Vocabulary
from lepta.vocabulary.words import WordCounter, WordTable

LEAST_LETTERS = 2  # a token of one letter is no candidate: it is there, or a merge away


def donor_places(donors: Sequence[str]) -> dict[str, Path]:
    """Donors as inputs of a stage."""
    return {f"donor {number}": locate(donor, hub_files=TOKENIZER_FILES) for number, donor in enumerate(donors, 1)}


class Candidates(NamedTuple):
    """What tokens are learned from."""

    words: Sequence[str]
    weights: np.ndarray  # of each word
    of_donors: dict[str, list[str]]  # donor -> those of the words that are its tokens

    def taken(self, old: Vocabulary, new: Vocabulary) -> dict[str, dict[str, int]]:
        """For each donor, how many of its tokens the old vocabulary lacked, and how many of those the new one has."""
        before, after = old.ids_by_bytes(Kind.TEXT), new.ids_by_bytes(Kind.TEXT)
        facts = {}
        for donor, tokens in self.of_donors.items():
            candidates = set(map(str.encode, tokens)) - before.keys()
            facts[donor] = {"candidates": len(candidates), "taken": len(candidates & after.keys())}
        return facts


def with_donors(
    words: WordTable, weights: np.ndarray, donors: Sequence[AnyTokenizer], script: str, rules: dict[str, Any]
) -> Candidates:
    """Words with their weights, and behind them the donors' tokens in a script; LeptaError if a donor has none.

    `rules` (`Vocabulary.word_rules`) cut tokens as they cut text: what spans two words is no token here.
    """
    letters = regex.compile(rf"(?:\p{{Script={script}}}\P{{L}}*){{{LEAST_LETTERS},}}")
    tokens, counts, of_donors = list(words.words), [weights], dict[str, list[str]]()
    for donor in donors:
        source = open_tokenizer(donor)
        vocabulary = source.vocabulary()
        usage = vocabulary.usage(words.words, weights)
        texts = {i: vocabulary.data(i).decode(errors="replace") for i in vocabulary.ids_of(Kind.TEXT)}
        own = {text: float(usage[i]) for i, text in texts.items() if letters.search(text)}
        if not own:
            raise LeptaError(
                f"donor {source.origin}: no token in the script {script}; expected a tokenizer made for the target "
                "language, or one of many languages"
            )
        counter = WordCounter(rules)
        counter.add_counts(source.origin, {text: use for text, use in own.items() if use})
        table = counter.table()
        if any(map(letters.search, table.words)):
            table = words_of_script(table, script)
            tokens += table.words
            of_donors[source.origin] = list(table.words)
            counts.append(table.counts.sum(axis=1))
    return Candidates(tokens, np.concatenate(counts), of_donors)
