"""Words of a corpus and where they occur: the material that every vocabulary is learned from.

A vocabulary serves texts that nobody has seen yet, so a word counts by how widely it is used. Occurrences are kept
apart by source (the field `source` of a row, else the file) and, within a source, by part: each document goes whole
into one of a few parts, so the hero of one novel stays in one of them.
"""

import itertools
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import regex
from scipy import sparse
from tokenizers import Tokenizer, models, trainers

from lepta.core.errors import LeptaError
from lepta.core.progress import Meter
from lepta.text.sources import Document

PARTS = 8
# Text of one part is counted when so many characters have come together.
BATCH_CHARACTERS = 1_000_000
# Words beyond this number are forgotten, rarest first, so that memory does not grow with the corpus: 3 million words
# take about 0.5 GB. Running Russian of 10 GB has more, nearly all of them once.
MOST_WORDS = 3_000_000
LONGEST_WORD = 100  # characters; what is longer is no word (links, encoded data), and costs the trainers minutes
MOST_WAITING = 5_000_000  # counts that wait to join the table, 16 bytes each
MOST_SOURCES = 64
# Russian, characters per token of 32,000 new tokens (BPE) / of SmolLM2 with 8,000 more: plain counts 4.318 / 3.560 on
# held-out text of the sources trained on, and 4.053 on average over five sources each left out of training in turn;
# 0.6 and 0.8 4.344 / 3.564 and 4.113; 0.7 and 0.9 4.336 / 3.570 and 4.095; square roots, of whole sources,
# 4.277 / 3.474 and 4.134.
SOURCE_EXPONENT, PART_EXPONENT = 0.65, 0.85
# Words of a frequency list come in lower case and alone; in running Russian and English text about one in eight
# starts with a capital, and about one in twelve follows no space (after a line break, quote, bracket or hyphen).
CAPITALISED_SHARE, NO_SPACE_SHARE = 1 / 8, 1 / 12


@dataclass(frozen=True)
class WordTable:
    """Occurrences of words by part of the corpus."""

    words: list[str]  # as the tokenizer cuts them, most with the space before them
    counts: sparse.csr_array  # float64, shape (words, parts)
    sources: np.ndarray  # number of the source that each part belongs to
    names: list[str]  # of the sources

    def keep(self, pattern: str) -> "WordTable":
        """Only the words that a regular expression matches in full."""
        compiled = regex.compile(pattern)
        rows = [n for n, word in enumerate(self.words) if compiled.fullmatch(word)]
        return WordTable([self.words[row] for row in rows], self.counts[rows], self.sources, self.names)

    def hold_out(self) -> tuple["WordTable", "WordTable"]:
        """Leave out the first part of each source that has several; gives what is left, and what was left out."""
        _, first, parts = np.unique(self.sources, return_index=True, return_counts=True)
        out = np.zeros(len(self.sources), dtype=np.bool_)
        out[first[parts > 1]] = True
        if not out.any():
            raise LeptaError("size auto: too few documents to hold some out; give more text, or name a size")
        return self._parts(~out), self._parts(out)

    def _parts(self, mask: np.ndarray) -> "WordTable":
        return WordTable(self.words, self.counts[:, np.flatnonzero(mask)], self.sources[mask], self.names)


class WordCounter:
    """Counts words of a stream of documents in bounded memory; `rules` as `Vocabulary.word_rules` gives them."""

    def __init__(self, rules: dict[str, Any]) -> None:
        model = json.loads(Tokenizer(models.WordLevel()).to_str())
        self._tokenizer = Tokenizer.from_str(json.dumps(model | rules))
        self._ids = _numbering({})
        self._columns: dict[tuple[int, int], int] = {}
        self._names: dict[str, int] = {}
        self._table = sparse.csr_array((0, 0), dtype=np.float64)
        self._news: list[tuple[np.ndarray, np.ndarray, int]] = []
        self._waiting_counts = 0

    def add(self, documents: Iterable[Document], meter: Meter | None = None) -> None:
        """Count the words of documents; the meter is told how many million characters have been read."""
        for column, texts in self._batches(documents, meter):
            self._note(column, self._count(texts))

    def _batches(self, documents: Iterable[Document], meter: Meter | None) -> Iterator[tuple[int, list[str]]]:
        """Texts of one column each, about a million characters together."""
        waiting: defaultdict[int, list[str]] = defaultdict(list)
        lengths: Counter[int] = Counter()
        characters = 0
        for document in documents:
            column = self._column(document)
            waiting[column].append(document.text)
            lengths[column] += len(document.text)
            if lengths[column] >= BATCH_CHARACTERS:
                del lengths[column]
                yield column, waiting.pop(column)
            characters += len(document.text)
            if meter:
                meter.set(characters / 1e6)
        yield from waiting.items()

    def add_counts(self, name: str, counts: dict[str, float]) -> None:
        """Add words with known counts as a source of one part; they are cut as words of running text are."""
        source = self._names.setdefault(name, len(self._names))
        column = self._columns.setdefault((source, 0), len(self._columns))
        cut: defaultdict[str, float] = defaultdict(float)
        normalizer, pre_tokenizer = self._tokenizer.normalizer, self._tokenizer.pre_tokenizer
        for word, count in counts.items():
            if normalizer:
                word = normalizer.normalize_str(word)
            for piece, _ in pre_tokenizer.pre_tokenize_str(word):
                cut[piece] += count
        self._note(column, dict(cut))

    def table(self) -> WordTable:
        """All that was counted, words in alphabetical order: `tokenizers` counts them in an order of chance."""
        self._gather()
        sources = np.array([source for source, _ in self._columns], dtype=np.int64)
        words = sorted(self._ids)
        return WordTable(words, self._table[[self._ids[word] for word in words]], sources, list(self._names))

    def _column(self, document: Document) -> int:
        name = document.source if document.source in self._names or len(self._names) < MOST_SOURCES else "others"
        source = self._names.setdefault(name, len(self._names))
        part = zlib.crc32(document.name.encode()) % PARTS
        return self._columns.setdefault((source, part), len(self._columns))

    def _count(self, texts: list[str]) -> dict[str, float]:
        # `tokenizers` counts in parallel: a trainer that is asked for no tokens still counts its words. (67 million
        # characters: 4.4 s. A BPE trainer spells each word out and counts its pairs before it sees that there is
        # nothing to learn: 9.6 s.)
        trainer = trainers.WordLevelTrainer(vocab_size=0, show_progress=False)
        self._tokenizer.train_from_iterator(texts, trainer)
        words: dict[str, float] = json.loads(trainer.__getstate__())["WordLevelTrainer"]["words"]
        return words

    def _note(self, column: int, counts: dict[str, float]) -> None:
        if max(map(len, counts), default=0) > LONGEST_WORD:
            counts = {word: count for word, count in counts.items() if len(word) <= LONGEST_WORD}
        rows = np.fromiter(map(self._ids.__getitem__, counts), np.int64, len(counts))
        self._news.append((rows, np.fromiter(counts.values(), np.float64, len(counts)), column))
        self._waiting_counts += len(counts)
        if len(self._ids) > MOST_WORDS:
            self._forget()
        elif self._waiting_counts > MOST_WAITING:
            self._gather()

    def _gather(self) -> None:
        """Bring what was counted since the last time into the table."""
        shape = (len(self._ids), len(self._columns))
        old = self._table.tocoo()
        rows, columns, data = [old.row], [old.col], [old.data]
        for words, counts, column in self._news:
            rows.append(words)
            columns.append(np.full(len(words), column))
            data.append(counts)
        coordinates = np.concatenate(rows), np.concatenate(columns)
        self._table = sparse.csr_array((np.concatenate(data), coordinates), shape=shape)
        self._news, self._waiting_counts = [], 0

    def _forget(self) -> None:
        """Keep the more frequent half of the words."""
        self._gather()
        totals, words = self._table.sum(axis=1), list(self._ids)
        kept = sorted(range(len(words)), key=lambda row: (-totals[row], words[row]))[: MOST_WORDS // 2]
        self._ids = _numbering({words[row]: n for n, row in enumerate(kept)})
        self._table = self._table[kept]


def _numbering(ids: dict[str, int]) -> defaultdict[str, int]:
    """A dictionary that gives each new word the next number."""
    return defaultdict(itertools.count(len(ids)).__next__, ids)


def weigh(table: WordTable) -> np.ndarray:
    """How much each word counts for a vocabulary that is to serve texts of unseen sources; float array, shape (words,).

    A source of n words counts as n ** 0.65, and inside it a word as the sum of count ** 0.85 over the parts: ten uses
    in each of five novels weigh more than fifty in one, and no large source drowns the others.
    """
    totals = table.counts.sum(axis=0)
    damped = table.counts.copy()
    damped.data = damped.data**PART_EXPONENT
    weights = np.zeros(len(table.words))
    for source in range(len(table.names)):
        parts = table.sources == source
        spread = damped @ parts.astype(np.float64)
        if total := totals[parts].sum():
            weights += spread * (total**SOURCE_EXPONENT / spread.sum())
    return weights


def words_of_frequencies(frequencies: dict[str, float], total: float) -> dict[str, float]:
    """Turn a frequency list (word -> share of all words) into the counts of `total` words of running text."""
    words: defaultdict[str, float] = defaultdict(float)
    for word, share in frequencies.items():
        count = share * total
        capitalised = word[:1].upper() + word[1:]
        for form, part in ((word, 1 - CAPITALISED_SHARE), (capitalised, CAPITALISED_SHARE)):
            words[f" {form}"] += count * part * (1 - NO_SPACE_SHARE)
            words[form] += count * part * NO_SPACE_SHARE
    return dict(words)
