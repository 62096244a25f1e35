"""Words of any language as numbers, without a tokenizer that would have to be fetched."""

import re

import numpy as np
import regex
import xxhash
from datatrove.utils.word_tokenizers import WordTokenizer

# Scripts that write no spaces: each character counts as a word.
_UNSPACED = (
    r"\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}"
    r"\p{Script=Myanmar}"
)
_MAY_BE_UNSPACED = re.compile("[\u0e00-\u1fff\u2e80-\U0003ffff]")  # two ranges are ten times as fast as seven scripts
_SPACED_WORD = regex.compile(r"\w+", regex.V1)
_WORD = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[\w--[{_UNSPACED}]]+", regex.V1)
PIECE = 1 << 20  # characters whose words are in memory at once
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd: words in another order give another number


def split_words(text: str) -> list[str]:
    """Split text into words of letters, marks and digits; punctuation is left out."""
    return (_WORD if _MAY_BE_UNSPACED.search(text) else _SPACED_WORD).findall(text)


class Words(WordTokenizer):
    """The same for datatrove's filters."""

    def word_tokenize(self, text: str) -> list[str]:
        """Split text into words."""
        return split_words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Refuse: no rule here needs sentences."""
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Refuse likewise."""
        raise NotImplementedError


WORDS = Words()


def word_hashes(text: str) -> np.ndarray:
    """Hash each word of a text, lower-cased, as uint64."""
    parts = [
        np.fromiter(map(xxhash.xxh64_intdigest, map(str.encode, words)), np.uint64, len(words))
        for start in range(0, len(text), PIECE)
        if (words := split_words(text[start : start + PIECE].lower()))
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def ngram_hashes(words: np.ndarray, n: int) -> np.ndarray:
    """Hash each run of n words, given the hashes of the words; empty if there are fewer than n."""
    count = max(len(words) - n + 1, 0)
    hashes = np.zeros(count, np.uint64)
    for i in range(n):
        hashes = hashes * _MULTIPLIER + words[i : i + count]
    return hashes
