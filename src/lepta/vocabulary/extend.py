"""New tokens on top of a BPE vocabulary (paper 2.4.1); scenarios differ only in the vocabulary they start from.

New merges stand after the old ones, so every old id keeps its meaning. In the scenario `extended` each new token holds
letters of the target script, hence text without that script keeps its ids exactly.
"""

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import regex

from lepta.core.errors import LeptaError
from lepta.vocabulary.families import ByteLevelBPE
from lepta.vocabulary.merges import Merge, learn_merges, occurrences
from lepta.vocabulary.tokenizer_json import Spec, merge_lines
from lepta.vocabulary.tokens import Kind, Vocabulary
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
    letters = count_characters([words[n] for n in frequent.tolist()], weights[frequent])
    scripts: Counter[str] = Counter()
    for character, weight in letters.items():
        for script in ("Latin", *SCRIPTS):
            if regex.match(rf"\p{{Script={script}}}", character):
                scripts[script] += weight
    least = LEAST_SHARE * scripts.total()
    others = [(weight, script) for script, weight in scripts.items() if script != "Latin" and weight >= least]
    return max(others)[1] if others else "Latin"


def words_of_script(table: WordTable, script: str) -> WordTable:
    """Keep the words whose letters are of one script, with at most one sign and one space before them."""
    try:
        kept = table.keep(rf"[^\r\n\p{{L}}\p{{N}}]? ?[\p{{Script={script}}}\p{{Mn}}]*\p{{Script={script}}}[\p{{Mn}}]*")
    except regex.error as error:
        raise LeptaError(
            f"script {script!r}: not a Unicode script; expected a name such as Cyrillic or Greek"
        ) from error
    if not kept.words:
        raise LeptaError(f"corpus: no word in the script {script}; give text of the target language, or another script")
    return kept


def extend(
    vocabulary: Vocabulary, words: Sequence[str], weights: np.ndarray, add: int, keep_other_text: bool = True
) -> Spec:
    """Add tokens to a BPE vocabulary; their ids follow the largest old id. TooFewTokens if the words hold fewer.

    Merges are learned inside words only, which count by their weights. With `keep_other_text`, no token without a
    letter is learned, so that text without those letters keeps its ids.
    """
    known = set(vocabulary.ids_by_bytes(Kind.TEXT))
    missing = _missing_characters(vocabulary, words, weights)
    counts = occurrences(weights)
    words, counts = [words[n] for n in np.flatnonzero(counts).tolist()], counts[counts > 0]
    data = [token or b"" for token in vocabulary.bytes_of]
    splits: list[Symbols] = []
    for ids in vocabulary.split([word.encode() for word in words]):
        splits.append(tuple([data[i] for i in ids]))
    if keep_other_text:
        missing = [character for character in missing if regex.match(r"[\p{L}\p{M}]", character)]
    if missing:
        splits = [_with_characters(vocabulary, word, split, missing) for word, split in zip(words, splits, strict=True)]
    characters = [character.encode() for character in missing][:add]
    symbols = known.union(characters)
    usable = []
    for n, (word, split) in enumerate(zip(words, splits, strict=True)):
        # Tokens of text that spell the word: no unknown characters, no single bytes.
        spelled = symbols.issuperset(split) and b"".join(split) == word.encode()
        if spelled and not (keep_other_text and _has_sign_in_pieces(word, split)):
            usable.append(n)
    merges = learn_merges([splits[n] for n in usable], counts[usable], symbols, add - len(characters))
    return _with_merges(vocabulary, characters, merges, known)


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


def _with_characters(vocabulary: Vocabulary, word: str, split: Symbols, missing: list[str]) -> Symbols:
    """Split a word with the missing characters as tokens of their own."""
    if not any(character in missing for character in word):
        return split
    pieces = [piece for piece in regex.split("([" + regex.escape("".join(missing)) + "])", word) if piece]
    symbols: list[bytes] = []
    for piece, ids in zip(pieces, vocabulary.split([piece.encode() for piece in pieces]), strict=True):
        if piece in missing:
            symbols.append(piece.encode())
        else:
            symbols += map(vocabulary.data, ids)
    return tuple(symbols)


def _has_sign_in_pieces(word: str, split: Symbols) -> bool:
    """Tell whether two symbols end before the first letter: merged, they would be a token without a letter."""
    if word[0].isalpha() or (word[0] == " " and word[1:2].isalpha()):
        return False  # one byte at most stands before the letters: nearly all words
    before = len(regex.split(r"(?=\p{L})", word, maxsplit=1, flags=regex.V1)[0].encode())
    return sum(end <= before for end in itertools.accumulate(map(len, split))) > 1


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
