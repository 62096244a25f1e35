"""What a user may write in a recipe: one YAML file from texts and models to adapted models and a report.

Paths are relative to the folder that `lepta` is run in, as on the command line. Text sources are described in
`lepta.text.sources`, model sources in `lepta.text.locate`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from lepta.calibration.settings import CalibrateSettings
from lepta.core.settings import LARGEST_SEED, NAME, Section, as_list, read_settings
from lepta.distillation.settings import DistillSettings, RepairSettings
from lepta.embeddings.settings import PropagateSettings
from lepta.evaluation.settings import EvaluateSettings
from lepta.text.settings import Text
from lepta.training.settings import Conversations, PretrainSettings, TuneSettings
from lepta.vocabulary.settings import VocabularySettings


class Tune(Conversations, TuneSettings):
    """Make the variant here, by tuning the base model on conversations."""

    dialogues: str = Field(description="File of conversations, a row each: `messages`, or `prompt` and `answer`")


class Variant(Section):
    """One instruct variant of the base model: a model that exists, or one tuned here."""

    model: str | None = Field(default=None, description="Folder, GGUF file, package:NAME/FILE or hub id")
    tune: Tune | None = None

    @model_validator(mode="after")
    def _one_of(self) -> "Variant":
        if (self.model is None) == (self.tune is None):
            raise ValueError("give either `model` (a variant that exists) or `tune` (make one here)")
        return self


class Recipe(Section):
    """One adaptation from beginning to end."""

    name: str = Field(pattern=NAME)
    output: Path = Field(description="Folder for everything that the recipe makes")
    seed: int = Field(default=1, ge=0, le=LARGEST_SEED)
    base: str = Field(description="Foundation model: folder, GGUF file, package:NAME/FILE or hub id")
    gguf_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="What GGUF files become; folders keep the type that they have"
    )
    variants: dict[Annotated[str, Field(pattern=NAME)], Variant] = Field(default_factory=dict)
    text: Text
    vocabulary: VocabularySettings
    distill: DistillSettings | None = Field(
        default=None, description="Rows of new tokens learned from the original model"
    )
    pretrain: Annotated[list[PretrainSettings], BeforeValidator(as_list)] = Field(
        default_factory=list, description="Stages of continued pre-training; none only where rows are distilled"
    )
    propagate: PropagateSettings = Field(default_factory=PropagateSettings)
    repair: RepairSettings | None = Field(
        default=None,
        description="Training of each propagated variant on text, with the original variant as its teacher",
    )
    calibrate: CalibrateSettings | None = Field(default=None, description="Self-calibration of each propagated variant")
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        if not self.text.target.train:
            raise ValueError("text.target.train: at least one text source is needed")
        if not self.pretrain and not self.distill:
            raise ValueError("pretrain: missing; expected it, or distill, or both")
        for stage in self.pretrain:
            if stage.source_share and not self.text.source.train:
                raise ValueError("pretrain.source_share is above 0: text.source.train needs at least one text source")
        if self.repair and not self.text.source.train:
            raise ValueError("repair: text.source.train needs at least one text source")
        if self.repair and not self.variants:
            raise ValueError("repair: there are no variants to repair; give `variants`, or leave it out")
        return self


def read_recipe(path: str | Path) -> Recipe:
    """Read and validate a recipe; LeptaError names the file and field, and for an unknown key the nearest known one."""
    return read_settings(path, Recipe, "recipe", "demo")
