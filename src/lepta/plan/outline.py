"""What follows from a recipe and the sizes of its base model alone: new vocabulary and stages of pre-training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lepta.plan.distillation import NO_DISTILLATION, DistillationCost
from lepta.plan.repair import NO_REPAIR, RepairCost
from lepta.plan.shapes import Shape, here, shape_of
from lepta.plan.text import measured_name, vocabulary_at
from lepta.plan.training import Flops, StageWeights, flops_per_token, stage_weights
from lepta.plan.vocabulary import NewVocabulary, new_vocabulary, with_vocabulary
from lepta.recipe import Recipe
from lepta.training.settings import PretrainSettings
from lepta.vocabulary.tokens import Vocabulary


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
    distillation: DistillationCost = NO_DISTILLATION  # until it is counted
    repair: RepairCost = NO_REPAIR  # of one variant, likewise

    @property
    def operations(self) -> int:
        """Floating-point operations of all stages of pre-training."""
        return sum(stage.operations for stage in self.stages)


def outline_of(recipe: Recipe, models: Path | None = None) -> Outline:
    """Read the shape of the base model, and size the vocabulary and the stages; `models` as for `shape_of`."""
    before, place = shape_of(recipe.base, models), here(recipe.base)
    old = vocabulary_at(place)
    if place and place.suffix == ".gguf":
        before = replace(before, dtype=recipe.gguf_dtype)
    if old is not None:
        before = replace(before, tokens=old.size, tokenizer=before.tokenizer or measured_name(old))
    wanted = new_vocabulary(recipe, before)
    after = with_vocabulary(before, recipe, wanted.size)
    return Outline(recipe, old, before, wanted, after, plan_stages(recipe.pretrain, after, wanted.first_new))


def plan_stages(pretraining: Sequence[PretrainSettings], after: Shape, first_new: int) -> list[StagePlan]:
    """Work out the stages of pre-training; `after` has the new vocabulary."""
    stages = []
    for place, settings in enumerate(pretraining, 1):
        weights = stage_weights(after, settings, first_new)
        rates = len(settings.learning_rate)
        swept = round(rates * settings.sweep_share * settings.tokens) if rates > 1 else 0
        name = f"stage {place}" if len(pretraining) > 1 else "pre-training"
        stages.append(StagePlan(name, settings, weights, flops_per_token(after, settings, weights), swept))
    return stages
