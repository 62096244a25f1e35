"""How much text a token holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import regex

from lepta.vocabulary.tokens import Vocabulary

WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")


@dataclass(frozen=True)
class Measure:
    """Size of a text in four units, and how its words are split."""

    characters: int
    utf8_bytes: int
    words: int
    tokens: int
    single_token_words: int

    def summary(self) -> dict[str, float | int]:
        """Ratios as people quote them."""
        return {
            "tokens": self.tokens,
            "characters_per_token": self.characters / self.tokens,
            "bytes_per_token": self.utf8_bytes / self.tokens,
            "tokens_per_word": self.tokens / max(self.words, 1),
            "single_token_words": self.single_token_words / max(self.words, 1),
        }


def measure(vocabulary: Vocabulary, documents: Sequence[str]) -> Measure:
    """Measure a vocabulary on text.

    Parameters
    ----------
    vocabulary : Vocabulary
    documents : sequence of str
        A word counts as one token if " word" is one (every occurrence counts).
    """
    words = [word for document in documents for word in WORD.findall(document)]
    unique = sorted(set(words))
    whole = {
        w for w, ids in zip(unique, vocabulary.split([f" {w}".encode() for w in unique]), strict=True) if len(ids) == 1
    }
    return Measure(
        characters=sum(map(len, documents)),
        utf8_bytes=sum(len(document.encode()) for document in documents),
        words=len(words),
        tokens=sum(map(len, vocabulary.encode(documents))),
        single_token_words=sum(word in whole for word in words),
    )
