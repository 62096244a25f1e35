"""Continued pre-training (paper 2.1.3): the embeddings of the new vocabulary learn; the body is frozen, or follows."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import parse_flag_from_env

from lepta.core.errors import LeptaError
from lepta.core.output import write_json
from lepta.core.progress import console
from lepta.core.stages import CHECKPOINTS
from lepta.evaluation.benchmark import scores_of
from lepta.inference.bits import score_text
from lepta.inference.generation import generate
from lepta.models.folder import Checkpoint
from lepta.models.load import load_tokenizer
from lepta.models.write import write_model
from lepta.training.blocks import Blocks, TrainingText, training_blocks
from lepta.training.distributed import processes
from lepta.training.merge import changed_tensors, check_mergeable, give_exact_rows
from lepta.training.precision import load_for_training, products_dtype, settled
from lepta.training.rate import BODY, described, settled_rates
from lepta.training.settings import PretrainSettings
from lepta.training.trainable import make_trainable, unreached
from lepta.training.trainer import Diverged, Examples, Run, Trained, Watch, check_apart, train
from lepta.vocabulary.source import open_tokenizer

SWEEP = "sweep.json"
OPENINGS, OPENING, CONTINUATION = (
    4,
    60,
    16,
)  # prompts, their characters, and the tokens that follow, to see what is written


@dataclass(frozen=True)
class HeldOut:
    """Text that is not trained on.

    Attributes
    ----------
    target, source : sequences of str
        Windows of text; either may be empty.
    target_language, source_language : str
        Names in the curve.
    new_ids : frozenset of int
        Tokens that only the new vocabulary has.
    """

    target: Sequence[str] = ()
    source: Sequence[str] = ()
    target_language: str = "target"
    source_language: str = "source"
    new_ids: frozenset[int] = frozenset()


def pretrain(
    model: Any,
    examples: Examples,
    sizes: Sequence[int] | np.ndarray,
    pad_id: int,
    work: Path,
    settings: PretrainSettings,
    *,
    first_new: int,
    rate: float,
    seed: int,
    watch: Watch | None = None,
    source: Checkpoint | None = None,
) -> Trained:
    """Train what the settings say on blocks of text.

    Parameters
    ----------
    model : transformers causal LM
        Trained in place; its embeddings may be split and low-rank layers put in (`make_trainable`).
    examples : Examples
    sizes : sequence of int
        Tokens of each example.
    pad_id : int
    work : Path
        Folder for checkpoints.
    settings : PretrainSettings
    first_new : int
        Rows before it are of tokens that the model had before its vocabulary changed.
    rate : float
        Peak learning rate of the embeddings.
    seed : int
    watch : Watch, optional
    source : Checkpoint, optional
        That the result is to be written from: before training it is checked that it can be.

    Raises
    ------
    LeptaError
        If the settings do not fit each other, the model or the number of examples.
    """
    warmup_steps = warmup(settings, -(-len(examples) // settings.batch))
    if settings.documents_apart:
        check_apart(model, "documents_apart")
    torch.manual_seed(seed)  # LoRA starts from random numbers
    groups = make_trainable(model, settings, first_new, rate)
    if source is not None:
        check_mergeable(model, source)
        give_exact_rows(model, source)
    run = Run(
        batch=settings.batch,
        micro_batch=settings.micro_batch,
        groups=groups,
        warmup_steps=warmup_steps,
        adam_epsilon=settings.adam_epsilon,
        seed=seed,
        save_every=settings.save_every,
        dtype=products_dtype(settings, model.config),
        gradient_checkpointing=settings.gradient_checkpointing,
        report_to=tuple(settings.report_to),
    )
    return train(model, examples, sizes, pad_id, work, "continued pre-training", run, watch)


def warmup(settings: PretrainSettings, steps: int) -> int:
    """Steps in which the rate rises to its peak.

    Parameters
    ----------
    settings : PretrainSettings
    steps : int
        Of the whole run.

    Raises
    ------
    LeptaError
        If the settings name a number that the run would end before; a default gives way.
    """
    if settings.warmup_steps < steps or not settings.warmup_steps:
        return settings.warmup_steps
    if "warmup_steps" in settings.model_fields_set:
        tried = f" to try a rate in (sweep_share {settings.sweep_share:g})" if len(settings.learning_rate) > 1 else ""
        raise LeptaError(
            f"pretrain.warmup_steps: {settings.warmup_steps}, but there are {steps} steps{tried}, so the rate would "
            f"never reach its peak; expected fewer than {steps}, or more tokens"
        )
    return steps // 10


def pretrain_folder(
    initialised: Path,
    first_new: int,
    texts: Sequence[TrainingText],
    held_out: HeldOut,
    settings: PretrainSettings,
    seed: int,
    folder: Path,
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Pre-train a model folder on text and write the result; what does not train is copied byte for byte.

    Parameters
    ----------
    initialised : Path
        Model with the new vocabulary.
    first_new : int
        Rows before it are of tokens that the model had before its vocabulary changed.
    texts : sequence of TrainingText
    held_out : HeldOut
        To measure on.
    settings : PretrainSettings
    seed : int
    folder : Path
        Existing folder for the result; checkpoints found in it are resumed from.

    Returns
    -------
    facts : dict
    curve : list of dict
    """
    settings = settings.model_copy(update={"keep": settings.keep or ("best" if held_out.target else "last")})
    _check_held_out(settings, held_out)
    if settings.darumeru and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise LeptaError(
            "pretrain.darumeru: weights that FSDP2 has in parts cannot be asked; use evaluate.darumeru, or DDP"
        )
    tokenizer, work = load_tokenizer(initialised), folder / CHECKPOINTS
    with processes().main_process_first():  # the others then find the tokens on disk
        blocks = training_blocks(
            texts,
            tokenizer,
            settings.tokens,
            settings.block,
            seed,
            work / "blocks",
            settings.batch,
            settings.documents_apart,
        )
    settings = settled(settings, initialised, work)
    facts = blocks.facts(settings.block) | {"body_dtype": settings.body_dtype}
    rates, chosen = settled_rates(settings, Checkpoint(initialised))
    if chosen:
        facts |= chosen
        console.print(f"  {described(chosen, settings.batch * settings.block)}", highlight=False)
        settings = settings.model_copy(update={"body_learning_rate": settings.body_learning_rate or BODY})
    rate = rates[0]
    if len(rates) > 1:
        rate, facts["sweep"] = _sweep(initialised, first_new, blocks, held_out, settings, rates, seed, work)
    model, trained = _run(initialised, first_new, blocks, held_out, settings, rate, seed, work)
    facts["learning_rate"] = rate
    warmup_steps = warmup(settings, -(-len(blocks) // settings.batch))
    if warmup_steps != settings.warmup_steps:
        facts["warmup_steps"] = warmup_steps
    if trained.kept_step is not None:
        facts["kept_step"] = trained.kept_step
    if missed := unreached(model, settings):
        facts["unreached"] = missed
    if trained.stopped:
        facts["stopped"] = trained.stopped
    if warning := no_gain(trained, f"{held_out.target_language}_bits_per_byte"):
        facts["warnings"] = [warning]
    if processes().is_main_process:
        checkpoint = Checkpoint(initialised)
        write_model(
            checkpoint, changed_tensors(model, trained.weights, checkpoint), open_tokenizer(initialised), folder
        )
    processes().wait_for_everyone()
    return facts, trained.curve


def no_gain(trained: Trained, measure: str) -> str:
    """What there is to say of a run after which held-out text is no better than before it; empty if it is better.

    Parameters
    ----------
    trained : Trained
    measure : str
        Name of the bits per byte of the target language in the curve.
    """
    measured = [entry[measure] for entry in trained.curve if measure in entry]
    if not measured or (trained.kept_step is None and measured[-1] <= measured[0]) or trained.kept_step:
        return ""
    made = "made held-out text worse" if not measured[-1] <= measured[0] else "made held-out text no better"
    change = f"training {made} ({measured[0]:.4f} -> {measured[-1]:.4f} bits per byte)"
    if trained.kept_step is None:
        return f"{change}; these weights are written all the same, since keep is last"
    if trained.stopped and measured[-1] < measured[0]:
        change = f"training was stopped before any weights could be kept ({trained.stopped})"
    return f"{change}; the weights before training are kept"


def _check_held_out(settings: PretrainSettings, held_out: HeldOut) -> None:
    """LeptaError if the settings ask for a choice that there is no text to make by."""
    if not held_out.target and (settings.keep == "best" or len(settings.learning_rate) > 1):
        asks = "keep: best" if settings.keep == "best" else "several learning rates"
        raise LeptaError(f"pretrain: {asks} need held-out text of the target language to choose by; name it as valid")
    if settings.forget_limit is not None and settings.keep == "last":
        raise LeptaError(
            "pretrain.forget_limit: needs keep: best, and held-out text of the target language to choose by; "
            "name it as valid"
        )
    if settings.forget_limit is not None and not held_out.source:
        raise LeptaError("pretrain.forget_limit: needs held-out text of the source language; name it as valid")


def _run(
    initialised: Path,
    first_new: int,
    blocks: Blocks,
    held_out: HeldOut,
    settings: PretrainSettings,
    rate: float,
    seed: int,
    work: Path,
) -> tuple[Any, Trained]:
    model, tokenizer = load_for_training(initialised, settings), load_tokenizer(initialised)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    watch = _watch(model, tokenizer, held_out, settings)
    return model, pretrain(
        model,
        blocks,
        blocks.sizes,
        pad_id,
        work,
        settings,
        first_new=first_new,
        rate=rate,
        seed=seed,
        watch=watch,
        source=Checkpoint(initialised),
    )


def _sweep(
    initialised: Path,
    first_new: int,
    blocks: Blocks,
    held_out: HeldOut,
    settings: PretrainSettings,
    rates: Sequence[float],
    seed: int,
    work: Path,
) -> tuple[float, dict[str, float | None]]:
    """Try each learning rate on a part of the blocks (paper 2.4.1); the lowest bits per byte of the target wins.

    A rate with which training diverges, or passes the limit to forgetting, has None.
    """
    file, part = work / SWEEP, blocks.first(settings.sweep_share)
    settings = settings.model_copy(update={"darumeru": None, "keep": "last"})  # only bits per byte are looked at
    scores: dict[str, float | None] = json.loads(file.read_text()) if file.is_file() else {}
    for rate in rates:
        name = f"{rate:g}"
        if name in scores:
            continue
        try:
            _, trained = _run(initialised, first_new, part, held_out, settings, rate, seed, work / f"rate-{name}")
        except Diverged:
            scores[name] = None
        else:
            measured = [entry for entry in trained.curve if "loss" not in entry]
            last = measured[-1][f"{held_out.target_language}_bits_per_byte"]
            scores[name] = last if math.isfinite(last) and not trained.stopped else None
        if processes().is_main_process:
            write_json(file, scores)
    usable = {rate: score for rate in rates if (score := scores[f"{rate:g}"]) is not None}
    if not usable:
        raise LeptaError(
            f"pretrain.learning_rate: with each of {', '.join(scores)} training diverged or passed forget_limit "
            f"on the sweep_share {settings.sweep_share:g} of the text; give lower ones"
        )
    return min(usable, key=lambda rate: usable[rate]), scores


def _watch(model: Any, tokenizer: Any, held_out: HeldOut, settings: PretrainSettings) -> Watch | None:
    """What is measured along the run: bits per byte, the share of new tokens in what is written, the benchmark."""
    texts = {
        f"{language}_bits_per_byte": windows
        for language, windows in (
            (held_out.target_language, held_out.target),
            (held_out.source_language, held_out.source),
        )
        if windows
    }
    benchmark = settings.darumeru
    if not texts and not benchmark:
        return None
    openings = [text[:OPENING] for text in held_out.target[:OPENINGS]] if held_out.new_ids else []

    def measure() -> dict[str, float]:
        model.eval()
        found = {name: score_text(model, tokenizer, text, name).bits_per_byte for name, text in texts.items()}
        if openings:
            written = generate(model, tokenizer, openings, CONTINUATION, "continuations")
            found["new_token_share"] = written.share_of(held_out.new_ids) or 0.0
        if benchmark:
            found |= scores_of(model, tokenizer, benchmark)
        model.train()
        return found

    limits: tuple[tuple[str, float], ...] = ()
    if settings.forget_limit is not None and held_out.source:
        limits = ((f"{held_out.source_language}_bits_per_byte", settings.forget_limit),)
    best = f"{held_out.target_language}_bits_per_byte" if settings.keep == "best" else None
    return Watch(measure, settings.measure_every, best, limits)
