"""How much text there is, and how much of it a token holds: counted or measured where it can be, else estimated."""

import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lepta.core.errors import LeptaError
from lepta.core.reading import is_there
from lepta.core.shipped import shipped_data
from lepta.text.formats import PARQUET, decode
from lepta.text.sources import (
    BENCHMARK,
    DATASET,
    STARTER,
    is_word_list,
    read_documents,
    read_file,
    text_field,
    text_files,
)
from lepta.vocabulary.families import ByteLevelBPE
from lepta.vocabulary.settings import VocabularySettings
from lepta.vocabulary.tokens import Vocabulary

COUNTED = 1 << 26  # bytes of files that are read whole; of more text, so many are sampled
SAMPLED_FILES = 100
MEASURED_CHARACTERS = 200_000
TRY = "`lepta vocab build` and `lepta vocab measure` tell"
SAME_SIZE = 1.02  # ratio of sizes within which a measured vocabulary stands for another
SAME_CORPUS = 2  # ratio of the sizes of corpora within which it does
FAR_SIZE, FAR_CORPUS = 2, 10  # ratios beyond which an estimate is called rough
# Characters of text that a word list is worth. SmolLM2 with 4,800 tokens: 2.86 characters per token from 0.13 M
# characters of text, 3.08 from these and wordfreq:ru, 3.21 from 1.0 M.
WORD_LIST = 400_000
SPECIAL_TOKENS = 300  # that variants of one tokenizer differ by at most
# What recipes may call the languages for which there are measurements -> codes in the table
CODES = {"ru": "ru", "rus": "ru", "russian": "ru", "en": "en", "eng": "en", "english": "en"}


class Amount(NamedTuple):
    """How much text some sources hold."""

    characters: int | None  # None if that cannot be told here
    how: str  # it is known, or why not


class Density(NamedTuple):
    """How much text a token of a vocabulary holds in one language."""

    characters_per_token: float | None
    how: str  # it is known: measured here, or what it is an estimate from


def is_absent(source: str) -> bool:
    """Tell whether a text source is a file or folder that is not on this machine."""
    if is_word_list(source) or source.startswith((DATASET, STARTER)) or source == BENCHMARK:
        return False
    return not is_there(text_field(source)[0])


def count_text(sources: list[str], counted: int = COUNTED) -> Amount:
    """Count the characters of text sources.

    If their files have more than `counted` bytes, the beginnings of up to 100 of them are read, and the sizes of all
    tell the rest. LeptaError if a source that is here cannot be read.
    """
    sources = [source for source in sources if not is_word_list(source)]
    files: list[tuple[Path, str]] = []
    for source in sources:
        if source.startswith(DATASET):
            return Amount(None, f"{source} is streamed: its size shows when it is read")
        if is_absent(source):
            return Amount(None, f"{source} is not here yet")
        files += [(file, text_field(source)[1]) for file in text_files(source)]
    if not files:
        return Amount(0, "no text named")
    total = sum(file.stat().st_size for file, _ in files)
    if total <= counted:
        return Amount(sum(map(len, read_documents(sources))), "counted")
    some = files[:: -(-len(files) // SAMPLED_FILES)]
    characters = read = 0
    for file, field in some:
        sample = _sample(file, field, counted // len(some))
        characters, read = characters + sample[0], read + sample[1]
    if not read:
        return Amount(None, f"{total / 1e9:,.1f} GB of files that only reading them whole would count")
    return Amount(round(total / read * characters), f"from a sample of {read / 1e6:,.0f} of {total / 1e6:,.0f} MB")


def _sample(file: Path, field: str, limit: int) -> tuple[int, int]:
    """Characters in the beginning of a file, and the bytes of the file that they take; 0 and 0 for Parquet."""
    if file.suffix == PARQUET:  # only whole row groups can be read, and one may be all of the file
        return 0, 0
    if file.suffix == ".txt":
        with file.open("rb") as text:
            data = text.read(limit) + text.readline()
        return len(decode(data, str(file))), len(data)
    characters = read = 0
    for document, position in read_file(file, field):
        # Packed files are read a chunk at a time, so many rows may have one position: all of them count, or none.
        if position > read >= limit:
            break
        characters, read = characters + len(document.text), position
    return characters, read


def vocabulary_at(place: Path | None) -> Vocabulary | None:
    """The vocabulary of a tokenizer that is on this machine; None if there is none, or none that can be read."""
    from lepta.vocabulary.source import open_tokenizer

    if place is None:
        return None
    try:
        return open_tokenizer(place).vocabulary()
    except LeptaError:
        return None


def measured(vocabulary: Vocabulary | None, texts: list[str]) -> Density | None:
    """Measure a vocabulary on the beginning of held-out texts; None if either is not here."""
    if vocabulary is None:
        return None
    documents: list[str] = []
    left = MEASURED_CHARACTERS
    try:
        for document in read_documents(text for text in texts if not text.startswith(DATASET)):
            documents.append(document[:left])
            left -= len(document)
            if left <= 0:
                break
    except LeptaError:
        return None
    characters, tokens = sum(map(len, documents)), sum(map(len, vocabulary.encode(documents)))
    return Density(characters / max(tokens, 1), f"measured here on {characters:,} characters")


def measured_name(vocabulary: Vocabulary) -> str | None:
    """Which of the tokenizers that were measured a vocabulary is, by its kind and number of ids."""
    kind = "byte-level" if isinstance(vocabulary, ByteLevelBPE) else "sentencepiece"
    for name, row in measured_vocabularies()["tokenizers"].items():
        if row["kind"] == kind and abs(row["tokens"] - vocabulary.size) <= SPECIAL_TOKENS:
            return name
    return None


@cache
def measured_vocabularies() -> dict[str, Any]:
    """What was measured of tokenizers and new vocabularies: docs/vocabulary.md."""
    return shipped_data("plan/vocabularies.yaml")


def original_estimate(tokenizer: str | None, language: str) -> Density:
    """Characters per token of an original vocabulary, from the table."""
    code, known = CODES.get(language.lower()), measured_vocabularies()["tokenizers"].get(tokenizer)
    if code is None or known is None:
        return Density(None, "not known: nothing was measured of this tokenizer in this language")
    return Density(known[code], "from docs/vocabulary.md")


def corpus_size(settings: VocabularySettings) -> int | None:
    """Characters of the text that a vocabulary is learned from; None if that cannot be told here."""
    characters = count_text(settings.corpus).characters
    return None if characters is None else characters + WORD_LIST * sum(map(is_word_list, settings.corpus))


def new_estimate(tokenizer: str | None, settings: VocabularySettings, size: int, language: str) -> Density:
    """Characters per token to expect of a new vocabulary with `size` ids.

    They are those of the measured vocabulary of the scenario that is nearest in its number of tokens and in the size
    of its corpus; `tokenizer` is the name of the original among those that were measured.
    """
    table, code = measured_vocabularies(), CODES.get(language.lower())
    known = table["tokenizers"].get(tokenizer)
    if code is None or known is None:
        return Density(None, f"not known: no vocabulary of this kind was measured; {TRY}")
    scenario = settings.scenario
    if scenario == "replaced":  # the same text a token as with as many tokens added
        scenario, size = "extended", known["tokens"] + (settings.add or 0)
    rows = [row for row in table["measured"] if row["scenario"] == scenario and _comparable(row, known)]
    if not rows:
        return Density(None, f"not known: none of scenario {scenario} was measured for this tokenizer; {TRY}")
    wanted, corpus = _learned(scenario, known, size), corpus_size(settings) or table["corpus"]

    def apart(row: dict[str, Any]) -> tuple[float, float]:
        """How many times as large or small its number of tokens and its corpus are."""
        number = _learned(row["scenario"], table["tokenizers"][row["tokenizer"]], row["size"])
        return _ratio(number, wanted), _ratio(row.get("corpus", table["corpus"]), corpus)

    nearest = min(rows, key=lambda row: math.prod(apart(row)))
    tokens, text = apart(nearest)
    same = nearest["tokenizer"] == tokenizer and tokens < SAME_SIZE and text < SAME_CORPUS
    which = "" if same else "nearest to it "
    learned_from = nearest.get("corpus", table["corpus"]) / 1e6
    what = f"{nearest['scenario']}, {nearest['tokenizer']}, {nearest['size']:,} ids, {learned_from:.1f} M characters"
    how = f"estimate: measured row {which}({what}) of docs/vocabulary.md"
    if tokens > FAR_SIZE or text > FAR_CORPUS:
        new = settings.add or wanted  # `wanted` counts from another tokenizer of the family, which may differ a little
        how += f"; rough, as here {new:,} tokens are learned from {corpus / 1e6:.1f} M characters"
    return Density(nearest[code], how)


def _ratio(one: float, other: float) -> float:
    return max(one / other, other / one)


def _comparable(row: dict[str, Any], known: dict[str, Any]) -> bool:
    """A vocabulary that replaces another depends on its kind only; one that extends it, on the tokenizer itself."""
    measured_on = measured_vocabularies()["tokenizers"][row["tokenizer"]]
    if row["scenario"] in ("bpe", "unigram"):
        return measured_on["kind"] == known["kind"]
    return measured_on is known


def _learned(scenario: str, known: dict[str, Any], size: int) -> int:
    """Tokens by which two vocabularies of a scenario are compared: new ones if they extend, else all."""
    if scenario == "extended":
        size -= known["tokens"]
    return max(size, 1)
