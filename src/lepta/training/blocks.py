"""From text to training blocks (paper 2.4.1), streamed to disk: every block starts at a document or a paragraph.

Documents are cut into sections of whole paragraphs that fit into a block; sections are put together to blocks that are
as full as can be. No token is dropped, nothing but a paragraph longer than a block is cut, and nothing is in memory
but numbers of sections.
"""

import bisect
import copy
import itertools
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import regex

from lepta.core.errors import LeptaError, explained
from lepta.core.journal import REMEDY
from lepta.core.progress import progress, step
from lepta.inference.generation import start_tokens
from lepta.models.loss import IGNORED
from lepta.training.settings import PretrainSettings
from lepta.training.substitution import Substitution

PARAGRAPH = regex.compile(r"[^\n]*\n+|[^\n]+")  # with the line breaks that end it: the pieces join to the document
CHARACTERS_PER_TOKEN = 4  # about as many as a good vocabulary reaches
REDRAW = 4  # times the share of a text that is drawn, where a draw kept nothing
MARGIN = 2.0  # times the text that a budget needs is tokenised: others reach up to 8 characters
AT_ONCE = 1000  # parts of documents that are tokenised together
WINDOW = 4096  # sections that are fitted together to blocks
TOKENS, SECTIONS, SHARE = "tokens.bin", "sections.npy", "share.npy"


@dataclass(frozen=True)
class TokenStore:
    """Tokenised text on disk: sections, one after the other."""

    tokens: np.ndarray  # uint32, memory-mapped
    starts: np.ndarray  # int64, where each section starts; the last entry is the number of tokens
    share: float = 1.0  # of the whole text, in characters

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each section, int64."""
        return np.diff(self.starts)

    def section(self, number: int) -> np.ndarray:
        """Tokens of a section, uint32."""
        return np.asarray(self.tokens[self.starts[number] : self.starts[number + 1]])

    @staticmethod
    def open(folder: Path) -> "TokenStore":
        """Map a store that `write_tokens` wrote."""
        with explained(folder, "tokens that an interrupted run has left are damaged", REMEDY):
            starts = np.load(folder / SECTIONS)
            tokens = np.memmap(folder / TOKENS, np.uint32, "r") if starts[-1] else np.zeros(0, np.uint32)
            share = float(np.load(folder / SHARE)) if (folder / SHARE).is_file() else 1.0
            if starts[0] != 0 or starts[-1] != len(tokens) or (np.diff(starts) < 0).any():
                raise ValueError(f"{SECTIONS} is not of {TOKENS}")
        return TokenStore(tokens, starts, share)


def write_tokens(
    documents: Iterable[str],
    tokenizer: Any,
    length: int,
    folder: Path,
    share: float = 1.0,
    seed: int = 0,
    substitution: Substitution | None = None,
    characters: int | None = None,
) -> TokenStore:
    """Tokenise documents to disk, cut into sections of at most `length` tokens that are whole paragraphs.

    The tokenizer's start token, if it has one of its own, opens each section, and its end-of-text token closes each
    document. `share` of the text is kept, drawn at random in parts of
    about a block. `characters` is the length of the text, if it is known, for the bar.
    """
    spell = substitution.begin(seed) if substitution else list
    if tokenizer.eos_token_id is None:
        raise LeptaError(
            f"{tokenizer.name_or_path}: the tokenizer has no eos_token, which is to close each document; expected one "
            "in tokenizer_config.json"
        )
    folder.mkdir(parents=True, exist_ok=True)
    starts = array("q", [0])
    parts = _drawn_parts(documents, length, share, seed)
    total = characters * min(share, 1.0) / 1e6 if characters else None
    done = 0
    with (folder / TOKENS).open("wb") as out, progress("tokenising, million characters", total) as bar:
        while batch := list(itertools.islice(parts, AT_ONCE)):
            for section in _sections(tokenizer, batch, length, spell):
                out.write(np.asarray(section, dtype=np.uint32).tobytes())
                starts.append(starts[-1] + len(section))
            done += sum(map(len, _paragraphs(batch)))
            bar.set(done / 1e6, f"{starts[-1]:,} tokens")
    if characters:
        np.save(folder / SHARE, min(done / characters, 1.0))
    partial = folder / f".{SECTIONS}"
    np.save(partial, np.asarray(starts, dtype=np.int64))
    partial.replace(folder / SECTIONS)  # the index comes last: where it is, the tokens are whole
    return TokenStore.open(folder)


@dataclass(frozen=True)
class Part:
    """Consecutive paragraphs of one document."""

    paragraphs: list[str]
    ends_document: bool


def _drawn_parts(documents: Iterable[str], length: int, share: float, seed: int) -> Iterator[Part]:
    """Whole documents, or, if only a share of the text is wanted, parts of about `length` tokens at random.

    Training that sees a little of a corpus should see a little of many documents, not all of a few: 12,000 tokens from
    four whole documents made held-out Russian worse (2.036 -> 2.049 bits per byte).
    """
    draw = random.Random(seed)
    for document in documents:
        paragraphs = PARAGRAPH.findall(document.strip())
        start = size = 0
        for end, paragraph in enumerate(paragraphs, 1):
            size += len(paragraph)
            if end == len(paragraphs) or (share < 1 and size >= length * CHARACTERS_PER_TOKEN):
                if share >= 1 or draw.random() < share:
                    yield Part(paragraphs[start:end], end == len(paragraphs))
                start, size = end, 0


def _paragraphs(parts: Sequence[Part]) -> list[str]:
    """All paragraphs of the parts, in order."""
    return list(itertools.chain.from_iterable(part.paragraphs for part in parts))


def _sections(
    tokenizer: Any, parts: Sequence[Part], length: int, spell: Callable[..., list[list[int]]]
) -> Iterator[list[int]]:
    """Sections: paragraphs of a part in order, as many as fit; one that fits no section is cut."""
    encoded = tokenizer(_paragraphs(parts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    ids = iter(spell(encoded))
    start = start_tokens(tokenizer)
    for part in parts:
        tokenised = list(itertools.islice(ids, len(part.paragraphs)))
        if part.ends_document and tokenised[-1][-1:] != [tokenizer.eos_token_id]:  # a chat template may end with it
            tokenised[-1] = [*tokenised[-1], tokenizer.eos_token_id]
        for section in cut(tokenised, length - len(start)):
            yield [*start, *section]


def cut(paragraphs: Iterable[list[int]], length: int) -> Iterator[list[int]]:
    """Cut paragraphs of token ids into sections of at most `length`; no token is dropped."""
    section: list[int] = []
    for paragraph in paragraphs:
        if section and len(section) + len(paragraph) > length:
            yield section
            section = []
        section += paragraph
        while len(section) > length:
            yield section[:length]
            section = section[length:]
    if section:
        yield section


def fit(lengths: np.ndarray, length: int) -> list[list[int]]:
    """Pack sections into blocks, best fit first: each goes to the fullest block that still has room.

    Gives the numbers of the sections of each block, longest first; blocks stand in the order in which they were begun.
    No section may be longer than `length`, in tokens.
    """
    blocks: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, block), sorted
    for number in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[number])
        place = bisect.bisect_left(room, (size, -1))
        if place == len(room):
            left, block = length, len(blocks)
            blocks.append([])
        else:
            left, block = room.pop(place)
        blocks[block].append(number)
        if left > size:
            bisect.insort(room, (left - size, block))
    return blocks


@dataclass(frozen=True)
class Packed:
    """Blocks of one text: `members[starts[n]:starts[n + 1]]` are the numbers of the sections in block n, int64."""

    store: TokenStore
    members: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def sections(self, number: int) -> np.ndarray:
        """Numbers of the sections of a block, in order."""
        return self.members[self.starts[number] : self.starts[number + 1]]

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each block, int64."""
        return np.add.reduceat(self.store.lengths[self.members], self.starts[:-1])


def example_of(ids: np.ndarray, labels: np.ndarray, lengths: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """An example of several sections that do not see each other: positions restart from 0 in each.

    The label of a section's first token is dropped, as nothing that could predict it is seen.
    """
    labels[np.cumsum(lengths)[:-1]] = IGNORED
    positions = np.concatenate(list(map(np.arange, lengths)))
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


class Blocks:
    """The blocks of a whole run in training order; `blocks[n]` is an example for training."""

    def __init__(self, texts: Sequence[Packed], documents_apart: bool = False, start: Sequence[int] = ()) -> None:
        self.texts, self.documents_apart = texts, documents_apart
        self.start = start  # the token that opens each section, if any: never predicted
        # Evenly spread: the n-th of N blocks of a text stands at (n + 1/2) / N of the run.
        counts = list(map(len, texts))
        places = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
        order = np.argsort(places, kind="stable")
        self.text_of = np.repeat(np.arange(len(texts), dtype=np.uint8), counts)[order]  # which text a block is from
        self.number_of = np.concatenate(list(map(np.arange, counts)))[order]  # its number there
        self.sizes = np.concatenate([text.sizes for text in texts])[order]  # tokens of each block

    def __len__(self) -> int:
        return len(self.text_of)

    def first(self, share: float) -> "Blocks":
        """The first blocks of the run, so large a share of them."""
        part, number = copy.copy(self), max(1, round(len(self) * share))
        part.text_of, part.number_of, part.sizes = self.text_of[:number], self.number_of[:number], self.sizes[:number]
        return part

    def facts(self, length: int) -> dict[str, Any]:
        """For the manifest: tokens, blocks, how full they are, and how often each text is gone through."""
        passes = []
        for number, text in enumerate(self.texts):
            seen = self.sizes[self.text_of == number].sum()
            whole = max(text.store.starts[-1], 1) / text.store.share
            passes.append(float(f"{seen / whole:.3g}"))
        return {
            "tokens": int(self.sizes.sum()),
            "blocks": len(self),
            "full": round(float(self.sizes.mean() / length), 4),
            "passes": passes,
        }

    def sections_of(self, number: int) -> list[np.ndarray]:
        """Tokens of each section of a block, uint32."""
        text = self.texts[self.text_of[number]]
        return [text.store.section(section) for section in text.sections(int(self.number_of[number]))]

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        sections = self.sections_of(number)
        ids = np.concatenate(sections).astype(np.int64)
        labels = np.where(np.isin(ids, self.start), IGNORED, ids)
        if not self.documents_apart:
            return {"input_ids": ids, "labels": labels}
        return example_of(ids, labels, list(map(len, sections)))


def lay_out(store: TokenStore, tokens: int, length: int, seed: int, batch: int = 1, others: int = 0) -> Packed:
    """Go through a text as often as a budget of tokens asks for, each time in another order, in blocks of `length`.

    The text has a token. The last block may go beyond the budget. Blocks are added until they, with `others` of other
    texts, make whole batches: processes share a batch equally.
    """
    members, starts, generator = array("q"), array("q", [0]), np.random.default_rng(seed)
    blocks = itertools.chain.from_iterable(_one_pass(store.lengths, length, generator) for _ in itertools.count())
    while tokens > 0 or (len(starts) - 1 + others) % batch:
        block = next(blocks)
        members.extend(block.tolist())
        starts.append(len(members))
        tokens -= int(store.lengths[block].sum())
    return Packed(store, np.asarray(members, dtype=np.int64), np.asarray(starts, dtype=np.int64))


def _one_pass(lengths: np.ndarray, length: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """All sections once, in a random order, as blocks in a random order."""
    numbers = generator.permutation(len(lengths))
    for start in range(0, len(numbers), WINDOW):
        window = numbers[start : start + WINDOW]
        blocks = fit(lengths[window], length)
        for chosen in generator.permutation(len(blocks)):
            yield window[generator.permutation(blocks[chosen])]


@dataclass(frozen=True)
class TrainingText:
    """One language's part of the training text."""

    documents: Callable[[], Iterable[str]]  # called once to count characters, and again for each draw, mostly one
    share: float  # of all tokens
    name: str = "training text"  # for messages
    substitution: Substitution | None = None  # of new tokens by their parts


def training_blocks(
    texts: Sequence[TrainingText], tokenizer: Any, settings: PretrainSettings, seed: int, folder: Path
) -> Blocks:
    """Tokenise into `folder` what a run needs of its texts, unless that was done already, and lay out its blocks.

    The text with the largest share comes first: it fills up the last batch.
    """
    packed: list[Packed] = []
    for number, text in reversed(list(enumerate(texts))):
        if not text.share:
            continue
        place, budget = folder / str(number), max(1, round(settings.tokens * text.share))
        store = TokenStore.open(place) if (place / SECTIONS).is_file() else None
        if store is None or not len(store.lengths):
            store = _drawn(text, tokenizer, budget, settings.block, seed, place)
        others = sum(map(len, packed))
        with step("laying out blocks"):
            packed.append(lay_out(store, budget, settings.block, seed, 1 if number else settings.batch, others))
    return Blocks(packed[::-1], settings.documents_apart, start_tokens(tokenizer))


def _drawn(text: TrainingText, tokenizer: Any, budget: int, length: int, seed: int, place: Path) -> TokenStore:
    """Tokenise as much of a text as a budget of tokens needs."""
    with step(f"counting the characters of {text.name}"):
        characters = sum(map(len, text.documents()))
    share = MARGIN * CHARACTERS_PER_TOKEN * budget / max(characters, 1)
    while True:
        store = write_tokens(text.documents(), tokenizer, length, place, share, seed, text.substitution, characters)
        if len(store.lengths):
            return store
        if share >= 1:
            raise LeptaError(
                f"{text.name}: it holds no token; expected text for {budget:,} (tokens x share of this text)"
            )
        share *= REDRAW  # a draw of few parts out of many may be of none
