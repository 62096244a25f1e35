"""Tune a model on conversations (paper 2.4.3): low-rank changes and what trains whole, merged into plain weights."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from lepta.core.output import write_json
from lepta.core.progress import console
from lepta.core.reading import read_json
from lepta.models.folder import MODEL_FILES, Checkpoint
from lepta.models.load import device, load_tokenizer, opened
from lepta.stages import CHECKPOINTS, Stage
from lepta.text.locate import locate
from lepta.training.blocks import TokenStore
from lepta.training.conversations import (
    ConversationRows,
    Message,
    lay_out_rows,
    read_conversations,
    write_examples,
)
from lepta.training.distributed import CURVE, processes, with_curve
from lepta.training.merge import prepare_merge, write_merged
from lepta.training.precision import compute_dtype, load_for_training, resolved_body_dtype
from lepta.training.preference import prefer_folder, read_preferences
from lepta.training.settings import PreferenceSettings, TuneSettings, checkpoint_steps
from lepta.training.trainable import make_tunable, unreached
from lepta.training.trainer import Run, Trained, check_apart, padding_id, train

FEW_STEPS = 10  # with fewer, hardly anything is learned
MICRO_BATCH = 4  # on a GPU


def tune(
    model: Any,
    tokenizer: Any,
    conversations: Iterable[Sequence[Message]],
    work: Path,
    settings: TuneSettings,
    seed: int = 1,
    source: Checkpoint | None = None,
) -> tuple[Trained, dict[str, Any]]:
    """Tune a model, in place, on conversations, which are gone through once, to files in `work`.

    Low-rank layers may be put in (see `make_tunable`); a body in 16 or 4 bits stays as it is. A whole checkpoint found
    in `work` is resumed from. If the result is to be written from `source`, it is checked before training that it can
    be. Gives what was trained and the counts of `write_examples`, `rows`, `steps`, and `unreached` if low-rank changes
    do not reach all matrices. LeptaError if there is no chat template, or nothing to learn from, or the model cannot be
    trained so.
    """
    with processes().main_process_first():  # the others then find the examples on disk
        store, counts = write_examples(
            conversations, tokenizer, settings.max_length, work / "examples", settings.thinking
        )
    number = processes().num_processes
    if counts["too_long"]:
        console.print(
            f"  note: left out as longer than --max-length: {counts['too_long']:,} of "
            f"{counts['conversations']:,} conversations"
        )
    rows, steps = _laid_out(store, settings, seed, number)
    if settings.packing:
        check_apart(model, "packing")
    torch.manual_seed(seed)  # LoRA starts from random numbers
    groups = make_tunable(model, settings)
    if source is not None:
        prepare_merge(model, source)
    run = Run(
        model,
        rows,
        groups,
        work,
        settings.batch,
        seed,
        description="tuning, steps",
        pad_id=padding_id(tokenizer),
        micro_batch=micro_batch(settings, settings.batch // number),
        warmup_steps=steps // 10,  # none of a short run: its first step would have no rate
        save_every=checkpoint_steps(settings, steps),
        dtype=compute_dtype(settings.body_dtype, model.config),
        gradient_checkpointing=settings.gradient_checkpointing,
        report_to=settings.report_to,
    )
    trained = train(run)
    facts: dict[str, Any] = {**counts, "rows": len(rows), "steps": steps}
    if missed := unreached(model, settings):
        facts["unreached"] = missed
    return trained, facts


def _laid_out(store: TokenStore, settings: TuneSettings, seed: int, number: int) -> tuple[ConversationRows, int]:
    """Rows in training order for so many processes, and the steps that they are."""
    length = settings.max_length if settings.packing else None
    rows = lay_out_rows(store, settings.epochs, settings.batch, seed, length, number)
    steps = math.ceil(len(rows) / settings.batch)
    if steps < FEW_STEPS and settings.batch > 1:
        console.print(
            f"  note: steps: {steps}, of {settings.batch} rows each, too few to learn from; "
            f"--batch {max(1, len(rows) // FEW_STEPS)} makes {FEW_STEPS} of them"
        )
    return rows, steps


def micro_batch(settings: TuneSettings, share: int) -> int:
    """Rows that a process holds at once, of its share of a step.

    On a CPU more than one saves no time: four rows of 2,600 tokens took 11 GB with SmolLM2-135M, one 5 GB.
    """
    if settings.micro_batch:
        return settings.micro_batch
    if device().type == "cpu":
        return 1
    return max(size for size in range(1, MICRO_BATCH + 1) if share % size == 0)


def tune_folder(
    source: str | Path,
    conversations: Iterable[Sequence[Message]],
    settings: TuneSettings,
    seed: int,
    folder: str | Path,
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Tune a model folder and write the result as a plain one; what does not train is copied byte for byte.

    `source` is any model source; for the conversations see `tune`. `folder` exists; checkpoints found in it are
    resumed from. Gives facts (counts, `body_dtype`, and how far the written model's logits are from those of the one
    that was trained) and the curve.
    """
    checkpoint, folder = Checkpoint(source), Path(folder)
    source = checkpoint.folder
    work = folder / CHECKPOINTS
    body_dtype = resolved_body_dtype(settings.body_dtype, source, work)
    settings = settings.model_copy(update={"body_dtype": body_dtype})
    model, tokenizer = load_for_training(source, settings), load_tokenizer(source)
    trained, facts = tune(model, tokenizer, conversations, work, settings, seed, checkpoint)
    facts["body_dtype"] = body_dtype
    losses = [entry["loss"] for entry in trained.curve if "loss" in entry]
    quarter = max(1, len(losses) // 4)  # a step has few conversations, and its loss is theirs
    first, last = fmean(losses[:quarter]), fmean(losses[-quarter:])
    facts["loss"] = {"first_quarter": first, "last_quarter": last}
    if processes().is_main_process:
        facts |= write_merged(model, trained.weights, source, folder)
    if last > first and len(losses) >= FEW_STEPS:
        warning = f"the loss rose from {first:.3f} to {last:.3f}; give more conversations or a lower learning rate"
        facts["warnings"] = [*facts.get("warnings", []), warning]
    processes().wait_for_everyone()
    return facts, trained.curve


@dataclass(frozen=True)
class Copies:
    """Conversations that ask to repeat a text, added to those of the files."""

    make: Callable[[], tuple[list[list[Message]], dict[str, int]]]  # conversations, and counts for the manifest
    settings: dict[str, Any]  # with the texts, all that decides them
    texts: dict[str, list[str]]  # label -> text sources


@dataclass(frozen=True)
class TuneCommand:
    """What `lepta tune` makes of a model: tuned on conversations, and then perhaps on preferences."""

    settings: TuneSettings
    seed: int
    data: list[str]  # files of conversations
    copies: Copies | None = None
    preferences: list[str] = field(default_factory=list)  # files of preferences (see `read_preferences`)
    preference: PreferenceSettings = field(default_factory=PreferenceSettings)
    limit: int | None = None  # of the conversations of the files

    def run(self, model: str, folder: Path) -> dict[str, Any]:
        """Tune a model source into a folder; returns the facts of `tune_folder`, `copies` and `preference`."""
        with opened(model) as start:
            if not self.preferences:
                return self._tune(start.folder, folder)
            tuned, done = folder / CHECKPOINTS / "tuned", folder / CHECKPOINTS / "tuned.json"
            if not done.is_file():
                tuned.mkdir(parents=True, exist_ok=True)
                write_json(done, self._tune(start.folder, tuned))
            processes().wait_for_everyone()
            examples = read_preferences(self.preferences, self.preference.method)
            facts, curve = prefer_folder(tuned, examples, self.preference, self.seed, folder)
        if processes().is_main_process:
            write_json(folder / CURVE, {"curve": read_json(tuned / CURVE)["curve"], "preference": curve})
        return {**read_json(done), "preference": facts}

    def size(self, tokenizer: Any, work: Path) -> tuple[ConversationRows, int]:
        """Rows and steps of training on the conversations, whose tokens are written into the folder `work`."""
        conversations, _ = self._conversations()
        settings = self.settings
        store, _ = write_examples(conversations, tokenizer, settings.max_length, work / "examples", settings.thinking)
        return _laid_out(store, settings, self.seed, 1)

    def _conversations(self) -> tuple[Iterable[Sequence[Message]], dict[str, Any]]:
        """Those of the files, then copies, with what was counted of these."""
        conversations: Iterable[Sequence[Message]] = itertools.islice(read_conversations(self.data), self.limit)
        if not self.copies:
            return conversations, {}
        added, counts = self.copies.make()
        return itertools.chain(conversations, added), {"copies": counts}

    def _tune(self, source: Path, folder: Path) -> dict[str, Any]:
        conversations, counts = self._conversations()
        return with_curve(folder, tune_folder(source, conversations, self.settings, self.seed, folder)) | counts

    def stage(self, model: str, name: str) -> Stage:
        """The stage that `run` is, of this name."""
        key = {**self.settings.model_dump(), "seed": self.seed}
        if self.limit:
            key["limit"] = self.limit
        texts = {"data": self.data}
        if self.copies:
            key["copies"] = self.copies.settings
            texts |= self.copies.texts
        if self.preferences:
            key["preference"] = self.preference.model_dump()
            texts["preferences"] = self.preferences
        place = locate(model, hub_files=MODEL_FILES)
        named = {} if place.is_dir() else {"model": str(model)}  # the folder of a hub's model says its name, and more
        return Stage(name, {"model": place}, key, lambda folder: self.run(model, folder), texts, True, named)
