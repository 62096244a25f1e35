"""The plan of a recipe as one dict: vocabulary, text, stages of training, devices and disk."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lepta.plan.calibration import calibration_cost
from lepta.plan.devices import MFU, Device, devices_named, this_machine
from lepta.plan.disk import disk_of
from lepta.plan.distillation import distillation_cost
from lepta.plan.notes import beyond_text, notes_on, slow_gpus
from lepta.plan.outline import Outline, StagePlan, outline_of
from lepta.plan.repair import repair_cost
from lepta.plan.shapes import Shape
from lepta.plan.text import count_text, is_absent
from lepta.plan.training import GIB, Sharding, fit, memory, micro_batch
from lepta.plan.vocabulary import SIDES, Densities, densities_of, in_original, vocabulary_facts
from lepta.recipe import Recipe


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
    outline = outline_of(recipe, models)
    before, after, wanted = outline.before, outline.after, outline.wanted
    densities = densities_of(recipe, before, wanted.size, outline.old if measure else None)
    outline = _counted(outline, densities)
    text = {side: _text(outline, side, densities) for side in SIDES}
    devices = [_gpu(device, outline, number, mfu) for device in chosen]
    if measure:
        devices.append(_this_machine(outline, mfu))
    calibration = _calibration(recipe, after, devices)
    beyond = beyond_text(recipe.distill, recipe.pretrain, text["target"]["characters"])
    plan: dict[str, Any] = {
        "recipe": recipe.name,
        "base": _base(before),
        "vocabulary": vocabulary_facts(recipe, before, after, wanted.how, densities),
        "text": text,
        "stages": [_stage(stage, after, number, densities) for stage in outline.stages],
        "total": _total(outline, densities),
        "devices": devices,
        "disk": disk_of(outline, text, densities),
        "notes": [*notes_on(outline, number), *beyond, *slow_gpus(outline, mfu)],
    }
    if recipe.distill:
        plan["distillation"] = {"tokens": recipe.distill.tokens} | asdict(outline.distillation)
    if recipe.repair:
        amount = {"tokens": recipe.repair.tokens, "head_tokens": recipe.repair.head_tokens}
        needs = outline.repair.needs(cpu=False) / GIB
        plan["repair"] = {**amount, "flops": outline.repair.operations, "memory_gib": needs}
    if calibration:
        plan["calibration"] = calibration
    return plan


def cost_here(outline: Outline) -> dict[str, Any]:
    """Tell what distillation and pre-training cost on this machine, whose speed is measured by one matrix product."""
    recipe, machine = outline.recipe, this_machine()
    cost: dict[str, Any] = {"weights": outline.after.weights, **machine.gigaflops}
    if recipe.distill or recipe.repair:
        outline = _counted(outline, densities_of(recipe, outline.before, outline.wanted.size, outline.old))
    if recipe.distill:
        cost |= amounts("distillation_", recipe.distill.tokens, outline.distillation.operations, machine)
    if outline.stages:
        steps = sum(stage.steps for stage in outline.stages)
        tokens = sum(stage.settings.tokens for stage in outline.stages)
        cost |= {"steps": steps} | amounts("", tokens, outline.operations, machine)
    if recipe.repair:
        tokens = (recipe.repair.tokens + recipe.repair.head_tokens) * len(recipe.variants)
        cost |= amounts("repair_", tokens, outline.repair.operations * len(recipe.variants), machine)
    return cost


def amounts(prefix: str, tokens: int, operations: int, machine: Device) -> dict[str, Any]:
    """Tokens, operations and time on a machine, for `--dry-run`."""
    amount: dict[str, Any] = {
        f"{prefix}tokens": tokens,
        f"{prefix}gigaflop": round(operations / 1e9),
        f"{prefix}minutes": round(60 * machine.hours(operations), 1),
    }
    if machine.busy:
        amount["busy"] = machine.busy
    return amount


def _counted(outline: Outline, densities: Densities) -> Outline:
    """The outline with the cost of distillation and of repair, where the recipe has them."""
    recipe, after, old_rows, first_new = outline.recipe, outline.after, outline.before.rows, outline.wanted.first_new
    old_per_new = in_original(1, densities) or 1.0
    distillation, repair = outline.distillation, outline.repair
    if recipe.distill:
        distillation = distillation_cost(recipe.distill, after, old_rows, after.tokens - first_new, old_per_new)
        if recipe.distill.untie:
            after = replace(after, tied=False)
    if recipe.repair:
        repair = repair_cost(recipe.repair, after, old_rows, first_new, old_per_new)
    return replace(outline, distillation=distillation, repair=repair)


def _base(before: Shape) -> dict[str, Any]:
    fields = ("layers", "width", "intermediate", "heads", "kv_heads", "head_dim", "tokens", "rows", "tied", "context")
    shape = {name: getattr(before, name) for name in fields}
    return {"name": before.name, "shape_from": before.source, "weights": before.weights, "body": before.body} | shape


def _text(outline: Outline, side: str, densities: Densities) -> dict[str, Any]:
    language = getattr(outline.recipe.text, side)
    amount = count_text(language.train)
    new = densities[side][1].characters_per_token
    wanted = sum(stage.settings.tokens * stage.share_of(side) for stage in outline.stages)
    tokens = trained_characters = passes = None
    if new:
        trained_characters = round(wanted * new)
        if amount.characters:
            tokens = round(amount.characters / new)
    if tokens:
        passes = wanted / tokens
    return {
        "language": language.language,
        "sources": language.train,
        "characters": amount.characters,
        "how": amount.how,
        "tokens": tokens,
        "trained_tokens": round(wanted),
        "trained_characters": trained_characters,
        "passes": passes,
    }


def _under_original(tokens: int, densities: Densities) -> int | None:
    original = in_original(tokens, densities)
    return None if original is None else round(original)


def _stage(stage: StagePlan, after: Shape, number: int, densities: Densities) -> dict[str, Any]:
    settings, weights = stage.settings, stage.weights
    memory_gib = {}
    ways: list[Sharding] = ["DDP", "FSDP2"]
    if number == 1:
        ways = ["one process"]
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


def _gpu(device: Device, outline: Outline, number: int, mfu: float) -> dict[str, Any]:
    needs = max(outline.distillation.needs(cpu=False), outline.repair.needs(cpu=False)) / GIB
    fits = needs <= device.usable
    changes, needs_then = {}, {}
    for stage in outline.stages:
        part = fit(outline.after, stage.settings, outline.wanted.first_new, device.usable, number)
        needs = max(needs, part.needs)
        if not part.fits:
            fits = False
            changes[stage.name], needs_then[stage.name] = part.change, part.needs_then
    facts = {"needs_gib": needs, "fits": fits, "changes": changes, "needs_then_gib": needs_then}
    return _times(device, outline, number, mfu) | facts


def _this_machine(outline: Outline, mfu: float) -> dict[str, Any]:
    machine = this_machine()
    cpu = machine.share is not None
    sizes = [memory(outline.after, stage.settings, stage.weights, cpu=cpu).total for stage in outline.stages]
    needs = max([outline.distillation.needs(cpu), outline.repair.needs(cpu), *sizes]) / GIB
    fits = {"needs_gib": needs, "fits": needs <= machine.usable, "changes": {}, "needs_then_gib": {}}
    return _times(machine, outline, 1, mfu) | fits | {"here": True, "busy": machine.busy}


def _times(device: Device, outline: Outline, number: int, mfu: float) -> dict[str, Any]:
    times = {
        "name": device.name,
        "number": number,
        "peak_tflops": device.tflops,
        "share_of_peak": device.share or mfu,
        "memory_gib": device.memory,
        "hours": device.hours(outline.operations, number, mfu),
        "distillation_hours": device.hours(outline.distillation.operations, number, mfu),
        "stage_hours": {stage.name: device.hours(stage.operations, number, mfu) for stage in outline.stages},
    }
    if outline.recipe.repair:
        times["repair_hours"] = device.hours(outline.repair.operations * len(outline.recipe.variants), number, mfu)
    return times


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
