"""Stages that train on text, in a recipe or as a command: distillation and pre-training, and the text that they get."""

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lepta.card import BESIDE_ORIGINAL, is_model
from lepta.core.errors import LeptaError
from lepta.distillation.distill import check_distillation, distill_folder
from lepta.distillation.passages import cut
from lepta.distillation.settings import DistillSettings
from lepta.evaluation.benchmark import scores_of
from lepta.evaluation.measure import score_windows
from lepta.inference.bits import WINDOW, read_windows
from lepta.inference.chat import around_turns
from lepta.models.folder import Checkpoint
from lepta.models.load import load_tokenizer
from lepta.models.split import NewRows
from lepta.text.locate import locate
from lepta.text.settings import Text
from lepta.text.sources import read_documents
from lepta.training.blocks import TrainingText
from lepta.training.distributed import processes, with_curve
from lepta.training.pretrain import HeldOut, pretrain_folder
from lepta.training.settings import PretrainSettings
from lepta.training.substitution import Substitution
from lepta.vocabulary.change import VocabularyChange, first_other_token
from lepta.vocabulary.source import TOKENIZER_FILES, chat_template_of, vocabulary_of
from lepta.vocabulary.tokens import Kind, Vocabulary

Documents = Callable[[], Iterator[str]]  # texts, from the first one on each time

# Characters of a piece of text that may become a conversation, and most of those that ask: what was measured
# (docs/propagation.md). A shorter piece than the last leaves a question nothing to be about.
PIECE, MESSAGE, SHORTEST = 1500, 200, 40
ROUNDING = 1e-6  # of a sum of shares


def sources_of(text: Text, *parts: str) -> dict[str, list[str]]:
    """Label -> text sources of both languages; parts are train and valid."""
    found: dict[str, list[str]] = {}
    for part in parts:
        for side in (text.target, text.source):
            found[f"{part} {side.language}"] = getattr(side, part)
    return found


def distill_texts(text: Text, settings: DistillSettings) -> dict[str, list[str]]:
    """Label -> text sources that distillation reads; those of the source language only where needed.

    LeptaError if those are needed and there are none.
    """
    settings.check_source_text(bool(text.source.train))
    sides = [text.target, text.source] if settings.reads_source else [text.target]
    return {f"train {side.language}": side.train for side in sides if side.train}


def distill(
    original: Path, start: Path, text: Text, settings: DistillSettings, seed: int, folder: Path
) -> dict[str, Any]:
    """Token distillation from one model folder to another; all processes come here."""
    documents, source = _both_sides(text, settings, start)
    return with_curve(folder, distill_folder(original, start, documents, settings, seed, folder, source))


def pretrain(
    base: Path | None,
    start: Path,
    text: Text,
    settings: PretrainSettings,
    seed: int,
    folder: Path,
    teacher: Path | None = None,
) -> dict[str, Any]:
    """One stage of pre-training from a model folder; all processes come here.

    `base` is a model or tokenizer before the vocabulary changed; it tells which rows are new.
    """
    ids, substitution, vocabulary = np.zeros(0, dtype=np.int64), None, None
    if base is not None:
        vocabulary = vocabulary_of(start)
        ids = VocabularyChange.between(vocabulary_of(base), vocabulary).new_ids
        if settings.substitution:
            substitution = Substitution(vocabulary, ids, settings.substitution)
    target, source = text.target, text.source
    shares = ((target, 1 - settings.source_share), (source, settings.source_share))
    learned = []
    for side, share in shares:
        documents = _documents(side.train, settings.chat_share, start)
        learned.append(TrainingText(documents, share, f"text in {side.language}", substitution))
    held_out = HeldOut(
        read_windows(target.valid, WINDOW, settings.measure_characters),
        read_windows(source.valid, WINDOW, settings.measure_characters),
        target.language,
        source.language,
        frozenset(ids.tolist()),
        partial(scores_of, settings=settings.darumeru) if settings.darumeru else None,
    )
    new_rows = _new_rows(ids, vocabulary) if vocabulary and len(ids) else Checkpoint(start).rows
    original = _bits_of_original(base, held_out.target)
    facts, curve = pretrain_folder(start, new_rows, learned, held_out, settings, seed, folder, teacher)
    if original and (change := facts.get("held_out_change")):
        facts[BESIDE_ORIGINAL] = [change[-1], original]
    return with_curve(folder, (facts, curve))


def _bits_of_original(base: Path | None, windows: Sequence[str]) -> float | None:
    """Bits per byte of held-out text by the original, if it is here as a model; measured before another is loaded."""
    if base is None or not windows or not processes().is_main_process:
        return None
    if base.suffix != ".gguf" and not is_model(base):  # its tokenizer alone
        return None
    bits = score_windows(base, windows, WINDOW, "auto").bits_per_byte
    gc.collect()  # modules refer to each other, so the model would stay in memory beside the one that trains
    return bits


def check_distill(original: Path, start: Path, text: Text, settings: DistillSettings, seed: int) -> None:
    """LeptaError if `distill` would refuse the models or the text."""
    documents, source = _both_sides(text, settings, start)
    check_distillation(original, start, documents, settings, seed, source)


def _both_sides(text: Text, settings: DistillSettings, start: Path) -> tuple[Documents, Documents | None]:
    """Text of the target language and, if there is any, of the source language."""
    documents = _documents(text.target.train, settings.chat_share, start, settings.passage)
    if not text.source.train:
        return documents, None
    return documents, _documents(text.source.train, settings.chat_share, start, settings.passage)


def _documents(sources: list[str], chat_share: float, folder: Path, longest: int | None = None) -> Documents:
    """A stream of the texts of sources that can be begun again; see `in_turns` for the share.

    `longest` is how many characters a conversation may have, with its template.
    """
    if not chat_share:
        return partial(read_documents, sources)
    around, length = _around(folder), PIECE
    if longest is not None:
        length = min(PIECE, longest - sum(map(len, around)))
    if length < SHORTEST:
        raise LeptaError(
            f"distill.passage: {longest} characters have no room for a conversation in the chat template of {folder}; "
            f"expected at least {sum(map(len, around)) + SHORTEST}"
        )
    return lambda: in_turns(read_documents(sources), chat_share, around, length)


def _around(folder: Path) -> tuple[str, str, str]:
    """`around_turns` of a model folder, whose errors name it."""
    try:
        return around_turns(load_tokenizer(folder))
    except LeptaError as error:
        raise LeptaError(f"{folder}: {error}; `chat_share` 0 does without it") from error


def in_turns(documents: Iterator[str], share: float, around: tuple[str, str, str], length: int) -> Iterator[str]:
    """Texts in pieces of `length` characters, a share of them as conversations: the beginning asks, the rest answers.

    `around` is what stands around both (`lepta.inference.chat.around_turns`).
    """
    before, between, behind = around
    due = 0.0
    for document in documents:
        for piece in cut(document, length):
            due += share
            asked = min(MESSAGE, len(piece) // 2)
            if due < 1 - ROUNDING or not asked:
                yield piece
                continue
            due -= 1
            yield f"{before}{piece[:asked]}{between}{piece[asked:]}{behind}"


def check_chat_share(share: float, model: Path) -> None:
    """LeptaError if text is to be read as conversations and the model's chat template does not write them."""
    if not share:
        return
    if not chat_template_of(model):
        raise LeptaError(
            f"chat_share: {model} has no chat template; add chat_template.jinja to its folder, or give `chat_share` 0"
        )
    _around(model)


def check_teacher(teacher: str, original: str | Path) -> None:
    """LeptaError unless a model has the original's tokens, from what is known before any stage has run."""
    known = vocabulary_of(locate(original, hub_files=TOKENIZER_FILES))
    own = vocabulary_of(locate(teacher, hub_files=TOKENIZER_FILES))
    if (i := first_other_token(known, own)) is not None:
        raise LeptaError(
            f"pretrain.teacher: {teacher}: id {i} is {own.token(i)!r}, but {known.token(i)!r} in {original}; expected "
            "the model before its vocabulary changed, or another one with its tokens"
        )


def _new_rows(ids: np.ndarray, vocabulary: Vocabulary) -> NewRows:
    """Rows of the new tokens, or the first one where no old token comes after it: padding after them trains too."""
    after = vocabulary.kinds[ids[0] :] != Kind.HOLE
    return int(ids[0]) if after.sum() == len(ids) else ids.tolist()
