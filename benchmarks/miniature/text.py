"""Text of one seed: passages of the sources, of some a few words said again and again; held-out text is as it is."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import regex

from benchmarks.miniature.settings import Sample, Texts
from lepta.text.sources import read_documents

PASSAGE = 600  # characters, about; a model sees a few of them at once
MOST_WORDS = 8  # of a passage, that are said again and again
REPEATED = 300  # characters that come of it, about
READ = 100_000_000  # characters of a source that passages are drawn from
VALID = 50  # one passage in so many is held out where a source names no held-out text
PARTS = ("train", "valid")


def passages(sources: Sequence[str]) -> list[str]:
    """Cut documents into passages of whole paragraphs, where those are not too long."""
    found, characters = [], 0
    for document in read_documents(sources):
        found += [
            piece.strip() for piece in regex.findall(rf"(?s).{{1,{PASSAGE}}}(?:\n|$)|.{{1,{PASSAGE}}}\s", document)
        ]
        characters += len(document)
        if characters > READ:
            break
    return [piece for piece in found if piece]


def draw_text(texts: Texts, sample: Sample, seed: int, folder: Path) -> dict[str, int]:
    """Write LANGUAGE/train.jsonl and LANGUAGE/valid.jsonl; returns characters of each."""
    facts = {}
    for language in ("ru", "en"):
        side = getattr(texts, language)
        train = passages(side.train)
        if side.valid:
            valid = passages(side.valid)
        else:
            train, valid = [text for n, text in enumerate(train) if n % VALID], train[::VALID]
        draw = random.Random(f"text {language} {seed}")
        draw.shuffle(train)
        random.Random(f"valid {language}").shuffle(valid)
        chosen = {
            "train": [
                _perhaps_repeated(text, sample.repeated, draw) for text in _first(train, getattr(sample, language))
            ],
            "valid": _first(valid, sample.held_out),
        }
        (folder / language).mkdir()
        for part, rows in chosen.items():
            write_rows(folder / language / f"{part}.jsonl", [{"text": text} for text in rows])
            facts[f"{language} {part}"] = sum(map(len, rows))
    return facts


def _first(texts: Sequence[str], characters: int) -> list[str]:
    kept = []
    for text in texts:
        if characters <= 0:
            break
        kept.append(text)
        characters -= len(text)
    return kept


def _perhaps_repeated(text: str, share: float, draw: random.Random) -> str:
    """The passage, or with the given probability some of its words, in any order, again and again.

    Nothing but copying predicts those, so that models learn to copy from few tokens.
    """
    words = text.split()
    if draw.random() >= share:
        return text
    said = " ".join(draw.sample(words, draw.randint(1, min(MOST_WORDS, len(words)))))
    return " ".join([said] * max(2, REPEATED // len(said)))


def write_rows(file: Path, rows: Sequence[dict]) -> None:
    """Write JSON lines."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
