"""Learn BPE merges on top of any tokens (paper 2.4.1): the one operation behind `bpe`, `extended` and `optimized`.

A word comes as the symbols that a vocabulary splits it into: single bytes or characters for a new vocabulary, tokens
for one that is extended. Each symbol is written as a private code point; the trainer of `tokenizers` takes it for a
character and learns merges on top of it. So every merge starts from what the old vocabulary really produces.

No token is learned that the words do not use, but a few (0.2-0.4 %) are hardly used any more once longer tokens stand
on them: " катег" on the way to " категория". They stay: without them the longer one is not reached. (Learning 50 % more
tokens and taking the least used away changed nothing, 3.517 characters per token either way.)
"""

import itertools
import json
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from lepta.core.errors import LeptaError

# Supplementary private-use planes: one code point for each symbol.
FIRST_PRIVATE, LAST_PRIVATE = 0xF0000, 0x10FFFD
# Words are handed to the trainer so many times in all; those that come to nothing are dropped before they cost any
# time, more than half of a large corpus. (32,000 tokens from 459,000 Russian words: 2 million give 4.331
# characters per token in 9 s, 20 million 4.330 in 56 s.)
OCCURRENCES = 2_000_000
LINE_WORDS = 20_000
# A symbol of a word, or several that become one token before any of them merges with what stands beside them.
Unit = bytes | tuple[bytes, ...]


class TooFewTokens(LeptaError):
    """The words hold fewer new tokens than were asked for."""

    def __init__(self, available: int, asked: int, script: str | None = None) -> None:
        words, remedy = (f"its words in {script}", ", or name another script") if script else ("it", "")
        super().__init__(
            f"corpus: only {available:,} new tokens can be learned from {words}, not {asked:,}; give more or ask for "
            f"fewer{remedy}"
        )
        self.available = available


@dataclass(frozen=True)
class Merge:
    """Two tokens that become one."""

    left: bytes
    right: bytes

    @property
    def token(self) -> bytes:
        """What they become."""
        return self.left + self.right


def learn_merges(splits: Sequence[Sequence[Unit]], counts: np.ndarray, known: Set[bytes], number: int) -> list[Merge]:
    """Learn merges, in order of rank, that form `number` new tokens; TooFewTokens if the words hold fewer.

    `splits` are the units of each word, `counts` says how often each is handed to the trainer. A merge may lead to a
    token that is `known` already without costing a new one.
    """
    if number <= 0:
        return []
    if not counts.any():
        raise TooFewTokens(0, number)
    alphabet = _Alphabet(splits)
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # The trainer counts symbols, and merges that form known tokens: a twentieth more leaves room for those.
    size = alphabet.size + number + number // 20 + 100
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, min_frequency=1)
    learner.train_from_iterator(_lines(list(map(alphabet.written, splits)), counts), trainer)

    merges: dict[Merge, None] = {}  # in order; units may begin with the same merges
    new: set[bytes] = set()  # two merges may form the same token
    for left, right in json.loads(learner.to_str())["model"]["merges"]:
        for merge in alphabet.merges(left, right):
            merges[merge] = None
            if merge.token not in known:
                new.add(merge.token)
            if len(new) == number:
                return list(merges)
    raise TooFewTokens(len(new), number)


class _Alphabet:
    """Private code points for the units of words: one for a symbol, two for a unit of several.

    The two of a unit stand together wherever they occur, so no pair is more frequent than theirs that one of them is
    in. Of equally frequent pairs the trainer takes the one with the lowest code points, which is theirs: the first of
    each unit comes before all others. So a unit becomes one before it merges with anything beside it.
    """

    def __init__(self, splits: Sequence[Sequence[Unit]]) -> None:
        different = set(itertools.chain.from_iterable(splits))
        units = sorted(unit for unit in different if isinstance(unit, tuple))
        symbols = sorted(unit for unit in different if isinstance(unit, bytes))
        self.size = 2 * len(units) + len(symbols)
        if self.size > LAST_PRIVATE - FIRST_PRIVATE:
            raise LeptaError(f"corpus: {self.size:,} different symbols in it, more than there are private code points")
        points = iter(map(chr, range(FIRST_PRIVATE, LAST_PRIVATE)))
        firsts = list(itertools.islice(points, len(units)))
        pairs = list(map(str.__add__, firsts, points))
        self._point: dict[Unit, str] = dict(zip(units, pairs, strict=True))
        self._unit_of = dict(zip(pairs, units, strict=True))
        self._data: dict[str, bytes] = {}
        for pair, unit in zip(pairs, units, strict=True):
            self._data |= {pair[0]: b"".join(unit), pair[1]: b""}
        for symbol in symbols:
            self._point[symbol] = next(points)
            self._data[self._point[symbol]] = symbol

    def written(self, split: Sequence[Unit]) -> str:
        """A word in code points."""
        return "".join(self._point[part] for part in split)

    def merges(self, left: str, right: str) -> list[Merge]:
        """What a merge of code points stands for; a unit becomes one from left to right."""
        if unit := self._unit_of.get(left + right):
            return list(map(Merge, itertools.accumulate(unit), unit[1:]))
        first, second = b"".join(map(self._data.__getitem__, left)), b"".join(map(self._data.__getitem__, right))
        return [Merge(first, second)]


def occurrences(weights: np.ndarray) -> np.ndarray:
    """How often to hand each word to the trainer, in all `OCCURRENCES` times, shares as in the weights."""
    return whole_numbers(weights * (OCCURRENCES / (weights.sum() or 1)))


def whole_numbers(weights: np.ndarray) -> np.ndarray:
    """Whole numbers whose running sum stays within 1/2 of that of the weights: rare words keep their share together."""
    return np.diff(np.rint(np.cumsum(weights)).astype(np.int64), prepend=0)


def _lines(words: Sequence[str], repeats: np.ndarray) -> Iterator[str]:
    """Each word as often as it counts, several thousand in a line."""
    line: list[str] = []
    length = 0
    for word, times in zip(words, repeats.tolist(), strict=True):
        while times:
            part = min(times, LINE_WORDS - length)
            line.append(f"{word} " * part)
            times -= part
            length += part
            if length == LINE_WORDS:
                yield "".join(line)
                line, length = [], 0
    yield "".join(line)
