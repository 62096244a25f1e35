"""How much text a token holds, and how much of a vocabulary a text uses."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import regex

from lepta.text.sources import Document
from lepta.vocabulary.tokens import Kind, Vocabulary

WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
BATCH_CHARACTERS = 1_000_000  # encoded at once: about 30 MB


@dataclass(frozen=True)
class Measure:
    """Size of a text in four units, how its words are split, and how much of the vocabulary it leaves unused.

    Attributes
    ----------
    characters, utf8_bytes, words, tokens : int
    single_token_words : int
        Words that are one token after a space; every occurrence counts.
    vocabulary_tokens : int
        Tokens of the vocabulary, special ones not counted.
    unused_tokens : int
        Those among them that the text never uses.
    """

    characters: int
    utf8_bytes: int
    words: int
    tokens: int
    single_token_words: int
    vocabulary_tokens: int
    unused_tokens: int

    def summary(self) -> dict[str, float | int]:
        """Numbers as people quote them; `single_token_words` and `unused_share` are shares from 0 to 1."""
        tokens = max(self.tokens, 1)
        return {
            "characters": self.characters,
            "tokens": self.tokens,
            "characters_per_token": self.characters / tokens,
            "bytes_per_token": self.utf8_bytes / tokens,
            "words_per_token": self.words / tokens,
            "single_token_words": self.single_token_words / max(self.words, 1),
            "vocabulary_tokens": self.vocabulary_tokens,
            "unused_tokens": self.unused_tokens,
            "unused_share": self.unused_tokens / max(self.vocabulary_tokens, 1),
        }


def measure(vocabulary: Vocabulary, documents: Iterable[str]) -> Measure:
    """Measure a vocabulary on texts, all of them together; see `measure_sources`."""
    return measure_sources(vocabulary, (Document(text, "", "") for text in documents))[0]


def measure_sources(vocabulary: Vocabulary, documents: Iterable[Document]) -> tuple[Measure, dict[str, Measure]]:
    """Measure a vocabulary on texts, by source and in total.

    Parameters
    ----------
    vocabulary : Vocabulary
    documents : iterable of Document
        Read once, and never held in memory together.

    Returns
    -------
    Measure
        Of all documents.
    dict
        Source -> measure of its documents, in order of appearance.
    """
    text_ids = np.isin(vocabulary.kinds, (Kind.TEXT, Kind.BYTE))
    whole: dict[str, bool] = {}  # word -> whether it is one token
    counts: dict[str | None, np.ndarray] = defaultdict(lambda: np.zeros(5, np.int64))  # None: in total
    used: dict[str | None, np.ndarray] = defaultdict(lambda: np.zeros(vocabulary.size, np.bool_))
    for source, texts in _batches(documents):
        words = [word for text in texts for word in WORD.findall(text)]
        whole |= _single_tokens(vocabulary, sorted(set(words) - whole.keys()))
        ids = np.fromiter(chain.from_iterable(vocabulary.encode(texts)), np.int64)
        utf8_bytes = sum(len(text.encode()) for text in texts)
        single = sum(whole[word] for word in words)
        for key in (source, None):
            counts[key] += (sum(map(len, texts)), utf8_bytes, len(words), len(ids), single)
            used[key][ids] = True

    def made(key: str | None) -> Measure:
        vocabulary_counts = np.array([text_ids.sum(), (text_ids & ~used[key]).sum()])
        return Measure(*counts[key].tolist(), *vocabulary_counts.tolist())

    return made(None), {source: made(source) for source in counts if source is not None}


def _batches(documents: Iterable[Document]) -> Iterator[tuple[str, list[str]]]:
    """Source and some of its texts, again and again."""
    waiting: dict[str, list[str]] = {}
    held = 0
    for document in documents:
        waiting.setdefault(document.source, []).append(document.text)
        held += len(document.text)
        if held >= BATCH_CHARACTERS:
            yield from waiting.items()
            waiting, held = {}, 0
    yield from waiting.items()


def _single_tokens(vocabulary: Vocabulary, words: list[str]) -> dict[str, bool]:
    """Tell of each word whether it is one token after a space; bytes are compared, for unknown characters get no id."""
    pieces = [f" {word}".encode() for word in words]
    split = zip(words, pieces, vocabulary.split(pieces), strict=True)
    return {word: len(ids) == 1 and vocabulary.data(ids[0]) == piece for word, piece, ids in split}
