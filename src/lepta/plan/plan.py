"""The plan of a recipe: stages of training, devices and disk, with the vocabulary and the text put together."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.plan.calibration import calibration_cost
from lepta.plan.devices import MFU, Device, devices_named, this_machine
from lepta.plan.distillation import DistillationCost, distillation_cost
from lepta.plan.shapes import Shape, here, shape_of
from lepta.plan.text import count_text, is_absent, measured_name, vocabulary_at
from lepta.plan.training import (
    GIB,
    Flops,
    Sharding,
    StageWeights,
    fit,
    flops_per_token,
    memory,
    micro_batch,
    stage_weights,
)
from lepta.plan.vocabulary import (
    AUTO_ADDED,
    SIDES,
    Densities,
    NewVocabulary,
    densities_of,
    new_vocabulary,
    vocabulary_facts,
    with_vocabulary,
)
from lepta.recipe import Recipe
from lepta.training.settings import PretrainSettings, TuneSettings, split_batch
from lepta.vocabulary.tokens import Vocabulary

TOKEN_BYTES = 100  # of tokenizer.json for a token and its merge; 60 to 130 in those that were looked at
BLOCK_TOKEN_BYTES = 4
# As in lepta.training.blocks, which imports transformers.
TOKENISED = 8  # characters of text that are tokenised for each token of the budget
CHARACTERS_PER_TOKEN = 4
CHECKPOINT_BYTES = 12  # of a trained weight: itself and what AdamW knows of it
CHECKPOINTS_AT_ONCE = 2  # the last one is deleted when the next is complete
BEST_BYTES = 4  # of a trained weight, beside the checkpoints, where the best ones are kept


@dataclass(frozen=True)
class StagePlan:
    """One stage of pre-training."""

    name: str
    settings: PretrainSettings
    weights: StageWeights
    flops: Flops  # for one token
    swept: int  # tokens that the choice of a learning rate takes besides

    @property
    def blocks(self) -> int:
        """Blocks, if all are full."""
        return math.ceil(self.settings.tokens / self.settings.block)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return math.ceil(self.blocks / self.settings.batch)

    @property
    def operations(self) -> int:
        """Floating-point operations of the whole stage."""
        return (self.settings.tokens + self.swept) * self.flops.total

    def share_of(self, side: str) -> float:
        """Share of the tokens that are text of the target or the source language."""
        return self.settings.source_share if side == "source" else 1 - self.settings.source_share


@dataclass(frozen=True)
class Outline:
    """What follows from a recipe and the sizes of its base model alone."""

    recipe: Recipe
    old: Vocabulary | None  # of the base model, if it is on this machine
    before: Shape
    wanted: NewVocabulary
    after: Shape  # the base model with the new vocabulary
    stages: list[StagePlan]
    distillation: DistillationCost | None = None

    @property
    def operations(self) -> int:
        """Floating-point operations of all stages of pre-training."""
        return sum(stage.operations for stage in self.stages)


def make_plan(
    recipe: Recipe,
    gpus: list[str] | None = None,
    number: int = 1,
    mfu: float = MFU,
    models: Path | None = None,
    measure: bool = True,
) -> dict[str, Any]:
    """Work out what a recipe costs, without the network and without any weights.

    `gpus` are names of devices, `number` of them at work together; by default each one that is known. `mfu` is the
    share of their peak that training reaches, `models` a file for `shape_of`. With `measure`, a matrix product is timed
    on this machine too, and tokenizers that are here are measured.

    The plan can be written as JSON. Memory is in GiB, disk in bytes, operations in FLOP, times in hours.
    """
    chosen = devices_named(gpus)
    outline = _outline(recipe, models)
    before, after, wanted = outline.before, outline.after, outline.wanted
    densities = densities_of(recipe, before, wanted.size, outline.old if measure else None)
    outline = replace(outline, distillation=_distillation(outline, densities))
    text = {side: _text(outline, side, densities) for side in SIDES}
    devices = [_gpu(device, outline, number, mfu) for device in chosen]
    if measure:
        devices.append(_this_machine(outline, mfu))
    calibration = _calibration(recipe, after, devices)
    plan: dict[str, Any] = {
        "recipe": recipe.name,
        "base": _base(before),
        "vocabulary": vocabulary_facts(recipe, before, after, wanted.how, densities),
        "text": text,
        "stages": [_stage(stage, after, number, densities) for stage in outline.stages],
        "total": _total(outline, densities),
        "devices": devices,
        "disk": _disk(outline, text, densities),
        "notes": _notes(outline, number),
    }
    if outline.distillation:
        plan["distillation"] = {"tokens": recipe.distill.tokens if recipe.distill else 0} | asdict(outline.distillation)
    if calibration:
        plan["calibration"] = calibration
    return plan


def cost_here(recipe: Recipe) -> dict[str, float | int]:
    """Tell what pre-training costs on this machine, whose speed is measured by one matrix product."""
    outline, machine = _outline(recipe), this_machine()
    return {
        "tokens": sum(stage.settings.tokens for stage in outline.stages),
        "weights": outline.after.weights,
        "gigaflop": round(outline.operations / 1e9),
        "gigaflops_here": round(machine.tflops * 1e3),
        "minutes": round(60 * _hours(outline.operations, machine, 1, MFU), 1),
    }


def _outline(recipe: Recipe, models: Path | None = None) -> Outline:
    before, place = shape_of(recipe.base, models), here(recipe.base)
    old = vocabulary_at(place)
    if place and place.suffix == ".gguf":
        before = replace(before, dtype=recipe.gguf_dtype)
    if old is not None:
        before = replace(before, tokens=old.size, tokenizer=before.tokenizer or measured_name(old))
    wanted = new_vocabulary(recipe, before)
    after = with_vocabulary(before, recipe, wanted.size)
    return Outline(recipe, old, before, wanted, after, plan_stages(recipe, after, wanted.first_new))


def _distillation(outline: Outline, densities: Densities) -> DistillationCost | None:
    settings = outline.recipe.distill
    if settings is None:
        return None
    original, new = (density.characters_per_token for density in densities["target"])
    old_per_new = new / original if original and new else 1.0
    learned = outline.after.tokens - outline.wanted.first_new
    return distillation_cost(settings, outline.after, outline.before.rows, learned, old_per_new)


def plan_stages(recipe: Recipe, after: Shape, first_new: int) -> list[StagePlan]:
    """Work out the stages of pre-training; `after` has the new vocabulary."""
    stages = []
    for place, settings in enumerate(recipe.pretrain, 1):
        weights = stage_weights(after, settings, first_new)
        rates = len(settings.learning_rate)
        swept = round(rates * settings.sweep_share * settings.tokens) if rates > 1 else 0
        name = f"stage {place}" if len(recipe.pretrain) > 1 else "pre-training"
        stages.append(StagePlan(name, settings, weights, flops_per_token(after, settings, weights), swept))
    return stages


def _base(before: Shape) -> dict[str, Any]:
    fields = ("layers", "width", "intermediate", "heads", "kv_heads", "head_dim", "tokens", "rows", "tied", "context")
    shape = {name: getattr(before, name) for name in fields}
    return {"name": before.name, "shape_from": before.source, "weights": before.weights, "body": before.body} | shape


def _text(outline: Outline, side: str, densities: Densities) -> dict[str, Any]:
    language = getattr(outline.recipe.text, side)
    amount = count_text(language.train)
    new = densities[side][1].characters_per_token
    tokens = round(amount.characters / new) if amount.characters and new else None
    wanted = sum(stage.settings.tokens * stage.share_of(side) for stage in outline.stages)
    return {
        "language": language.language,
        "sources": language.train,
        "characters": amount.characters,
        "how": amount.how,
        "tokens": tokens,
        "trained_tokens": round(wanted),
        "trained_characters": round(wanted * new) if new else None,
        "passes": wanted / tokens if tokens else None,
    }


def _under_original(tokens: int, densities: Densities) -> int | None:
    """Tokens that the same text of the target language takes in the original vocabulary."""
    original, new = (density.characters_per_token for density in densities["target"])
    return round(tokens * new / original) if original and new else None


def _stage(stage: StagePlan, after: Shape, number: int, densities: Densities) -> dict[str, Any]:
    settings, weights = stage.settings, stage.weights
    memory_gib = {}
    ways: list[Sharding] = ["one process"] if number == 1 else ["DDP", "FSDP2"]
    for sharding in ways:
        parts = memory(after, settings, weights, number, sharding)
        memory_gib[sharding] = {part: size / GIB for part, size in asdict(parts).items()} | {"total": parts.total / GIB}
    return {
        "name": stage.name,
        "trains": settings.trains,
        "tokens": settings.tokens,
        "swept_tokens": stage.swept,
        "tokens_under_original": _under_original(settings.tokens, densities),
        "blocks": stage.blocks,
        "steps": stage.steps,
        "tokens_per_step": settings.batch * settings.block,
        "micro_batch": micro_batch(settings, number),
        "gradient_checkpointing": settings.gradient_checkpointing,
        "body_dtype": settings.body_dtype,
        "weights": asdict(weights) | {"trained": weights.trained, "frozen": weights.frozen},
        "flops_per_token": asdict(stage.flops) | {"total": stage.flops.total},
        "flops": stage.operations,
        "memory_gib": memory_gib,
    }


def _total(outline: Outline, densities: Densities) -> dict[str, Any]:
    tokens = sum(stage.settings.tokens for stage in outline.stages)
    return {
        "tokens": tokens,
        "swept_tokens": sum(stage.swept for stage in outline.stages),
        "tokens_under_original": _under_original(tokens, densities),
        "steps": sum(stage.steps for stage in outline.stages),
        "flops": outline.operations,
        "propagated_models": len(outline.recipe.variants),
    }


# --- devices ----------------------------------------------------------------------------------------------------------


def _hours(operations: float, device: Device, number: int, mfu: float) -> float:
    return operations / (device.tflops * 1e12 * (device.share or mfu) * number) / 3600


def _gpu(device: Device, outline: Outline, number: int, mfu: float) -> dict[str, Any]:
    first_new = outline.wanted.first_new
    fits = {
        stage.name: fit(outline.after, stage.settings, first_new, device.memory, number) for stage in outline.stages
    }
    tight = {name: part for name, part in fits.items() if not part.fits}
    distilling = outline.distillation.memory / GIB if outline.distillation else 0.0
    return _times(device, outline, number, mfu) | {
        "needs_gib": max([distilling, *(part.needs for part in fits.values())]),
        "fits": not tight and distilling <= device.memory,
        "changes": {name: part.change for name, part in tight.items()},
        "needs_then_gib": {name: part.needs_then for name, part in tight.items()},
    }


def _this_machine(outline: Outline, mfu: float) -> dict[str, Any]:
    machine = this_machine()
    cpu = machine.share is not None
    sizes = [memory(outline.after, stage.settings, stage.weights, cpu=cpu).total for stage in outline.stages]
    needs = max([outline.distillation.memory if outline.distillation else 0, *sizes]) / GIB
    fits = {"needs_gib": needs, "fits": needs <= machine.memory, "changes": {}, "needs_then_gib": {}}
    return _times(machine, outline, 1, mfu) | fits


def _times(device: Device, outline: Outline, number: int, mfu: float) -> dict[str, Any]:
    distilled = outline.distillation.operations if outline.distillation else 0
    return {
        "name": device.name,
        "number": number,
        "peak_tflops": device.tflops,
        "share_of_peak": device.share or mfu,
        "memory_gib": device.memory,
        "hours": _hours(outline.operations, device, number, mfu),
        "distillation_hours": _hours(distilled, device, number, mfu),
        "stage_hours": {stage.name: _hours(stage.operations, device, number, mfu) for stage in outline.stages},
    }


def _calibration(recipe: Recipe, after: Shape, devices: list[dict[str, Any]]) -> dict[str, int] | None:
    """What self-calibration of a variant costs, with the hours of all variants put to the devices; None if unknown."""
    if recipe.calibrate is None or not recipe.variants or any(map(is_absent, recipe.calibrate.prompts)):
        return None
    cost = calibration_cost(recipe.calibrate, after.weights)
    for row in devices:
        # Answers are written by one process.
        operations = len(recipe.variants) * (cost["answer_flops"] + cost["training_flops"] / row["number"])
        row["calibration_hours"] = operations / (row["peak_tflops"] * 1e12 * row["share_of_peak"]) / 3600
    return cost


# --- disk -------------------------------------------------------------------------------------------------------------


def _disk(outline: Outline, text: dict[str, Any], densities: Densities) -> dict[str, Any]:
    """Bytes that a run writes; blocks and checkpoints are deleted when their stage is done."""
    recipe, stages = outline.recipe, outline.stages
    original = outline.before.weights * outline.before.file_bytes
    adapted = outline.after.weights * outline.after.file_bytes
    parts: dict[str, int] = {}
    if recipe.base.endswith(".gguf"):
        parts["base"] = original
    elif here(recipe.base) is None:
        parts["download of base"] = original
    parts["vocabulary"] = outline.after.tokens * TOKEN_BYTES
    parts["initialised"] = adapted
    for stage in stages:
        parts["pretrained" + (f", {stage.name}" if len(stages) > 1 else "")] = adapted
    parts["blocks of tokens"] = max((_block_bytes(stage, text, densities) for stage in stages), default=0)
    largest = max((stage.weights.trained for stage in stages), default=0)
    best = BEST_BYTES if any(settings.keep != "last" for settings in recipe.pretrain) else 0
    parts["checkpoints"] = (CHECKPOINTS_AT_ONCE * CHECKPOINT_BYTES + best) * largest
    for name, variant in recipe.variants.items():
        model = variant.model or ""
        if variant.tune or model.endswith(".gguf"):
            parts[f"variants/{name}"] = original
        elif here(model) is None:
            parts[f"download of {name}"] = original
    for name in recipe.variants:
        parts[f"propagated/{name}"] = adapted
        if recipe.calibrate:
            parts[f"calibrated/{name}"] = adapted
    total = sum(parts.values())
    return {"parts": parts, "total": total, "after": total - parts["checkpoints"] - parts["blocks of tokens"]}


def _block_bytes(stage: StagePlan, text: dict[str, Any], densities: Densities) -> int:
    """Bytes of the tokens that a stage's text becomes on disk: all of it, or as much as training would tokenise."""
    size = 0.0
    for side in SIDES:
        characters = TOKENISED * stage.settings.tokens * stage.share_of(side)
        if text[side]["characters"] is not None:
            characters = min(text[side]["characters"], characters)
        density = densities[side][1].characters_per_token or CHARACTERS_PER_TOKEN
        size += BLOCK_TOKEN_BYTES * characters / density
    return round(size)


# --- notes ------------------------------------------------------------------------------------------------------------


def _notes(outline: Outline, number: int) -> list[str]:
    recipe, context = outline.recipe, outline.before.context
    notes = [*_refused(recipe, number), *_absent(recipe), *_left_out(recipe)]
    if outline.wanted.how.startswith("size: auto"):
        notes.append(f"vocabulary.size: auto is counted as {AUTO_ADDED:,} new tokens until the vocabulary is made")
    if recipe.vocabulary.scenario == "optimized":
        notes.append("optimized: special tokens are kept beside vocabulary.keep, so a few more rows are old")
    for stage in recipe.pretrain:
        if stage.block > context:
            notes.append(f"block {stage.block:,} is longer than the model's context of {context:,} tokens")
    return notes


def _refused(recipe: Recipe, number: int) -> Iterator[str]:
    """What training says of batches that so many processes cannot share."""
    runs: dict[str, PretrainSettings | TuneSettings] = {}
    for place, stage in enumerate(recipe.pretrain):
        runs[f"pretrain.{place}" if len(recipe.pretrain) > 1 else "pretrain"] = stage
    for name, variant in recipe.variants.items():
        if variant.tune:
            runs[f"variants.{name}.tune"] = variant.tune
    if recipe.calibrate:
        runs["calibrate.tune"] = recipe.calibrate.tune
    for name, run in runs.items():
        try:
            split_batch(run.batch, run.micro_batch, number)
        except LeptaError as error:
            yield f"training will refuse {name}.{error}"


def _absent(recipe: Recipe) -> Iterator[str]:
    """The files that a recipe names and that are not on this machine, with the fields that name them."""
    named = {
        "text.target.train": recipe.text.target.train,
        "text.target.valid": recipe.text.target.valid,
        "text.source.train": recipe.text.source.train,
        "text.source.valid": recipe.text.source.valid,
        "vocabulary.corpus": recipe.vocabulary.corpus,
    }
    for name, variant in recipe.variants.items():
        if variant.tune:
            named[f"variants.{name}.tune.dialogues"] = [variant.tune.dialogues]
    if (calibrate := recipe.calibrate) and recipe.variants:
        named["calibrate.prompts"] = calibrate.prompts
        named["calibrate.copies.text"] = calibrate.copies.text
        named["calibrate.copies.apart_from"] = calibrate.copies.apart_from or []
    if behaviour := recipe.evaluate.behaviour:
        named["evaluate.behaviour.dialogues"] = [behaviour.dialogues]
    absent: dict[str, list[str]] = {}
    for field, sources in named.items():
        for source in filter(is_absent, sources):
            absent.setdefault(source, []).append(field)
    if absent:
        files = "; ".join(f"{source} ({', '.join(fields)})" for source, fields in absent.items())
        yield f"not on this machine: {files}; the plan does without them, `lepta adapt` will not"


def _left_out(recipe: Recipe) -> Iterator[str]:
    """Parts of the cost that are not counted."""
    for name, variant in recipe.variants.items():
        if variant.tune:
            yield f"variants.{name}.tune: hours, memory and checkpoints of tuning are not in this plan"
    if recipe.distill:
        yield "distill: checkpoints of distillation are not in this plan"
    if (calibrate := recipe.calibrate) and recipe.variants:
        what = "answers, hours, " if any(map(is_absent, calibrate.prompts)) else ""
        what += "the judge's hours, " if calibrate.judge else ""
        yield f"calibrate: {what}memory and checkpoints of training are not in this plan"
