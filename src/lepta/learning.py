"""Stages that train the base model, in a recipe or as a command: distillation and pre-training, with their text."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lepta.core.errors import LeptaError
from lepta.distillation.distill import distill_folder
from lepta.distillation.settings import DistillSettings
from lepta.evaluation.benchmark import scores_of
from lepta.inference.bits import WINDOW, read_windows
from lepta.models.folder import Checkpoint
from lepta.models.split import NewRows
from lepta.text.locate import locate
from lepta.text.settings import Text
from lepta.text.sources import read_documents
from lepta.training.blocks import TrainingText
from lepta.training.distributed import with_curve
from lepta.training.pretrain import HeldOut, pretrain_folder
from lepta.training.settings import PretrainSettings
from lepta.training.substitution import Substitution
from lepta.vocabulary.change import VocabularyChange, first_other_token
from lepta.vocabulary.source import TOKENIZER_FILES, vocabulary_of
from lepta.vocabulary.tokens import Kind, Vocabulary


def sources_of(text: Text, part: str) -> dict[str, list[str]]:
    """Label -> text sources of both languages; `part` is train or valid."""
    return {f"{part} {side.language}": getattr(side, part) for side in (text.target, text.source)}


def distill_texts(text: Text, settings: DistillSettings) -> dict[str, list[str]]:
    """Label -> text sources that distillation reads; those of the source language only where needed."""
    sides = [text.target, text.source] if settings.reads_source else [text.target]
    return {f"train {side.language}": side.train for side in sides if side.train}


def distill(
    original: Path, start: Path, text: Text, settings: DistillSettings, seed: int, folder: Path
) -> dict[str, Any]:
    """Token distillation from one model folder to another; all processes come here."""
    documents = partial(read_documents, text.target.train)
    source = partial(read_documents, text.source.train) if text.source.train else None
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
        documents = partial(read_documents, side.train)
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
    return with_curve(folder, pretrain_folder(start, new_rows, learned, held_out, settings, seed, folder, teacher))


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
