"""How much text there is, and how much of it a token holds: counted or measured where it can be, else estimated."""

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO, cast

import yaml

from lepta.core.errors import LeptaError
from lepta.text.sources import BENCHMARK, DATASET, STARTER, is_word_list, read_documents, text_field, text_files
from lepta.vocabulary.families import ByteLevelBPE
from lepta.vocabulary.settings import VocabularySettings
from lepta.vocabulary.tokens import Vocabulary

COUNTED = 1 << 26  # bytes of files that are read whole; of more text, so many are sampled
SAMPLED_FILES = 100
MEASURED_CHARACTERS = 200_000
SAME_SIZE = 1.02  # ratio of sizes within which a measured vocabulary stands for another
SPECIAL_TOKENS = 300  # that variants of one tokenizer differ by at most
RUSSIAN, ENGLISH = ("ru", "rus", "russian"), ("en", "eng", "english")


@dataclass(frozen=True)
class Amount:
    """How much text some sources hold.

    Attributes
    ----------
    characters : int or None
        None if that cannot be told here.
    how : str
        How it is known, or why not.
    """

    characters: int | None
    how: str


@dataclass(frozen=True)
class Density:
    """Characters per token of a vocabulary in one language.

    Attributes
    ----------
    characters_per_token : float or None
    how : str
        `measured here`, or what it is an estimate from.
    """

    characters_per_token: float | None
    how: str


def is_absent(source: str) -> bool:
    """Tell whether a text source is a file or folder that is not on this machine."""
    if is_word_list(source) or source.startswith((DATASET, STARTER)) or source == BENCHMARK:
        return False
    return not Path(text_field(source)[0]).expanduser().exists()


def count_text(sources: list[str], counted: int = COUNTED) -> Amount:
    """Count the characters of text sources, from a sample if they are large.

    Parameters
    ----------
    sources : list of str
    counted : int
        Bytes of files that are read whole. Of more, the beginnings of up to 100 files are read, and the sizes of all
        files tell the rest.

    Raises
    ------
    LeptaError
        If a source that is here cannot be read.
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
    samples = [_sample(file, field, counted // len(some)) for file, field in some]
    characters, read = (sum(part) for part in zip(*samples, strict=True))
    if not read:
        return Amount(None, f"{total / 1e9:,.1f} GB of files that only reading them whole would count")
    return Amount(round(total / read * characters), f"from a sample of {read / 1e6:,.0f} of {total / 1e6:,.0f} MB")


def _sample(file: Path, field: str, limit: int) -> tuple[int, int]:
    """Characters in the beginning of a file, and the bytes of the file that they take; 0 and 0 for other formats."""
    packed, rows = file.name.endswith(".gz"), file.name.endswith((".jsonl", ".jsonl.gz"))
    if not rows and file.suffix != ".txt":
        return 0, 0
    characters = 0
    with file.open("rb") as raw:
        for line in cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw:
            try:
                characters += len(json.loads(line)[field] or "") if rows and line.strip() else len(line.decode())
            except (ValueError, KeyError, TypeError) as error:
                raise LeptaError(
                    f"{file}: cannot be counted ({error}); expected UTF-8, JSONL with a string field {field!r}"
                ) from error
            if raw.tell() >= limit:
                break
        return characters, raw.tell()


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
    try:
        documents = _beginning(read_documents(_local(texts)), MEASURED_CHARACTERS)
    except LeptaError:
        return None
    characters, tokens = sum(map(len, documents)), sum(map(len, vocabulary.encode(documents)))
    return Density(characters / max(tokens, 1), f"measured here on {characters:,} characters")


def measured_name(vocabulary: Vocabulary | None) -> str | None:
    """Which of the tokenizers that were measured a vocabulary is, by its kind and number of ids."""
    if vocabulary is None:
        return None
    kind = "byte-level" if isinstance(vocabulary, ByteLevelBPE) else "sentencepiece"
    for name, row in measured_vocabularies()["tokenizers"].items():
        if row["kind"] == kind and abs(row["tokens"] - vocabulary.size) <= SPECIAL_TOKENS:
            return name
    return None


def _local(texts: list[str]) -> list[str]:
    return [text for text in texts if not text.startswith(DATASET)]


def _beginning(documents: Iterable[str], characters: int) -> list[str]:
    kept: list[str] = []
    for document in documents:
        kept.append(document[:characters])
        characters -= len(document)
        if characters <= 0:
            break
    return kept


@cache
def measured_vocabularies() -> dict[str, Any]:
    """What was measured of tokenizers and new vocabularies: docs/vocabulary.md."""
    text = resources.files("lepta").joinpath("data/plan/vocabularies.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def language_code(name: str) -> str | None:
    """`ru` or `en` where there are measurements for a language, by its name in a recipe."""
    return "ru" if name.lower() in RUSSIAN else "en" if name.lower() in ENGLISH else None


def original_estimate(tokenizer: str | None, language: str) -> Density:
    """Characters per token of an original vocabulary, from the table."""
    code, known = language_code(language), measured_vocabularies()["tokenizers"].get(tokenizer)
    if code is None or known is None:
        return Density(None, "not known: nothing was measured of this tokenizer in this language")
    return Density(known[code], "from docs/vocabulary.md")


def new_estimate(tokenizer: str | None, settings: VocabularySettings, size: int, language: str) -> Density:
    """Characters per token to expect of a new vocabulary: that of the measured one nearest in scenario and size.

    Parameters
    ----------
    tokenizer : str or None
        Name of the original among those that were measured.
    settings : VocabularySettings
    size : int
        Ids of the new vocabulary.
    language : str
        Name in the recipe.
    """
    table, code = measured_vocabularies(), language_code(language)
    known = table["tokenizers"].get(tokenizer)
    if code is None or known is None:
        return Density(None, "not known: no vocabulary of this kind was measured")
    rows = [row for row in table["measured"] if row["scenario"] == settings.scenario and _comparable(row, known)]
    if not rows:
        return Density(None, f"not known: none of scenario {settings.scenario} was measured for this tokenizer")
    wanted = _learned(settings.scenario, known, size)

    def apart(row: dict[str, Any]) -> float:
        number = _learned(row["scenario"], table["tokenizers"][row["tokenizer"]], row["size"])
        return max(number / wanted, wanted / number)

    nearest = min(rows, key=apart)
    which = "" if nearest["tokenizer"] == tokenizer and apart(nearest) < SAME_SIZE else "nearest to it "
    what = f"{nearest['scenario']}, {nearest['tokenizer']}, {nearest['size']:,} ids"
    return Density(nearest[code], f"estimate: measured row {which}({what}) of docs/vocabulary.md")


def _comparable(row: dict[str, Any], known: dict[str, Any]) -> bool:
    """A vocabulary that replaces another depends on its kind only; one that extends it, on the tokenizer itself."""
    measured_on = measured_vocabularies()["tokenizers"][row["tokenizer"]]
    return measured_on["kind"] == known["kind"] if row["scenario"] in ("bpe", "unigram") else measured_on is known


def _learned(scenario: str, known: dict[str, Any], size: int) -> int:
    """Tokens by which two vocabularies of a scenario are compared: new ones if they extend, else all."""
    return max(size - known["tokens"] if scenario == "extended" else size, 1)
