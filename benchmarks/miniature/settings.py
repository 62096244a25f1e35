"""What `miniature.yaml` holds: one section for each scale."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from lepta.core.settings import Section, Sources, read_settings
from lepta.distillation.settings import DistillSettings
from lepta.training.settings import PretrainSettings, TuneSettings

Scale = Literal["smoke", "cpu", "gpu"]
FILE = Path(__file__).with_name("miniature.yaml")


class Side(Section):
    """Text of one language."""

    train: Sources
    valid: list[str] = Field(default_factory=list, description="Without it, one passage in fifty is held out")


class Texts(Section):
    """Where text comes from, and how much of it each seed draws, in characters."""

    ru: Side
    en: Side


class Sample(Section):
    """How much text a seed draws."""

    ru: int = Field(gt=0, description="Characters of Russian")
    en: int = Field(gt=0, description="Characters of English")
    repeated: float = Field(
        ge=0, lt=1, description="Share of passages of which a few words are said again and again, for copying"
    )
    held_out: int = Field(gt=0, description="Characters of held-out text of each language")


class Shape(Section):
    """The foundation model: a Llama with untied embeddings, as the paper's models are."""

    width: int
    layers: int
    heads: int
    vocabulary: int = Field(description="Tokens of the original vocabulary")
    russian: float = Field(description="Share of Russian in the text that vocabulary is learned from")


class Tuning(TuneSettings):
    """Instruction tuning."""

    examples: int
    russian: float = Field(description="Share of examples in Russian")


class Calibration(TuneSettings):
    """Self-calibration: the original instruct model's own right answers, and copies of text."""

    examples: int = Field(description="Instructions asked; wrong answers are dropped")
    copies: int


class Measures(Section):
    """How much is measured."""

    items: int = Field(description="Held-out instructions of each task and language")
    copies: int = Field(description="Held-out passages to copy, of each language")
    batch: int = Field(description="Answers written together")
    speed_characters: int


class ScaleSettings(Section):
    """One scale of the benchmark."""

    seeds: int
    sample: Sample
    shape: Shape
    foundation: PretrainSettings
    tuning: Tuning
    vocabulary: int = Field(description="Tokens of each new vocabulary")
    adaptation: PretrainSettings
    distillation: DistillSettings
    calibration: Calibration
    measures: Measures


class Settings(Section):
    """The whole file."""

    texts: Texts
    scales: dict[Scale, ScaleSettings]


def read(file: Path = FILE) -> Settings:
    """Read and validate the settings."""
    return read_settings(file, Settings, "settings file", "benchmarks/miniature/miniature.yaml")
