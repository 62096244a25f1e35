"""What documents share: runs of words, as hashes of words of any language, without a tokenizer to be fetched.

A corpus must not hold runs of a benchmark (`Contamination`), nor documents that share most of their runs with an
earlier one: datatrove's MinHash-LSH, which signs documents, finds pairs with an equal bucket, and clusters of pairs.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import regex
import xxhash
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupCluster, MinhashDedupSignature
from datatrove.utils.word_tokenizers import WordTokenizer

from lepta.core.errors import LeptaError
from lepta.corpora.clean import Cleaner
from lepta.corpora.settings import Clean, Decontaminate, Deduplicate
from lepta.text.formats import read_rows
from lepta.text.sources import DATASET, read_documents, read_file, text_files

# Scripts that write no spaces: each character counts as a word.
_UNSPACED = (
    r"\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}"
    r"\p{Script=Myanmar}"
)
_MAY_BE_UNSPACED = re.compile("[\u0e00-\u1fff\u2e80-\U0003ffff]")  # two ranges are ten times as fast as seven scripts
_SPACED_WORD = regex.compile(r"\w+", regex.V1)
_WORD = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[\w--[{_UNSPACED}]]+", regex.V1)
PIECE = 1 << 20  # characters whose words are in memory at once
BLOCK = 1024  # runs of words that are hashed at once: 0.11 us each for 112 hashes, and they stay in the cache
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
    parts = [np.empty(0, np.uint64)]
    for start in range(0, len(text), PIECE):
        words = split_words(text[start : start + PIECE].lower())
        parts.append(np.fromiter(map(xxhash.xxh64_intdigest, map(str.encode, words)), np.uint64, len(words)))
    return np.concatenate(parts)


def ngram_hashes(words: np.ndarray, n: int) -> np.ndarray:
    """Hash each run of n words, given the hashes of the words; empty if there are fewer than n."""
    count = max(len(words) - n + 1, 0)
    hashes = np.zeros(count, np.uint64)
    for i in range(n):
        hashes = hashes * _MULTIPLIER + words[i : i + count]
    return hashes


# --- contamination ----------------------------------------------------------------------------------------------------


def build_index(settings: Decontaminate, clean: Clean, place: Path) -> dict[str, int]:
    """Write the hashes of all runs of words of the texts to keep out: sorted, eight bytes each.

    Texts are looked for in cleaned documents, so each is also cleaned as a document is. Returns how many strings and
    runs there are, and how many strings are shorter than a run when they are cleaned, so that nothing guards them.
    """
    cleaners = [Cleaner(clean)]
    if clean.scripts:  # a line that is foreign by itself may be part of one that is not
        cleaners.append(Cleaner(clean.model_copy(update={"foreign_line_share": 1.0})))
    strings = short = 0
    parts = [np.empty(0, np.uint64)]
    for text in itertools.chain.from_iterable(map(strings_of, settings.against)):
        cleaned = {cleaner.clean(text).text for cleaner in cleaners}
        runs = {form: ngram_hashes(word_hashes(form), settings.ngram) for form in cleaned | {text}}
        strings, short = strings + 1, short + (not any(len(runs[form]) for form in cleaned))
        parts += runs.values()
    index = np.unique(np.concatenate(parts))
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
            for document, _ in read_file(file):
                yield document.text
        else:
            for row in read_rows(file):
                yield from _strings_in(row.value)


def _strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _strings_in(part)


# --- duplicates -------------------------------------------------------------------------------------------------------


def minhash_config(settings: Deduplicate, seed: int) -> MinhashConfig:
    """Give datatrove's settings."""
    return MinhashConfig(
        n_grams=settings.ngram, num_buckets=settings.buckets, hashes_per_bucket=settings.hashes, seed=seed
    )


class Signatures(MinhashDedupSignature):
    """datatrove's signatures, over words of any language, in memory that does not grow with the document."""

    def __init__(self, folder: str, config: MinhashConfig) -> None:
        super().__init__(folder, config, language=WORDS)

    def get_shingles(self, text: str) -> np.ndarray:
        """Hash the runs of words of a text as uint64 (runs, 1); a text shorter than a run is one run."""
        words = word_hashes(text)
        return ngram_hashes(words, min(self.config.n_grams, len(words)))[:, None] if len(words) else words[:, None]

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        """Compute the smallest value of each hash, by bucket.

        The hashes are a x + b modulo 2^64 (x is random already), not modulo a prime: 30 times as fast. The last three
        bits go because datatrove's buckets end at 2^61.
        """
        a, b = self.parameters
        smallest = np.full(self.num_hashes, np.iinfo(np.uint64).max, np.uint64)
        for start in range(0, len(shingles), BLOCK):
            np.minimum(smallest, (shingles[start : start + BLOCK] * (a | np.uint64(1)) + b).min(axis=0), out=smallest)
        return (smallest >> np.uint64(3)).reshape(self.config.num_buckets, -1).tolist()


class Clusters(MinhashDedupCluster):
    """datatrove's clusters, but of each the first document is kept, whatever order the pairs come in."""

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Read pairs (task, document, task, document); write for each task which documents go."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        parts = [np.empty((0, 2), np.uint64)]
        for name in sorted(self.input_folder.list_files(glob_pattern="*.dups")):
            with self.input_folder.open(name, "rb") as file:
                parts.append(np.frombuffer(file.read(), "<u4").astype(np.uint64).reshape(-1, 2))
        documents = np.concatenate(parts)
        nodes, index = np.unique(documents[:, 0] << np.uint64(32) | documents[:, 1], return_inverse=True)
        left, right = index[::2], index[1::2]
        graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(len(nodes), len(nodes)))
        _, cluster = connected_components(graph, directed=False) if len(nodes) else (0, np.empty(0, np.int64))
        first = np.zeros(len(nodes), bool)
        first[np.unique(cluster, return_index=True)[1]] = True  # nodes are in the order of the corpus
        gone = nodes[~first]
        tasks = gone >> np.uint64(32)
        for task in np.unique(tasks):
            with self.output_folder.open(f"{int(task):06d}.remove", "wb") as file:
                file.write((gone[tasks == task] & np.uint64(0xFFFFFFFF)).astype("<u4").tobytes())
