"""The plan of a recipe: stages of training, devices and disk, with the vocabulary and the text put together."""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.plan.calibration import calibration_cost
from lepta.plan.devices import Device, devices_named, this_machine
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
    Densities,
    NewVocabulary,
    densities_of,
    new_vocabulary,
    vocabulary_facts,
    with_vocabulary,
)
from lepta.recipe import Recipe
from lepta.text.settings import Language
from lepta.training.settings import PretrainSettings, TuneSettings, split_batch

MFU = 0.4  # share of peak that well-fed training of 7B models reaches; reports of large runs lie between 0.3 and 0.5
TOKEN_BYTES = 100  # of tokenizer.json for a token and its merge; 60 to 130 in those that were looked at
BLOCK_TOKEN_BYTES = 4
# Characters that are tokenised for each token of the budget, and those that a token is taken to have: training.blocks.
TOKENISED, CHARACTERS_PER_TOKEN = 8, 4
CHECKPOINT_BYTES = 12  # of a trained weight: itself and what AdamW knows of it
CHECKPOINTS_AT_ONCE = 2  # the last one goes when the next is whole
BEST_BYTES = 4  # of a trained weight, beside the checkpoints, where the best ones are kept


@dataclass(frozen=True)
class StagePlan:
    """One stage of pre-training.

    Attributes
    ----------
    name : str
    settings : PretrainSettings
    weights : StageWeights
    flops : Flops
        For one token.
    swept : int
        Tokens that the choice of a learning rate takes besides.
    """

    name: str
    settings: PretrainSettings
    weights: StageWeights
    flops: Flops
    swept: int

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


def make_plan(
    recipe: Recipe,
    gpus: list[str] | None = None,
    number: int = 1,
    mfu: float = MFU,
    models: Path | None = None,
    measure: bool = True,
) -> dict[str, Any]:
    """Work out what a recipe costs, without the network and without any weights.

    Parameters
    ----------
    recipe : Recipe
    gpus : list of str, optional
        Names of devices; default: all that are known.
    number : int
        GPUs at work together.
    mfu : float
        Share of a GPU's peak that training reaches, 0 to 1.
    models : Path, optional
        See `lepta.plan.shapes.shape_of`.
    measure : bool
        Time a matrix product on this machine too, and measure tokenizers that are here.

    Returns
    -------
    dict
        As JSON: `recipe`, `base`, `vocabulary`, `text`, `stages`, `total`, `devices`, `disk`, `notes`; with
        self-calibration whose prompts are here, also what it takes for each variant, `calibration`, and for all of
        them the `calibration_hours` of each device. Memory in GiB, disk in bytes, operations in FLOP, times in hours.

    Raises
    ------
    LeptaError
        If the sizes of the base model are not known, or a GPU's name, or a file that is here cannot be read.
    """
    chosen = devices_named(gpus)
    before = shape_of(recipe.base, models)
    old = vocabulary_at(here(recipe.base))
    if old is not None:
        before = replace(before, tokens=old.size, tokenizer=before.tokenizer or measured_name(old))
    wanted = new_vocabulary(recipe, before)
    after = with_vocabulary(before, recipe, wanted.size)
    stages = plan_stages(recipe, after, wanted.first_new)
    densities = densities_of(recipe, before, wanted, old if measure else None)
    text = _text(recipe, densities, stages)
    devices = _devices(chosen, stages, after, wanted.first_new, number, mfu, measure)
    calibration = _calibration(recipe, after, devices)
    return {
        "recipe": recipe.name,
        "base": _base(before),
        "vocabulary": vocabulary_facts(recipe, before, after, wanted, densities),
        "text": text,
        "stages": [_stage(stage, after, number, densities) for stage in stages],
        "total": _total(stages, recipe, densities),
        "devices": devices,
        "disk": _disk(recipe, before, after, stages, text, densities),
        "notes": _notes(recipe, before, wanted, number),
    } | ({"calibration": calibration} if calibration else {})


def cost_here(recipe: Recipe) -> dict[str, float | int]:
    """Tell what pre-training costs on this machine, whose speed is measured by one matrix product.

    Returns
    -------
    dict
        `tokens`, `weights`, `gigaflop` in all, `gigaflops_here` and `minutes`.
    """
    before = shape_of(recipe.base)
    if (old := vocabulary_at(here(recipe.base))) is not None:
        before = replace(before, tokens=old.size)
    wanted = new_vocabulary(recipe, before)
    after = with_vocabulary(before, recipe, wanted.size)
    stages, machine = plan_stages(recipe, after, wanted.first_new), this_machine()
    operations = sum(stage.operations for stage in stages)
    return {
        "tokens": sum(stage.settings.tokens for stage in stages),
        "weights": after.weights,
        "gigaflop": round(operations / 1e9),
        "gigaflops_here": round(machine.tflops * 1e3),
        "minutes": round(60 * _hours(operations, machine, 1, MFU), 1),
    }


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


def _text(recipe: Recipe, densities: Densities, stages: list[StagePlan]) -> dict[str, Any]:
    def side(name: str, language: Language) -> dict[str, Any]:
        amount = count_text(language.train)
        new = densities[name][1].characters_per_token
        tokens = round(amount.characters / new) if amount.characters and new else None
        wanted = sum(
            stage.settings.tokens
            * (stage.settings.source_share if name == "source" else 1 - stage.settings.source_share)
            for stage in stages
        )
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

    return {"target": side("target", recipe.text.target), "source": side("source", recipe.text.source)}


def _stage(stage: StagePlan, after: Shape, number: int, densities: Densities) -> dict[str, Any]:
    settings, weights = stage.settings, stage.weights
    original, new = (density.characters_per_token for density in densities["target"])
    ways: list[Sharding] = ["one process"] if number == 1 else ["DDP", "FSDP2"]
    memories = {way: memory(after, settings, weights, number, way) for way in ways}
    return {
        "name": stage.name,
        "trains": settings.trains,
        "tokens": settings.tokens,
        "swept_tokens": stage.swept,
        "tokens_under_original": round(settings.tokens * new / original) if original and new else None,
        "blocks": stage.blocks,
        "steps": stage.steps,
        "tokens_per_step": settings.batch * settings.block,
        "micro_batch": micro_batch(settings, number),
        "gradient_checkpointing": settings.gradient_checkpointing,
        "body_dtype": settings.body_dtype,
        "weights": asdict(weights) | {"trained": weights.trained, "frozen": weights.frozen},
        "flops_per_token": asdict(stage.flops) | {"total": stage.flops.total},
        "flops": stage.operations,
        "memory_gib": {
            way: {part: size / GIB for part, size in asdict(parts).items()} | {"total": parts.total / GIB}
            for way, parts in memories.items()
        },
    }


def _total(stages: list[StagePlan], recipe: Recipe, densities: Densities) -> dict[str, Any]:
    tokens = sum(stage.settings.tokens for stage in stages)
    original, new = (density.characters_per_token for density in densities["target"])
    return {
        "tokens": tokens,
        "swept_tokens": sum(stage.swept for stage in stages),
        "tokens_under_original": round(tokens * new / original) if original and new else None,
        "steps": sum(stage.steps for stage in stages),
        "flops": sum(stage.operations for stage in stages),
        "propagated_models": len(recipe.variants),
    }


def _hours(operations: int, device: Device, number: int, mfu: float) -> float:
    return operations / (device.tflops * 1e12 * (device.share or mfu) * number) / 3600


def _devices(
    chosen: list[Device],
    stages: list[StagePlan],
    after: Shape,
    first_new: int,
    number: int,
    mfu: float,
    measure: bool,
) -> list[dict[str, Any]]:
    sharding: Sharding = "one process" if number == 1 else "DDP"
    operations, rows = sum(stage.operations for stage in stages), []
    for device in chosen:
        fits = {stage.name: fit(after, stage.settings, first_new, device.memory, number, sharding) for stage in stages}
        rows.append(
            {
                "name": device.name,
                "number": number,
                "peak_tflops": device.tflops,
                "share_of_peak": device.share or mfu,
                "memory_gib": device.memory,
                "hours": _hours(operations, device, number, mfu),
                "stage_hours": {stage.name: _hours(stage.operations, device, number, mfu) for stage in stages},
                "needs_gib": max((part.needs for part in fits.values()), default=0.0),
                "fits": all(part.fits for part in fits.values()),
                "changes": {name: part.change for name, part in fits.items() if not part.fits},
                "needs_then_gib": {name: part.needs_then for name, part in fits.items() if not part.fits},
            }
        )
    return rows + ([_machine_row(stages, after, mfu)] if measure else [])


def _machine_row(stages: list[StagePlan], after: Shape, mfu: float) -> dict[str, Any]:
    machine = this_machine()
    cpu = machine.share is not None
    needs = max((memory(after, stage.settings, stage.weights, cpu=cpu).total for stage in stages), default=0) / GIB
    return {
        "name": machine.name,
        "number": 1,
        "peak_tflops": machine.tflops,
        "share_of_peak": machine.share or mfu,
        "memory_gib": machine.memory,
        "hours": _hours(sum(stage.operations for stage in stages), machine, 1, mfu),
        "stage_hours": {stage.name: _hours(stage.operations, machine, 1, mfu) for stage in stages},
        "needs_gib": needs,
        "fits": needs <= machine.memory,
        "changes": {},
        "needs_then_gib": {},
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


def _block_bytes(stage: StagePlan, text: dict[str, Any], densities: Densities) -> int:
    """Bytes of the tokens that a stage's text becomes on disk: all of it, or as much as the budget could take."""
    size, source_share = 0.0, stage.settings.source_share
    for side, share in (("target", 1 - source_share), ("source", source_share)):
        budget, there = TOKENISED * stage.settings.tokens * share, text[side]["characters"]
        characters = budget if there is None else min(there, budget)
        size += BLOCK_TOKEN_BYTES * characters / (densities[side][1].characters_per_token or CHARACTERS_PER_TOKEN)
    return round(size)


def _disk(
    recipe: Recipe,
    before: Shape,
    after: Shape,
    stages: list[StagePlan],
    text: dict[str, Any],
    densities: Densities,
) -> dict[str, Any]:
    """Bytes that a run writes; blocks and checkpoints go when their stage is done."""
    original, adapted = before.weights * before.file_bytes, after.weights * after.file_bytes
    parts: dict[str, int] = {}
    if recipe.base.endswith(".gguf"):
        parts["base"] = original
    elif here(recipe.base) is None:
        parts["download of base"] = original
    parts["vocabulary"] = after.tokens * TOKEN_BYTES
    parts["initialised"] = adapted
    for stage in stages:
        parts["pretrained" + (f", {stage.name}" if len(stages) > 1 else "")] = adapted
    parts["blocks of tokens"] = max((_block_bytes(stage, text, densities) for stage in stages), default=0)
    largest = max((stage.weights.trained for stage in stages), default=0)
    best = BEST_BYTES if any(settings.keep != "last" for settings in recipe.pretrain) else 0
    parts["checkpoints"] = (CHECKPOINTS_AT_ONCE * CHECKPOINT_BYTES + best) * largest
    for name, variant in recipe.variants.items():
        if variant.tune or (variant.model or "").endswith(".gguf"):
            parts[f"variants/{name}"] = original
        elif here(variant.model or "") is None:
            parts[f"download of {name}"] = original
    for name in recipe.variants:
        parts[f"propagated/{name}"] = adapted
        if recipe.calibrate:
            parts[f"calibrated/{name}"] = adapted
    total = sum(parts.values())
    return {"parts": parts, "total": total, "after": total - parts["checkpoints"] - parts["blocks of tokens"]}


def _notes(recipe: Recipe, before: Shape, wanted: NewVocabulary, number: int) -> list[str]:
    notes = _refused(recipe, number) + _left_out(recipe)
    if wanted.how.startswith("size: auto"):
        notes.append(f"vocabulary.size: auto is counted as {AUTO_ADDED:,} new tokens until the vocabulary is made")
    if recipe.vocabulary.scenario == "optimized":
        notes.append("optimized: special tokens are kept beside vocabulary.keep, so a few more rows are old")
    notes += [
        f"block {stage.block:,} is longer than the model's context of {before.context:,} tokens"
        for stage in recipe.pretrain
        if stage.block > before.context
    ]
    return notes


def _refused(recipe: Recipe, number: int) -> list[str]:
    """What training says of batches that so many processes cannot share."""
    several = len(recipe.pretrain) > 1
    runs: dict[str, PretrainSettings | TuneSettings]
    runs = {f"pretrain.{n}" if several else "pretrain": stage for n, stage in enumerate(recipe.pretrain)}
    runs |= {f"variants.{name}.tune": variant.tune for name, variant in recipe.variants.items() if variant.tune}
    runs |= {"calibrate.tune": recipe.calibrate.tune} if recipe.calibrate else {}
    notes = []
    for name, run in runs.items():
        try:
            split_batch(run.batch, run.micro_batch, number)
        except LeptaError as error:
            notes.append(f"training will refuse {name}.{error}")
    return notes


def _left_out(recipe: Recipe) -> list[str]:
    """Files that are not here, and parts of the cost that are not counted."""
    named = {
        "text.target.train": recipe.text.target.train,
        "text.target.valid": recipe.text.target.valid,
        "text.source.train": recipe.text.source.train,
        "text.source.valid": recipe.text.source.valid,
        "vocabulary.corpus": recipe.vocabulary.corpus,
    }
    tuned = {name: variant.tune for name, variant in recipe.variants.items() if variant.tune}
    named |= {f"variants.{name}.tune.dialogues": [tune.dialogues] for name, tune in tuned.items()}
    notes = [f"variants.{name}.tune: hours, memory and checkpoints of tuning are not in this plan" for name in tuned]
    if recipe.distill:
        notes.append("distill: hours, memory and checkpoints of distillation are not in this plan")
    if (calibrate := recipe.calibrate) and recipe.variants:
        copies = calibrate.copies
        named |= {"calibrate.prompts": calibrate.prompts, "calibrate.copies.text": copies.text}
        named["calibrate.copies.apart_from"] = copies.apart_from or []
        what = "answers, hours, " if any(map(is_absent, calibrate.prompts)) else ""
        what += "the judge's hours, " if calibrate.judge else ""
        notes.append(f"calibrate: {what}memory and checkpoints of training are not in this plan")
    if behaviour := recipe.evaluate.behaviour:
        named["evaluate.behaviour.dialogues"] = [behaviour.dialogues]
    absent: dict[str, list[str]] = {}
    for field, sources in named.items():
        for source in filter(is_absent, sources):
            absent.setdefault(source, []).append(field)
    if absent:
        files = "; ".join(f"{source} ({', '.join(fields)})" for source, fields in absent.items())
        notes.insert(0, f"not on this machine: {files}; the plan does without them, `lepta adapt` will not")
    return notes
