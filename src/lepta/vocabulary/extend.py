"""New tokens on top of a BPE vocabulary (paper 2.4.1); scenarios differ only in the vocabulary they start from.

New merges stand after the old ones, so every old id keeps its meaning. In the scenario `extended` no new token has
bytes that text without the target script can have, hence such text keeps its ids exactly.
"""

import itertools
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import cache, partial

import numpy as np
import regex

from lepta.core.errors import LeptaError
from lepta.core.progress import step
from lepta.vocabulary.families import ByteLevelBPE
from lepta.vocabulary.merges import Merge, Unit, learn_merges, occurrences
from lepta.vocabulary.tokenizer_json import Spec, merge_lines
from lepta.vocabulary.tokens import Kind, Vocabulary, runs_of_text
from lepta.vocabulary.words import WordTable

# A character that a SentencePiece vocabulary has no token for gets one if it makes up at least this share of the text.
RARE_CHARACTER = 1e-6
Symbols = tuple[bytes, ...]  # what a word splits into; a tuple, which costs the garbage collector less than a list
FREQUENT_WORDS = 20_000  # enough to tell the script of a text
LEAST_SHARE = 0.1  # of all letters; code and names beside a text of another script leave it more
# Scripts in use today (Unicode, UAX 31), but Latin.
SCRIPTS = [
    "Cyrillic", "Greek", "Arabic", "Hebrew", "Armenian", "Georgian", "Devanagari", "Bengali", "Gurmukhi", "Gujarati",
    "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Thai", "Lao", "Tibetan", "Myanmar", "Khmer",
    "Ethiopic", "Hangul", "Han", "Hiragana", "Katakana", "Mongolian", "Cherokee", "Thaana", "Syriac", "Mandaic", "Nko",
    "Adlam", "Tifinagh", "Vai", "Bamum", "Osage", "Canadian_Aboriginal", "Bopomofo", "Yi", "Lisu", "Miao", "Tai_Le",
    "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Cham", "Kayah_Li", "Hanifi_Rohingya", "Javanese", "Balinese", "Sundanese",
    "Batak", "Buginese", "Ol_Chiki", "Meetei_Mayek", "Chakma", "Limbu", "Lepcha", "Newa", "Saurashtra", "Syloti_Nagri",
    "Wancho", "Nyiakeng_Puachue_Hmong",
]  # fmt: skip


def dominant_script(words: Sequence[str], weights: np.ndarray) -> str:
    """Name the Unicode script that most letters are in; Latin counts only if others have next to none.

    Latin is in text of every language (names, code) and old vocabularies know it, while a few letters of another script
    (formulas, quotations) do not make a text one of that script.
    """
    frequent = np.argsort(-weights)[:FREQUENT_WORDS]
    letters = count_characters([words[row] for row in frequent.tolist()], weights[frequent])
    scripts: Counter[str] = Counter()
    for character, weight in letters.items():
        for script in ("Latin", *SCRIPTS):
            if regex.match(rf"\p{{Script={script}}}", character):
                scripts[script] += weight
    least = LEAST_SHARE * scripts.total()
    others = [(weight, script) for script, weight in scripts.items() if script != "Latin" and weight >= least]
    return max(others, default=(0.0, "Latin"))[1]


@step("choosing words of the script")
def words_of_script(table: WordTable, script: str) -> WordTable:
    """Keep the words whose letters are of one script, with at most one sign and one space before them."""
    kept = table.keep(rf"[^\r\n\p{{L}}\p{{N}}]? ?[\p{{Script={script}}}\p{{Mn}}]*\p{{Script={script}}}[\p{{Mn}}]*")
    if not kept.words:
        raise LeptaError(f"corpus: no word in the script {script}; give text of the target language, or another script")
    return kept


@step("learning new tokens")
def extend(
    vocabulary: Vocabulary, words: Sequence[str], weights: np.ndarray, add: int, script: str | None = None
) -> Spec:
    """Add tokens to a BPE vocabulary; their ids follow the largest old id. TooFewTokens if the words hold fewer.

    Merges are learned inside words only, which count by their weights. With a `script`, only tokens are learned that
    hold a character of it, or whose last bytes begin nothing but such a character: text without it keeps its ids.
    """
    known = set(vocabulary.ids_by_bytes(Kind.TEXT))
    missing = _missing_characters(vocabulary, words, weights)
    counts = occurrences(weights)
    words = [word for word, count in zip(words, counts, strict=True) if count]
    counts = counts[counts > 0]
    splits: list[Symbols] = []
    for ids in vocabulary.split(list(map(str.encode, words))):
        splits.append(tuple(map(vocabulary.data, ids)))
    if script:
        missing = [character for character in missing if regex.match(rf"\p{{Script={script}}}", character)]
    if missing:
        splits = list(map(partial(_with_characters, vocabulary, missing), words, splits))
    characters = list(map(str.encode, missing[:add]))
    symbols = known.union(characters)
    cut = _Cutter(script, symbols, splits).parts if script else partial(_whole_words, symbols)
    parts: list[Sequence[Unit]] = []
    numbers: list[int] = []  # of the word that each part is of
    for n, (word, split) in enumerate(zip(words, splits, strict=True)):
        if b"".join(split) != word.encode():
            continue  # a character that the vocabulary does not know
        found = cut(word, split)
        parts += found
        numbers += [n] * len(found)
    taken = symbols.union(vocabulary.ids_by_bytes(Kind.SPECIAL))  # an added token is not a new one
    merges = learn_merges(parts, counts[numbers], taken, add - len(characters))
    return _with_merges(vocabulary, characters, merges, known)


def _whole_words(symbols: set[bytes], word: str, split: Symbols) -> list[Sequence[Unit]]:
    return [split] if symbols.issuperset(split) else []


class _Cutter:
    """Cuts words into parts, and parts into units, so that whatever merges in a part is safe.

    A token is safe if text without the script cannot have its bytes. A unit is a run of symbols up to the next symbol
    that a character of the script begins in, marks and all ("▁м" begins one: it merges in ", мы" as it does in " мы");
    the first unit of a word may be a symbol that stands before the letters. So two units always hold a character of
    the script. Where one unit cannot be built of safe tokens, from left to right, a word is cut in two.
    """

    def __init__(self, script: str, symbols: set[bytes], splits: Sequence[Symbols]) -> None:
        self._symbols = symbols
        self._of_script = regex.compile(rf"\p{{Script={script}}}")
        self._only_script = only_characters(rf"\p{{Script={script}}}")
        different = symbols.intersection(itertools.chain.from_iterable(splits))
        self._whole = {symbol for symbol in different if _text(symbol) is not None}
        self._starts = {symbol for symbol in self._whole if self._of_script.match(_text(symbol) or "")}
        self._is_safe = cache(partial(is_certain, kind=self._of_script, only=self._only_script))

    def parts(self, word: str, split: Symbols) -> list[Sequence[Unit]]:
        """The parts of a word in which merges are learned."""
        if split[0] in self._whole and self._starts.issuperset(split[1:]):
            return [split]  # nearly all words of scripts that the vocabulary has the letters of
        parts: list[list[Unit]] = [[]]
        for unit in self._units(word, split):
            steps = list(itertools.accumulate(unit))[1:]
            if self._symbols.issuperset(unit) and all(map(self._is_safe, steps)):
                parts[-1].append(unit if steps else unit[0])
            else:
                parts.append([])
        return list(filter(None, parts))

    def _units(self, word: str, split: Symbols) -> list[Symbols]:
        characters: set[int] = set()  # bytes of the word that a character begins at
        letters: list[int] = []  # those that one of the script begins at
        position = 0
        for character in word:
            characters.add(position)
            if self._of_script.match(character):
                letters.append(position)
            position += len(character.encode())
        units: list[list[bytes]] = [[]]
        position = 0
        for symbol in split:
            end = position + len(symbol)
            begins = position in characters and any(position <= letter < end for letter in letters)
            if begins and units[-1]:
                units.append([])
            units[-1].append(symbol)
            position = end
        return list(map(tuple, units))


def only_characters(kind: str) -> regex.Pattern[str]:
    r"""Matches characters of a kind, such as `\p{Script=Greek}`, and what is not assigned, which is in no text."""
    return regex.compile(rf"(?:{kind}|[\p{{Cn}}\p{{Cs}}])*")


def is_certain(token: bytes, kind: regex.Pattern[str], only: regex.Pattern[str]) -> bool:
    """Whether text with these bytes has a character of a kind for certain.

    The token holds one, or its last bytes begin nothing in Unicode but such characters (`only_characters`).
    """
    if kind.search(token.decode(errors="ignore")):
        return True
    *_, last = "", *runs_of_text(token)
    if isinstance(last, str):
        return False
    begun = characters_from(last)
    return bool(begun) and only.fullmatch(begun) is not None


def _text(data: bytes) -> str | None:
    """Bytes as text, if they are."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def characters_from(start: bytes) -> str:
    """All characters whose UTF-8 begins with these bytes and has more; empty if there are none."""
    numbers = range(sys.maxunicode + 1)  # in the order of their UTF-8
    low = bisect_right(numbers, start, key=_utf8)
    high = bisect_right(numbers, start + b"\xff", key=_utf8)  # a byte that UTF-8 never has
    return "".join(map(chr, numbers[low:high]))


def _utf8(number: int) -> bytes:
    return chr(number).encode("utf-8", "surrogatepass")


def count_characters(words: Sequence[str], weights: np.ndarray) -> Counter[str]:
    """How much each character of the words counts."""
    counts: Counter[str] = Counter()
    for word, weight in zip(words, weights.tolist(), strict=True):
        for character in word:
            counts[character] += weight
    return counts


def _missing_characters(vocabulary: Vocabulary, words: Sequence[str], weights: np.ndarray) -> list[str]:
    """Characters that a SentencePiece vocabulary has no token for, most frequent first, rare ones left out."""
    if isinstance(vocabulary, ByteLevelBPE):
        return []
    known = vocabulary.ids_by_bytes(Kind.TEXT)
    counts = count_characters(words, weights)
    least = counts.total() * RARE_CHARACTER
    return [c for c, count in counts.most_common() if count >= least and c.encode() not in known]


def _with_characters(vocabulary: Vocabulary, missing: list[str], word: str, split: Symbols) -> Symbols:
    """Split a word with the missing characters as tokens of their own."""
    if set(word).isdisjoint(missing):
        return split
    pieces = list(filter(None, regex.split("([" + regex.escape("".join(missing)) + "])", word)))
    symbols: list[bytes] = []
    for piece, ids in zip(pieces, vocabulary.split(list(map(str.encode, pieces))), strict=True):
        if piece in missing:
            symbols.append(piece.encode())
        else:
            symbols += map(vocabulary.data, ids)
    return tuple(symbols)


def _with_merges(
    vocabulary: Vocabulary, characters: Sequence[bytes], merges: Sequence[Merge], known: set[bytes]
) -> Spec:
    """Write new tokens and merges behind the old ones."""
    spec = vocabulary.spec
    vocab = dict(spec["model"]["vocab"])
    # `tokenizers` gives an added token that is not in the model's own vocabulary the next free id, which is a new
    # token's now: special tokens join it.
    for token in spec.get("added_tokens") or []:
        vocab.setdefault(token["content"], token["id"])
    number = vocabulary.size
    for token in [*characters, *(merge.token for merge in merges)]:
        if token not in known and (written := vocabulary.written(token)) not in vocab:
            vocab[written] = number
            number += 1
    pairs = [(vocabulary.written(merge.left), vocabulary.written(merge.right)) for merge in merges]
    old = spec["model"]["merges"]
    return spec | {"model": spec["model"] | {"vocab": vocab, "merges": [*old, *merge_lines(pairs, old)]}}
