"""Tune a model on conversations (paper 2.4.3): low-rank changes and what trains whole, merged into plain weights."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from lepta.calibration.copies import copy_examples
from lepta.calibration.settings import CopySettings
from lepta.core.output import write_json
from lepta.core.stages import CHECKPOINTS, Stage
from lepta.models.folder import MODEL_FILES, Checkpoint
from lepta.models.load import load_tokenizer, opened
from lepta.text.locate import locate, read_json
from lepta.training.alone import facts_of, run_stages
from lepta.training.conversations import Message, lay_out_rows, read_conversations, write_examples
from lepta.training.distributed import processes
from lepta.training.merge import check_mergeable, give_exact_rows, write_merged
from lepta.training.precision import load_for_training, products_dtype, settled
from lepta.training.preference import prefer_folder, read_preferences
from lepta.training.settings import PreferenceSettings, TuneSettings
from lepta.training.trainable import make_tunable, unreached
from lepta.training.trainer import Run, Trained, check_apart, train

MICRO_BATCH = 4
CURVE = "training_curve.json"


def tune(
    model: Any,
    tokenizer: Any,
    conversations: Iterable[Sequence[Message]],
    work: Path,
    settings: TuneSettings,
    seed: int = 1,
    description: str = "tuning",
    source: Checkpoint | None = None,
) -> tuple[Trained, dict[str, Any]]:
    """Tune a model, in place, on conversations.

    Parameters
    ----------
    model : transformers causal LM
        Low-rank layers may be put in (see `make_tunable`); a body in 16 or 4 bits stays as it is.
    tokenizer : transformers tokenizer with a chat template
    conversations : iterable of lists of {"role", "content"}
        Gone through once, to files in `work`.
    work : Path
        Folder for examples and checkpoints; whole ones found there are gone on from.
    settings : TuneSettings
    seed : int
    description : str
        What the progress bar says.
    source : Checkpoint, optional
        That the result is to be written from: before training it is checked that it can be.

    Returns
    -------
    trained : Trained
    counts : dict
        See `write_examples`; `rows`, `steps`, and `unreached` if low-rank changes do not reach all matrices.

    Raises
    ------
    LeptaError
        If there is no chat template, or nothing to learn from, or the model cannot be trained so.
    """
    with processes().main_process_first():  # the others then find the examples on disk
        store, counts = write_examples(conversations, tokenizer, settings.max_length, work / "examples")
    number = processes().num_processes
    length = settings.max_length if settings.packing else None
    rows = lay_out_rows(store, settings.epochs, settings.batch, seed, length, number)
    steps = -(-len(rows) // settings.batch)
    if settings.packing:
        check_apart(model, "packing")
    torch.manual_seed(seed)  # LoRA starts from random numbers
    groups = make_tunable(model, settings)
    if source is not None:
        check_mergeable(model, source)
        give_exact_rows(model, source)
    run = Run(
        batch=settings.batch,
        micro_batch=settings.micro_batch or _micro_batch(settings.batch // number),
        groups=groups,
        warmup_steps=steps // 10,  # none of a short run: its first step would have no rate
        seed=seed,
        save_every=settings.save_every,
        dtype=products_dtype(settings, model.config),
        gradient_checkpointing=settings.gradient_checkpointing,
        report_to=tuple(settings.report_to),
    )
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    trained = train(model, rows, rows.sizes, pad_id or 0, work, description, run)
    missed = unreached(model, settings)
    return trained, {**counts, "rows": len(rows), "steps": steps} | ({"unreached": missed} if missed else {})


def _micro_batch(share: int) -> int:
    return max(size for size in range(1, MICRO_BATCH + 1) if share % size == 0)


def tune_folder(
    source: Path, conversations: Iterable[Sequence[Message]], settings: TuneSettings, seed: int, folder: Path
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Tune a model folder and write the result as a plain one; what does not train is copied byte for byte.

    Parameters
    ----------
    source : Path
    conversations : iterable
        See `tune`.
    settings : TuneSettings
    seed : int
    folder : Path
        Existing folder for the result; checkpoints found in it are resumed from.

    Returns
    -------
    facts : dict
        Counts, `body_dtype`, and how far the written model's logits are from those of the one that was trained.
    curve : list of dict
    """
    work = folder / CHECKPOINTS
    settings = settled(settings, source, work)
    model, tokenizer = load_for_training(source, settings), load_tokenizer(source)
    trained, facts = tune(model, tokenizer, conversations, work, settings, seed, source=Checkpoint(source))
    facts["body_dtype"] = settings.body_dtype
    if processes().is_main_process:
        facts["merged_error"] = write_merged(model, trained.weights, source, folder)
    processes().wait_for_everyone()
    return facts, trained.curve


def tune_stage(
    model: str,
    data: list[str],
    settings: TuneSettings,
    seed: int,
    output: Path,
    force: bool,
    copies: CopySettings | None = None,
    preferences: list[str] | None = None,
    preference: PreferenceSettings | None = None,
) -> dict[str, Any]:
    """Tune any model source into a folder, as a stage that goes on when it was interrupted.

    Parameters
    ----------
    model : str
    data : list of str
        Files of conversations.
    settings : TuneSettings
    seed : int
    output : Path
    force : bool
        Start over where another run was interrupted.
    copies : CopySettings, optional
        Texts to repeat, added to the conversations.
    preferences : list of str, optional
        Files of preferences for a step after tuning (see `read_preferences`).
    preference : PreferenceSettings, optional

    Returns
    -------
    dict
        See `tune_folder`; with `copies` and `preference` where there are such.
    """
    copies, preference = copies or CopySettings(number=0), preference or PreferenceSettings()
    apart = copies.apart_from or []

    def run(folder: Path) -> dict[str, Any]:
        with opened(model) as start:
            if not preferences:
                return _tune_on(start.folder, data, copies, settings, seed, folder)
            tuned, done = folder / CHECKPOINTS / "tuned", folder / CHECKPOINTS / "tuned.json"
            if not done.is_file():
                tuned.mkdir(parents=True, exist_ok=True)
                write_json(done, _tune_on(start.folder, data, copies, settings, seed, tuned))
            processes().wait_for_everyone()
            examples = read_preferences(preferences, preference.method)
            facts, curve = prefer_folder(tuned, examples, preference, seed, folder)
        if processes().is_main_process:
            write_json(folder / CURVE, {"curve": read_json(tuned / CURVE)["curve"], "preference": curve})
        return {**read_json(done), "preference": facts}

    place = locate(model, hub_files=MODEL_FILES)
    key = {**settings.model_dump(), "seed": seed}
    texts = {"data": data, "preferences": preferences or []}
    if copies.number:
        key["copies"] = copies.model_dump(exclude={"text", "apart_from"})
        texts |= {"copies": copies.text, "apart from": apart}
    if preferences:
        key["preference"] = preference.model_dump()
    used = {label: names for label, names in texts.items() if names}
    run_stages(output.parent, [Stage(output.name, {"model": place}, key, run, used, together=True)], force)
    return facts_of(output) if processes().is_main_process else {}


def _tune_on(
    source: Path, data: list[str], copies: CopySettings, settings: TuneSettings, seed: int, folder: Path
) -> dict[str, Any]:
    repeated, copied = copy_examples(copies, copies.apart_from or [], seed)
    facts, curve = tune_folder(source, itertools.chain(read_conversations(data), repeated), settings, seed, folder)
    if processes().is_main_process:
        write_json(folder / CURVE, {"curve": curve})
    return facts | ({"copies": copied} if copies.number else {})
