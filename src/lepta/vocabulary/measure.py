"""How a vocabulary cuts text: in numbers, and piece by piece."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import regex

from lepta.core.errors import LeptaError
from lepta.core.progress import step
from lepta.core.reading import is_there
from lepta.text.sources import STARTER, Document
from lepta.vocabulary.source import AnyVocabulary, vocabulary_of
from lepta.vocabulary.tokens import Kind, Vocabulary, runs_of_text

WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
LOOKS = {" ": "space", "\n": "newline", "\t": "tab"}
LONGEST_NAME = 4096  # characters of a path
BATCH_CHARACTERS = 1_000_000  # encoded at once: about 30 MB


@dataclass(frozen=True)
class Measure:
    """Size of a text in four units, how its words are split, and how much of the vocabulary it leaves unused."""

    characters: int
    utf8_bytes: int
    words: int
    tokens: int
    single_token_words: int  # words that are one token after a space; every occurrence counts
    vocabulary_tokens: int  # special ones not counted
    unused_tokens: int  # those among them that the text never uses

    @property
    def characters_per_token(self) -> float:
        """0 if there is no text."""
        return self.characters / max(self.tokens, 1)

    def summary(self) -> dict[str, float | int]:
        """Numbers as people quote them; `single_token_words` and `unused_share` are shares from 0 to 1."""
        tokens = max(self.tokens, 1)
        return {
            "characters": self.characters,
            "tokens": self.tokens,
            "characters_per_token": self.characters_per_token,
            "bytes_per_token": self.utf8_bytes / tokens,
            "words_per_token": self.words / tokens,
            "single_token_words": self.single_token_words / max(self.words, 1),
            "vocabulary_tokens": self.vocabulary_tokens,
            "unused_tokens": self.unused_tokens,
            "unused_share": self.unused_tokens / max(self.vocabulary_tokens, 1),
        }


def measure(tokenizer: AnyVocabulary, documents: Iterable[str]) -> Measure:
    """Measure how a tokenizer cuts texts, all of them together.

    `documents` are the texts themselves, as `read_documents` gives those of a file, a folder or `starter:ru/valid`;
    LeptaError if one of them is such a name.
    """
    return measure_sources(vocabulary_of(tokenizer), (Document(text, "", "") for text in _texts(documents)))[0]


def _texts(documents: Iterable[str]) -> Iterator[str]:
    """The texts; LeptaError for one string instead of several, and for names of sources."""
    if isinstance(documents, str):
        raise LeptaError("measure: documents are one string; expected several texts, as a list or another iterable")
    for text in documents:
        if _is_name(text):
            raise LeptaError(
                f"measure: {text} is the name of a source; expected its texts: lepta.read_documents([{text!r}])"
            )
        yield text


def _is_name(text: str) -> bool:
    """Whether a text is the name of a source that is here. Of words alone none is; the disk is asked of few texts."""
    named = len(text) < LONGEST_NAME and "\n" not in text and Path(text).name and ("/" in text or "." in text)
    return text.startswith(STARTER) or bool(named and is_there(text))


@step("measuring how text is cut")
def measure_sources(vocabulary: Vocabulary, documents: Iterable[Document]) -> tuple[Measure, dict[str, Measure]]:
    """Measure a vocabulary on texts, in total and for each source, in order of appearance.

    Documents are read once, and never held in memory together.
    """
    text_ids = np.isin(vocabulary.kinds, (Kind.TEXT, Kind.BYTE))
    whole: dict[str, bool] = {}  # word -> whether it is one token
    counts: dict[str | None, np.ndarray] = defaultdict(lambda: np.zeros(5, np.int64))  # None: in total
    used: dict[str | None, np.ndarray] = defaultdict(lambda: np.zeros(vocabulary.size, np.bool_))
    for source, texts in _batches(documents):
        words = list(chain.from_iterable(map(WORD.findall, texts)))
        whole |= _single_tokens(vocabulary, sorted(set(words) - whole.keys()))
        ids = np.fromiter(chain.from_iterable(vocabulary.encode(texts)), np.int64)
        utf8_bytes = sum(map(len, map(str.encode, texts)))
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
    spaced = [f" {word}".encode() for word in words]
    single = {}
    for word, data, ids in zip(words, spaced, vocabulary.split(spaced), strict=True):
        single[word] = len(ids) == 1 and vocabulary.data(ids[0]) == data
    return single


def pieces(vocabulary: Vocabulary, text: str) -> list[dict[str, Any]]:
    """Cut a text where a tokenizer does, to be shown on a page.

    One dictionary for each token: `id`, `special` (an added token, also that for unknown characters) and `parts`, the
    result of `parts_of`.
    """
    cut = []
    for token_id in vocabulary.encode([text])[0]:
        special = bool(vocabulary.kinds[token_id] == Kind.SPECIAL)
        cut.append({"id": token_id, "special": special, "parts": parts_of(vocabulary.data(token_id))})
    return cut


def parts_of(data: bytes) -> list[tuple[str, str]]:
    """Cut the bytes of a token by how they can be shown: pairs of a look and characters.

    Looks are `text`; one `space`, `newline` or `tab`; `code`: other invisible characters as U+00A0; `hex`: bytes that
    are part of a character, as D0.
    """
    parts = []
    for run in runs_of_text(data):
        if isinstance(run, bytes):
            parts.append(("hex", run.hex(" ").upper()))
            continue
        for look, group in groupby(run, _look):
            shown = list(group)
            if look == "text":
                shown = ["".join(shown)]
            elif look == "code":
                shown = [f"U+{ord(character):04X}" for character in shown]
            parts += [(look, characters) for characters in shown]
    return parts


def _look(character: str) -> str:
    return LOOKS.get(character) or ("text" if character.isprintable() else "code")
