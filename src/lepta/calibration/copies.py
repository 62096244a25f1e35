"""Examples that ask to repeat a text, of texts that were neither trained on nor are in the benchmark."""

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lepta.calibration.settings import CopySettings
from lepta.core.errors import LeptaError, optional
from lepta.core.progress import progress
from lepta.core.shipped import shipped_data
from lepta.inference.chat import Message
from lepta.text.sources import read_documents
from lepta.training.blocks import PARAGRAPH

SHORTEST = 60  # characters of a text to repeat
SPARE = 2  # times the texts that are asked for are drawn: some are known from elsewhere


def copy_examples(
    settings: CopySettings, apart_from: Sequence[str], seed: int
) -> tuple[list[list[Message]], dict[str, int]]:
    """Draw texts that share no run of words with the sources `apart_from`, which are streamed, and ask for them.

    Also how many texts were `drawn`, how many of those are `known` from elsewhere, and how many were `copied`.
    """
    if not settings.number:
        return [], {"drawn": 0, "known": 0, "copied": 0}
    requests = settings.prompts or _requests(settings.language)
    generator = random.Random(seed)
    passages = draw(read_documents(settings.text), settings.number * SPARE, settings.characters, generator)
    known = known_elsewhere(passages, apart_from, settings.ngram) if apart_from else np.zeros(len(passages), bool)
    kept = [passage for passage, old in zip(passages, known, strict=True) if not old][: settings.number]
    if not kept:
        raise LeptaError(
            f"copies: all {len(passages)} texts of {', '.join(settings.text)} are in {', '.join(apart_from)}; "
            "name other text, or leave out what they may be in"
        )
    examples: list[list[Message]] = []
    for passage in kept:
        request = generator.choice(requests).replace("{text}", passage)
        examples.append([{"role": "user", "content": request}, {"role": "assistant", "content": passage}])
    return examples, {"drawn": len(passages), "known": int(known.sum()), "copied": len(kept)}


def _requests(language: str) -> list[str]:
    known: dict[str, list[str]] = shipped_data("calibration/copy_prompts.yaml")
    if language not in known:
        raise LeptaError(
            f"copies.language: no requests in {language!r}, only in {', '.join(known)}; write `copies.prompts`"
        )
    return known[language]


def draw(documents: Iterable[str], number: int, characters: int, generator: random.Random) -> list[str]:
    """Draw passages of whole paragraphs from a stream, all equally likely, in random order.

    Their lengths are spread evenly on a logarithmic scale up to `characters`: sentences, paragraphs and articles.
    """
    drawn: list[str] = []  # a reservoir (algorithm R): the stream may be of any length
    for seen, passage in enumerate(_passages(documents, characters, generator)):
        place = seen if seen < number else generator.randrange(seen + 1)
        if place < len(drawn):
            drawn[place] = passage
        elif place < number:
            drawn.append(passage)
    generator.shuffle(drawn)
    return drawn


def _passages(documents: Iterable[str], characters: int, generator: random.Random) -> Iterator[str]:
    for document in documents:
        passage, wanted = "", 0.0
        for paragraph in PARAGRAPH.findall(document.strip()):
            wanted = wanted or math.exp(generator.uniform(math.log(SHORTEST), math.log(characters)))
            if len(passage) + len(paragraph) > characters:
                passage, wanted = "", 0.0
                continue
            passage += paragraph
            if len(passage) >= wanted:
                if len(passage.strip()) >= SHORTEST:
                    yield passage.strip()
                passage, wanted = "", 0.0


def known_elsewhere(passages: Sequence[str], sources: Sequence[str], ngram: int) -> np.ndarray:
    """Tell which passages share a run of words with some texts; one too short for a run counts as known.

    Only the passages' runs are in memory, eight bytes each; the texts are streamed.
    """
    with optional("copies.apart_from", "corpus"):
        from lepta.corpora.overlap import ngram_hashes, strings_of, word_hashes
    runs = [ngram_hashes(word_hashes(passage), ngram) for passage in passages]
    lengths = np.array(list(map(len, runs)), int)
    owners = np.repeat(np.arange(len(runs)), lengths)
    index, place = np.unique(np.concatenate([*runs, np.empty(0, np.uint64)]), return_inverse=True)
    found = np.zeros(len(index), bool)
    with progress("reading text that copies must not be in, texts", None) as bar:
        for number, text in enumerate(itertools.chain.from_iterable(map(strings_of, sources)), 1):
            theirs = ngram_hashes(word_hashes(text), ngram)
            if len(theirs) and len(index):
                places = np.minimum(np.searchsorted(index, theirs), len(index) - 1)
                found[places[index[places] == theirs]] = True
            bar.set(number)
    known = lengths == 0
    known[owners[found[place]]] = True
    return known
