"""What a recipe writes to disk."""

from typing import Any

from lepta.plan.outline import Outline, StagePlan
from lepta.plan.shapes import here
from lepta.plan.vocabulary import SIDES, Densities

TOKEN_BYTES = 100  # of tokenizer.json for a token and its merge; 60 to 130 in those that were looked at
BLOCK_TOKEN_BYTES = 4
# As in lepta.training.blocks, which imports transformers.
TOKENISED = 8  # characters of text that are tokenised for each token of the budget
CHARACTERS_PER_TOKEN = 4
CHECKPOINT_BYTES = 12  # of a trained weight: itself and what AdamW knows of it
CHECKPOINTS_AT_ONCE = 2  # the last one is deleted when the next is complete
BEST_BYTES = 4  # of a trained weight, beside the checkpoints, where the best ones are kept


def disk_of(outline: Outline, text: dict[str, Any], densities: Densities) -> dict[str, Any]:
    """Bytes that a run writes; blocks and checkpoints are deleted when their stage is done."""
    recipe, stages = outline.recipe, outline.stages
    original = outline.before.weights * outline.before.file_bytes
    adapted = outline.after.weights * outline.after.file_bytes
    learned = adapted  # from distillation on
    if recipe.distill and recipe.distill.untie and outline.after.tied:
        learned += outline.after.rows * outline.after.width * outline.after.file_bytes  # a head of its own
    parts = _source_bytes("base", recipe.base, original)
    parts["vocabulary"] = outline.after.tokens * TOKEN_BYTES
    parts["initialised"] = adapted
    if recipe.distill:
        parts["distilled"] = learned
    for stage in stages:
        parts[f"pretrained, {stage.name}" if len(stages) > 1 else "pretrained"] = learned
    parts["blocks of tokens"] = max((_block_bytes(stage, text, densities) for stage in stages), default=0)
    largest = max((stage.weights.trained for stage in stages), default=0)
    best = BEST_BYTES if any(settings.keep != "last" for settings in recipe.pretrain) else 0
    parts["checkpoints"] = (CHECKPOINTS_AT_ONCE * CHECKPOINT_BYTES + best) * largest
    for name, variant in recipe.variants.items():
        made = {f"variants/{name}": original}
        parts |= made if variant.tune else _source_bytes(name, variant.model or "", original, "variants/")
    for name in recipe.variants:
        parts[f"propagated/{name}"] = learned
        if recipe.repair:
            parts[f"repaired/{name}"] = learned
            if recipe.repair.head_tokens:
                parts[f"repair/{name}"] = learned
        if recipe.calibrate:
            parts[f"calibrated/{name}"] = learned
    total = sum(parts.values())
    return {"parts": parts, "total": total, "after": total - parts["checkpoints"] - parts["blocks of tokens"]}


def _source_bytes(name: str, model: str, size: int, folder: str = "") -> dict[str, int]:
    """What a model of the recipe takes: a GGUF file as a folder, one that is not here in the hub's cache."""
    if model.endswith(".gguf"):
        return {f"{folder}{name}": size}
    return {f"download of {name}": size} if here(model) is None else {}


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
