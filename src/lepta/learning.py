"""Stages that train on text, in a recipe or as a command: distillation, pre-training, and repair of a variant by both.

Try: lepta repair --help
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lepta.core.errors import LeptaError
from lepta.core.output import read_manifest
from lepta.core.settings import nonempty
from lepta.distillation.distill import distill_folder
from lepta.distillation.passages import cut
from lepta.distillation.settings import DistillSettings, RepairSettings
from lepta.evaluation.benchmark import scores_of
from lepta.inference.bits import WINDOW, read_windows
from lepta.inference.chat import around_turns
from lepta.models.folder import Checkpoint
from lepta.models.load import load_tokenizer
from lepta.models.split import NewRows
from lepta.stages import Stage
from lepta.text.locate import locate
from lepta.text.settings import Text
from lepta.text.sources import read_documents
from lepta.training.blocks import TrainingText
from lepta.training.distributed import processes, run_steps, with_curve
from lepta.training.pretrain import HeldOut, pretrain_folder
from lepta.training.settings import PretrainSettings
from lepta.training.substitution import Substitution
from lepta.vocabulary.change import VocabularyChange, first_other_token
from lepta.vocabulary.source import TOKENIZER_FILES, chat_template_of, vocabulary_of
from lepta.vocabulary.tokens import Kind, Vocabulary

# Characters of a piece of text that may become a conversation, and most of those that ask. What was measured
# (docs/propagation.md) had these; with the template a piece fills one passage of 1,600 characters.
PIECE, MESSAGE = 1500, 200


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
    documents = _documents(text.target.train, settings.chat_share, start)
    source = _documents(text.source.train, settings.chat_share, start) if text.source.train else None
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
    return with_curve(folder, pretrain_folder(start, new_rows, learned, held_out, settings, seed, folder, teacher))


def repair_stages(
    out: Path,
    names: tuple[str, str],
    propagated: Path,
    original: Path,
    text: Text,
    settings: RepairSettings,
    seed: int,
) -> list[Stage]:
    """The stages that repair a variant, in folders of `out`: hidden states, then the head; the second has the result.

    `original` is the variant with its own vocabulary. Where the head does not learn (`head_tokens` 0), the first step
    gets the second name.
    """
    states, head, inputs = settings.states, settings.head, {"model": propagated, "original": original}
    first = names[0] if head else names[1]
    stages = [
        Stage(
            first,
            inputs,
            states.model_dump(exclude={"teacher"}) | {"seed": seed},
            partial(pretrain, original, propagated, text, states, seed, teacher=original),
            nonempty(sources_of(text, "train") | sources_of(text, "valid")),
            together=True,
        )
    ]
    if head:
        start = out / first
        stages.append(
            Stage(
                names[1],
                inputs | {"model": start},
                head.model_dump() | {"seed": seed},
                partial(_repair_head, original, start, text, head, seed),
                distill_texts(text, head),
                together=True,
            )
        )
    return stages


def _repair_head(
    original: Path, start: Path, text: Text, settings: DistillSettings, seed: int, folder: Path
) -> dict[str, Any]:
    """`distill`, whose errors then name the settings of the repair."""
    try:
        return distill(original, start, text, settings, seed, folder)
    except LeptaError as error:
        said = str(error).replace("distill.tokens", "repair.head_tokens").replace("distill.", "repair.")
        raise LeptaError(said) from error


def check_head(settings: RepairSettings, tied: bool) -> None:
    """LeptaError if a head is to learn alone and one matrix serves both ends (`tied`)."""
    if tied and settings.head_tokens:
        raise LeptaError(
            "repair.head_tokens: the model has one matrix for both ends, so its head cannot learn alone; expected 0, "
            "or a model with a head of its own (`untie` in distillation)"
        )


def repair_folder(
    propagated: str | Path,
    original: str | Path,
    text: Text,
    settings: RepairSettings,
    seed: int,
    output: str | Path,
    force: bool = False,
) -> dict[str, Any]:
    """Repair a propagated variant, a model folder, from the folder of its original; resumes an earlier run.

    `output` gets the folders `states` (after the first step) and `model`, the result. Gives what both steps found.
    """
    model, teacher, output = Checkpoint(propagated), Checkpoint(original).folder, Path(output)
    check_head(settings, model.output_name is None)
    check_chat_share(settings.chat_share, model.folder)
    stages = repair_stages(output, ("states", "model"), model.folder, teacher, text, settings, seed)
    run_steps(output, stages, force)
    if not processes().is_main_process:
        return {}
    return {stage.name: read_manifest(output / stage.name)["facts"] for stage in stages}


def _documents(sources: list[str], chat_share: float, folder: Path) -> Callable[[], Iterator[str]]:
    """A stream of the texts of sources that can be begun again; see `in_turns` for the share."""
    if not chat_share:
        return partial(read_documents, sources)
    around = around_turns(load_tokenizer(folder))

    def begin() -> Iterator[str]:
        return in_turns(read_documents(sources), chat_share, around)

    return begin


def in_turns(documents: Iterator[str], share: float, around: tuple[str, str, str]) -> Iterator[str]:
    """Texts in pieces, a share of them as conversations: the beginning asks, the rest answers.

    `around` is what stands around both (`lepta.inference.chat.around_turns`).
    """
    before, between, behind = around
    due = 0.0
    for document in documents:
        for piece in cut(document, PIECE):
            due += share
            if due < 1:
                yield piece
                continue
            due -= 1
            asked = min(MESSAGE, len(piece) // 2)
            yield f"{before}{piece[:asked]}{between}{piece[asked:]}{behind}"


def check_chat_share(share: float, model: str | Path) -> None:
    """LeptaError if text is to be read as conversations and the model has no chat template."""
    if share and not chat_template_of(locate(model, hub_files=TOKENIZER_FILES)):
        raise LeptaError(
            f"chat_share: {model} has no chat template; add chat_template.jinja to its folder, or leave chat_share out"
        )


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
