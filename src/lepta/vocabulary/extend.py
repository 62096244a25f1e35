"""Scenario `extended` (paper 2.4.1): new tokens on top of an existing byte-level BPE.

New merges are learned on text as the *old* tokenizer splits it and appended after the old merges, so every old id keeps
its meaning and every new token is the end of a chain of merges that text really takes. Each new token holds letters of
the target script only (with at most the space before them), hence text without that script keeps its ids exactly.
"""

import copy
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import regex
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from lepta.errors import LeptaError
from lepta.vocabulary.tokens import Vocabulary, from_byte_alphabet, to_byte_alphabet

# Supplementary private-use planes: one code point for each old token that occurs, more than any vocabulary has letters.
FIRST_PRIVATE, LAST_PRIVATE = 0xF0000, 0x10FFFD
# Words are handed to the trainer this many times in all. Four times as many (and twice the time) gave 0.2 % more
# characters per token.
TRAINING_OCCURRENCES = 2_000_000
# Words of a frequency list come in lower case and alone; in running Russian and English text about one in eight
# starts with a capital, and about one in twelve follows no space (after a line break, quote, bracket or hyphen).
CAPITALISED_SHARE, NO_SPACE_SHARE = 1 / 8, 1 / 12


def count_words(vocabulary: Vocabulary, documents: Iterable[str]) -> Counter[str]:
    """Count the pre-tokens of running text.

    The counting runs inside `tokenizers`, in parallel: a trainer that is asked for no merges still counts its words.

    Returns
    -------
    Counter
        Pre-token in the byte alphabet ("Ġпривет" is " привет") -> occurrences.
    """
    spec = copy.copy(vocabulary.spec) | {"added_tokens": [], "post_processor": None}
    spec["model"] = models_json(models.BPE())
    counter = Tokenizer.from_str(json.dumps(spec))
    trainer = trainers.BpeTrainer(vocab_size=0, show_progress=False)
    counter.train_from_iterator(documents, trainer)
    return Counter(json.loads(trainer.__getstate__())["BpeTrainer"]["words"])


def models_json(model: models.Model) -> dict[str, Any]:
    """Write a `tokenizers` model as `tokenizer.json` does."""
    return json.loads(Tokenizer(model).to_str())["model"]


def words_from_frequencies(frequencies: dict[str, float], total: float) -> dict[str, float]:
    """Turn a frequency list into pre-token counts as running text would have them.

    Parameters
    ----------
    frequencies : dict
        Word -> share of all words.
    total : float
        Number of words of running text to stand for.
    """
    words: dict[str, float] = defaultdict(float)
    for word, share in frequencies.items():
        count = share * total
        capitalised = word[:1].upper() + word[1:]
        for form, part in ((word, 1 - CAPITALISED_SHARE), (capitalised, CAPITALISED_SHARE)):
            words[to_byte_alphabet(f" {form}".encode())] += count * part * (1 - NO_SPACE_SHARE)
            words[to_byte_alphabet(form.encode())] += count * part * NO_SPACE_SHARE
    return words


def dominant_script(words: Counter[str]) -> str:
    """Name the Unicode script that most letters of the counted words are in, Latin only if there is no other.

    Latin is left out because it is in text of every language (names, code), and old vocabularies know it.
    """
    letters: Counter[str] = Counter()
    for word, count in words.items():
        for character in _text(word):
            letters[character] += count
    scripts: Counter[str] = Counter()
    for character, count in letters.items():
        for script in SCRIPTS:
            if regex.match(rf"\p{{Script={script}}}", character):
                scripts[script] += count
    if not scripts:
        return "Latin"
    return scripts.most_common(1)[0][0]


SCRIPTS = [
    "Cyrillic",
    "Greek",
    "Arabic",
    "Hebrew",
    "Armenian",
    "Georgian",
    "Devanagari",
    "Bengali",
    "Gurmukhi",
    "Gujarati",
    "Oriya",
    "Tamil",
    "Telugu",
    "Kannada",
    "Malayalam",
    "Sinhala",
    "Thai",
    "Lao",
    "Tibetan",
    "Myanmar",
    "Khmer",
    "Ethiopic",
    "Hangul",
    "Han",
    "Hiragana",
    "Katakana",
    "Mongolian",
    "Cherokee",
]


def _text(word: str) -> str:
    return from_byte_alphabet(word).decode("utf-8", errors="ignore")


def words_of_script(words: Counter[str], script: str) -> Counter[str]:
    """Keep the words written in one script only, with at most a space before them.

    Raises
    ------
    LeptaError
        If the script is unknown, or no word is written in it.
    """
    try:
        pattern = regex.compile(rf" ?[\p{{Script={script}}}\p{{Mn}}]+")
    except regex.error as error:
        raise LeptaError(
            f"script {script!r}: not a Unicode script; expected a name such as Cyrillic or Greek"
        ) from error
    kept = Counter({word: count for word, count in words.items() if pattern.fullmatch(_text(word))})
    if not kept:
        raise LeptaError(f"corpus: no word in the script {script}; give text of the target language, or another script")
    return kept


def extend(vocabulary: Vocabulary, words: Counter[str], add: int) -> dict[str, Any]:
    """Add tokens to a byte-level BPE.

    Parameters
    ----------
    vocabulary : Vocabulary
        The old vocabulary, byte-level BPE.
    words : Counter
        Pre-tokens in the byte alphabet with their (real-valued) counts; merges are learned inside words only.
    add : int
        Number of new tokens.

    Returns
    -------
    dict
        Contents of the new `tokenizer.json`; ids of new tokens follow the largest old id.

    Raises
    ------
    LeptaError
        If the words do not hold that many tokens.
    """
    pieces = list(words)
    old_splits = dict(zip(pieces, vocabulary.split([from_byte_alphabet(piece) for piece in pieces]), strict=True))
    known = {token: i for i, token in enumerate(vocabulary.bytes_of) if token is not None}
    new: dict[bytes, int] = {}
    merges: list[tuple[bytes, bytes]] = []
    # Two merges may give the same bytes, and a merge may give bytes that the old vocabulary has: neither costs an id.
    for left, right in learn_merges(vocabulary, words, old_splits, add + add // 20 + 100):
        merges.append((left, right))
        if left + right not in known:
            new[left + right] = known[left + right] = vocabulary.size + len(new)
        if len(new) == add:
            return _with_merges(vocabulary.spec, new, merges)
    raise LeptaError(
        f"corpus: only {len(new):,} new tokens can be learned from it, {add:,} were asked for; give more text"
    )


def learn_merges(
    vocabulary: Vocabulary, words: Counter[str], splits: dict[str, list[int]], number: int
) -> Iterator[tuple[bytes, bytes]]:
    """Learn BPE merges that start from old tokens instead of characters.

    Each old token is written as one private code point; the trainer of `tokenizers` takes it for a character and
    learns on top of it. Yields pairs of byte strings in order of rank.
    """
    used = sorted({token for split in splits.values() for token in split})
    if len(used) > LAST_PRIVATE - FIRST_PRIVATE:
        raise LeptaError(f"corpus: {len(used):,} different old tokens in it, more than there are private code points")
    point = {token: chr(FIRST_PRIVATE + n) for n, token in enumerate(used)}
    data = {chr(FIRST_PRIVATE + n): vocabulary.bytes_of[token] or b"" for n, token in enumerate(used)}

    scale = TRAINING_OCCURRENCES / words.total()
    trainer = trainers.BpeTrainer(vocab_size=len(used) + number, show_progress=False, min_frequency=2)
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    occurrences = (
        itertools.repeat("".join(point[token] for token in split), round(words[word] * scale))
        for word, split in sorted(splits.items())
    )
    learner.train_from_iterator(map(" ".join, _batches(itertools.chain.from_iterable(occurrences), 20_000)), trainer)
    for left, right in models_json(learner.model)["merges"]:
        yield b"".join(data[c] for c in left), b"".join(data[c] for c in right)


def _batches(items: Iterator[str], size: int) -> Iterator[list[str]]:
    while batch := list(itertools.islice(items, size)):
        yield batch


def _with_merges(spec: dict[str, Any], new: dict[bytes, int], merges: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    model = spec["model"]
    pairs = [[to_byte_alphabet(left), to_byte_alphabet(right)] for left, right in merges]
    if model["merges"] and isinstance(model["merges"][0], str):  # older files write "a b", newer ones ["a", "b"]
        lines: list[Any] = [" ".join(pair) for pair in pairs]
    else:
        lines = pairs
    vocab = model["vocab"] | {to_byte_alphabet(token): i for token, i in new.items()}
    return spec | {"model": model | {"vocab": vocab, "merges": [*model["merges"], *lines]}}
