"""Runs of words that a corpus must not hold, such as those of a benchmark."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lepta.core.errors import LeptaError
from lepta.corpora.clean import Cleaner
from lepta.corpora.settings import Clean, Decontaminate
from lepta.corpora.words import ngram_hashes, word_hashes
from lepta.text.formats import read_rows
from lepta.text.sources import DATASET, read_documents, read_file, text_files


def build_index(settings: Decontaminate, clean: Clean, place: Path) -> dict[str, int]:
    """Write the hashes of all runs of words of the texts to keep out: sorted, eight bytes each.

    Texts are looked for in cleaned documents, so each is also cleaned as a document is. Returns how many strings and
    runs there are, and how many strings are shorter than a run when they are cleaned, so that nothing guards them.
    """
    cleaners = [Cleaner(clean)]
    if clean.scripts:  # a line that is foreign by itself may be part of one that is not
        cleaners.append(Cleaner(clean.model_copy(update={"foreign_line_share": 1.0})))
    strings = short = 0
    parts: list[np.ndarray] = []
    for text in (text for source in settings.against for text in strings_of(source)):
        cleaned = {cleaner.clean(text).text for cleaner in cleaners}
        runs = {form: ngram_hashes(word_hashes(form), settings.ngram) for form in cleaned | {text}}
        strings, short = strings + 1, short + (not any(len(runs[form]) for form in cleaned))
        parts += runs.values()
    index = np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)
    if not len(index):
        raise LeptaError(
            f"decontaminate.against: no string of {settings.ngram} words in {', '.join(settings.against)}; "
            "name longer texts, or give a smaller decontaminate.ngram"
        )
    np.save(place, index)
    return {"strings": strings, "too_short": short, "runs": len(index)}


class Contamination:
    """Finds the runs of an index in documents."""

    def __init__(self, settings: Decontaminate, place: Path) -> None:
        # What `build_index` wrote is mapped, so that all workers of a machine share it.
        self._settings, self._index = settings, np.load(place, mmap_mode="r")

    def found(self, text: str) -> bool:
        """Tell whether a document holds as many runs as drop it."""
        runs = ngram_hashes(word_hashes(text), self._settings.ngram)
        if not len(runs):
            return False
        places = np.minimum(np.searchsorted(self._index, runs), len(self._index) - 1)
        return int((self._index[places] == runs).sum()) >= self._settings.hits


def strings_of(source: str) -> Iterator[str]:
    """Stream the texts of a source; of rows, all strings in them."""
    if source.startswith(DATASET):
        yield from read_documents([source])
        return
    for file in text_files(source):
        if file.name.endswith(".txt"):
            yield from (document.text for document, _ in read_file(file))
        else:
            for row in read_rows(file):
                yield from _strings_in(row.value)


def _strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings_in(part)
