"""Continued pre-training (paper 2.1.3): the embeddings of the new vocabulary learn; the body is frozen, or follows."""

import math
import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from pydantic import RootModel

from lepta.core.errors import LeptaError
from lepta.core.journal import read_record
from lepta.core.output import write_json
from lepta.core.progress import console
from lepta.inference.bits import score_text
from lepta.inference.generation import generate, start_tokens
from lepta.models.folder import Checkpoint
from lepta.models.load import load_tokenizer
from lepta.models.split import NewRows
from lepta.stages import CHECKPOINTS
from lepta.training.blocks import Blocks, TrainingText, training_blocks
from lepta.training.distributed import processes
from lepta.training.merge import prepare_merge, write_trained
from lepta.training.precision import compute_dtype, load_for_training, resolved_body_dtype
from lepta.training.rate import BODY, resolved_rates
from lepta.training.settings import PretrainSettings, checkpoint_steps, few_steps
from lepta.training.teacher import TaughtBlocks, Teacher, teach
from lepta.training.trainable import make_trainable, unreached
from lepta.training.trainer import Diverged, Examples, Run, Trained, Watch, check_apart, padding_id, train
from lepta.vocabulary.loading import load_exact

SWEEP = "sweep.json"


class Scores(RootModel[dict[str, float | None]]):
    """A `sweep.json`: bits per byte by learning rate."""


PROMPTS, PROMPT, CONTINUATION = 4, 60, 16  # to count new tokens in: number, characters, tokens that are generated


@dataclass(frozen=True)
class HeldOut:
    """What a run is measured on: windows of text that is not trained on, either may be empty, and the benchmark."""

    target: Sequence[str] = ()
    source: Sequence[str] = ()
    target_language: str = "target"  # names in the curve
    source_language: str = "source"
    new_ids: frozenset[int] = frozenset()  # tokens that only the new vocabulary has
    # Scores, by name, of a model and its tokenizer; needed where the settings have `darumeru` tasks
    # (`lepta.evaluation.benchmark.scores_of`).
    benchmark: Callable[[Any, Any], dict[str, float]] | None = None


@dataclass(frozen=True)
class Pretraining:
    """A run of continued pre-training: how which rows learn from which blocks."""

    settings: PretrainSettings
    blocks: Examples
    new_rows: NewRows  # of tokens that the model lacked before its vocabulary changed
    rate: float  # peak learning rate of the embeddings
    seed: int
    work: Path  # checkpoints
    pad_id: int = 0
    source: Checkpoint | None = None  # that the result is to be written from
    teacher: Teacher | None = None

    @property
    def warmup_steps(self) -> int:
        """Steps in which the rate rises to its peak; LeptaError if the settings ask for more than there are."""
        settings, steps = self.settings, math.ceil(len(self.blocks) / self.settings.batch)
        if settings.warmup_steps < steps or not settings.warmup_steps:
            return settings.warmup_steps
        if "warmup_steps" not in settings.model_fields_set:
            return steps // 10  # a default gives way
        tried = f" to try a rate in (sweep_share {settings.sweep_share:g})" if len(settings.learning_rate) > 1 else ""
        raise LeptaError(
            f"pretrain.warmup_steps: {settings.warmup_steps}, but there are {steps} steps{tried}, so the rate would "
            f"never reach its peak; expected fewer than {steps}, or more tokens"
        )


def pretrain(model: Any, run: Pretraining, watch: Watch | None = None) -> Trained:
    """Train a model in place; its embeddings may be split and low-rank layers put in (`make_trainable`).

    LeptaError if the settings do not fit each other, the model or the number of blocks.
    """
    settings, warmup_steps = run.settings, run.warmup_steps
    if settings.documents_apart:
        check_apart(model, "documents_apart")
        if run.teacher:
            check_apart(run.teacher.model, "documents_apart")
    torch.manual_seed(run.seed)  # LoRA starts from random numbers
    groups = make_trainable(model, settings, run.new_rows, run.rate)
    if run.source is not None:
        prepare_merge(model, run.source)
    blocks = run.blocks
    if run.teacher:
        assert isinstance(blocks, Blocks)
        blocks = TaughtBlocks(blocks, run.teacher.aligner)
        teach(model, run.teacher)
    return train(
        Run(
            model,
            blocks,
            groups,
            run.work,
            settings.batch,
            run.seed,
            description="continued pre-training, steps",
            pad_id=run.pad_id,
            micro_batch=settings.micro_batch,
            warmup_steps=warmup_steps,
            decay_share=settings.decay_share if settings.schedule == "wsd" else None,
            adam_epsilon=settings.adam_epsilon,
            save_every=checkpoint_steps(settings, math.ceil(len(blocks) / settings.batch)),
            dtype=compute_dtype(settings.body_dtype, model.config),
            gradient_checkpointing=settings.gradient_checkpointing,
            report_to=settings.report_to,
            watch=watch,
        )
    )


def pretrain_folder(
    initialised: str | Path,
    new_rows: NewRows,
    texts: Sequence[TrainingText],
    held_out: HeldOut,
    settings: PretrainSettings,
    seed: int,
    folder: str | Path,
    teacher: Path | None = None,
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Pre-train a model folder on text and write the result; what does not train is copied byte for byte.

    `initialised` has the new vocabulary; `new_rows` are those of tokens that it lacked before: all from one on, or
    these. `folder` exists; checkpoints found in it are resumed from. Likelihoods of the text by `teacher`, a model
    folder, are a second loss. Gives facts and the curve.
    """
    source, folder = Checkpoint(initialised), Path(folder)
    initialised = source.folder
    settings = settings.model_copy(update={"keep": settings.keep or ("best" if held_out.target else "last")})
    _check_held_out(settings, held_out)
    tokenizer, work = load_exact(initialised), folder / CHECKPOINTS
    with processes().main_process_first():  # the others then find the tokens on disk
        blocks = training_blocks(texts, tokenizer, settings, seed, work / "blocks")
    body_dtype = resolved_body_dtype(settings.body_dtype, initialised, work)
    settings = settings.model_copy(update={"body_dtype": body_dtype})
    facts = blocks.facts(settings.block) | {"body_dtype": body_dtype}
    rates, chosen = resolved_rates(settings, source)
    if chosen:
        facts |= chosen
        console.print(
            f"  learning rate {chosen['auto_learning_rate']:g} (auto: rows of RMS {chosen['rows_rms']:.3g}, "
            f"{settings.batch * settings.block:,} tokens a step)",
            highlight=False,
        )
        settings = settings.model_copy(update={"body_learning_rate": settings.body_learning_rate or BODY})
    if note := few_steps(settings):
        console.print(f"  note: {note}", highlight=False)
    teaches = Teacher.load(teacher, initialised, settings) if teacher else None
    run = Pretraining(settings, blocks, new_rows, rates[0], seed, work, padding_id(tokenizer), source, teaches)
    if len(rates) > 1:
        rate, facts["sweep"] = _sweep(run, blocks, held_out, rates)
        run = replace(run, rate=rate)
    model, trained = _load_and_train(run, held_out)
    facts |= _facts_of(run, model, trained, f"{held_out.target_language}_bits_per_byte")
    if processes().is_main_process:
        warnings = write_trained(model, trained.weights, initialised, folder)
        if warnings:
            facts["warnings"] = [*facts.get("warnings", []), *warnings]
    processes().wait_for_everyone()
    return facts, trained.curve


def _facts_of(run: Pretraining, model: Any, trained: Trained, measure: str) -> dict[str, Any]:
    """What the manifest says of training; what is as expected is left out."""
    facts: dict[str, Any] = {"learning_rate": run.rate}
    if run.warmup_steps != run.settings.warmup_steps:
        facts["warmup_steps"] = run.warmup_steps
    if trained.kept_step is not None:
        facts["kept_step"] = trained.kept_step
    if missed := unreached(model, run.settings):
        facts["unreached"] = missed
    if trained.stopped:
        facts["stopped"] = trained.stopped
    if change := _change_of(trained, measure):
        facts["held_out_change"] = change
    if warning := no_gain(trained, measure):
        facts["warnings"] = [warning]
    return facts


def _change_of(trained: Trained, measure: str) -> list[float]:
    """Bits per byte of held-out text with the weights before training and with those that are written."""
    measured = [entry for entry in trained.curve if measure in entry]
    if not measured:
        return []
    written = next((entry for entry in measured if entry["step"] == trained.kept_step), measured[-1])
    return [measured[0][measure], written[measure]]


def no_gain(trained: Trained, measure: str) -> str:
    """A warning if held-out text is no better after training than before; empty if it is better.

    `measure` is the name of the target language's bits per byte in the curve.
    """
    measured = [entry[measure] for entry in trained.curve if measure in entry]
    if not measured or trained.kept_step:
        return ""
    before, after = measured[0], measured[-1]
    if trained.kept_step is None and after <= before:
        return ""
    made = "made held-out text no better" if after <= before else "made held-out text worse"  # worse: NaN too
    change = f"training {made} ({before:.4f} -> {after:.4f} bits per byte)"
    if trained.kept_step is None:
        return f"{change}; these weights are written all the same, since keep is last"
    if trained.stopped and after < before:
        change = f"training was stopped before any weights could be kept ({trained.stopped})"
    return f"{change}; the weights before training are kept"


def _check_held_out(settings: PretrainSettings, held_out: HeldOut) -> None:
    """LeptaError if the settings ask for a choice or a measurement that `held_out` does not allow."""
    if not held_out.target and (settings.keep == "best" or len(settings.learning_rate) > 1):
        asks = "keep: best" if settings.keep == "best" else "several learning rates"
        raise LeptaError(f"pretrain: {asks} need held-out text of the target language to choose by; name it as valid")
    if settings.forget_limit is not None and settings.keep == "last":
        raise LeptaError(
            "pretrain.forget_limit: needs `keep` best, and held-out text of the target language to choose by; "
            "name it as valid"
        )
    if settings.forget_limit is not None and not held_out.source:
        raise LeptaError("pretrain.forget_limit: needs held-out text of the source language; name it as valid")
    if not settings.darumeru:
        return
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise LeptaError(
            "pretrain.darumeru: weights that FSDP2 has in parts cannot be asked; use evaluate.darumeru, or DDP"
        )
    if held_out.benchmark is None:
        raise LeptaError(
            "pretrain.darumeru: needs HeldOut.benchmark, a function of a model and its tokenizer; "
            "expected lepta.evaluation.benchmark.scores_of with these settings"
        )


def _load_and_train(run: Pretraining, held_out: HeldOut) -> tuple[Any, Trained]:
    assert run.source is not None
    folder = run.source.folder
    model, tokenizer = load_for_training(folder, run.settings), load_tokenizer(folder)
    return model, pretrain(model, run, watch_of(model, tokenizer, held_out, run.settings))


def _sweep(
    run: Pretraining, blocks: Blocks, held_out: HeldOut, rates: Sequence[float]
) -> tuple[float, dict[str, float | None]]:
    """Try each learning rate on a part of the blocks (paper 2.4.1); the lowest bits per byte of the target wins.

    A rate with which training diverges, or passes the limit to forgetting, has None. Scores are kept on disk, so a
    resumed run tries no rate twice.
    """
    file = run.work / SWEEP
    settings = run.settings.model_copy(update={"darumeru": None, "keep": "last"})  # only bits per byte are looked at
    run = replace(run, settings=settings, blocks=blocks.first(settings.sweep_share))
    scores = read_record(file, Scores).root if file.is_file() else {}
    for rate in rates:
        name = f"{rate:g}"
        if name in scores:
            continue
        scores[name] = None
        with suppress(Diverged):
            _, trained = _load_and_train(replace(run, rate=rate, work=run.work / f"rate-{name}"), held_out)
            last = [entry for entry in trained.curve if "loss" not in entry][-1]
            score = last[f"{held_out.target_language}_bits_per_byte"]
            if math.isfinite(score) and not trained.stopped:
                scores[name] = score
        if processes().is_main_process:
            write_json(file, scores)
    usable = [(bits, rate) for rate in rates if (bits := scores[f"{rate:g}"]) is not None]
    if not usable:
        raise LeptaError(
            f"pretrain.learning_rate: with each of {', '.join(scores)} training diverged or passed `forget_limit` "
            f"on the `sweep_share` {settings.sweep_share:g} of the text; give lower ones"
        )
    return min(usable, key=operator.itemgetter(0))[1], scores


def watch_of(model: Any, tokenizer: Any, held_out: HeldOut, settings: PretrainSettings) -> Watch | None:
    """What is measured along the run: bits per byte, the share of new tokens in what is generated, the benchmark."""
    target, source = f"{held_out.target_language}_bits_per_byte", f"{held_out.source_language}_bits_per_byte"
    both = (held_out.target_language, held_out.target), (held_out.source_language, held_out.source)
    texts = {language: windows for language, windows in both if windows}
    benchmark = held_out.benchmark if settings.darumeru else None
    if not texts and benchmark is None:
        return None
    prompts = [text[:PROMPT] for text in held_out.target[:PROMPTS]]

    def measure() -> dict[str, float]:
        model.eval()
        found = {}
        for language, text in texts.items():
            score = score_text(model, tokenizer, text, f"held-out text ({language})")
            found[f"{language}_bits_per_byte"] = score.bits_per_byte
        if prompts and held_out.new_ids:
            start = start_tokens(tokenizer)
            generated = generate(model, tokenizer, prompts, CONTINUATION, "writing samples", start=start)
            found["new_token_share"] = generated.share_of(held_out.new_ids) or 0.0
        if benchmark is not None:
            found |= benchmark(model, tokenizer)
        model.train()
        return found

    limits: tuple[tuple[str, float], ...] = ()
    if settings.forget_limit is not None and held_out.source:
        limits = ((source, settings.forget_limit),)
    return Watch(measure, settings.measure_every, target if settings.keep == "best" else None, limits)
