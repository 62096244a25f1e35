"""Settings of the evaluation at the end of a recipe."""

from pydantic import Field

from lepta.core.settings import Section
from lepta.darumeru.settings import Benchmark
from lepta.inference.settings import Thinking


class Behaviour(Thinking):
    """A style that can be counted: answers open as the reference answers do, up to and including a mark."""

    dialogues: str = Field(description="JSONL file with held-out conversations")
    mark: str = Field(default=":", min_length=1)
    prompts: int = Field(default=24, ge=1, description="Use the first so many conversations")
    max_tokens: int = Field(default=24, ge=1, description="Longest answer in tokens")


class EvaluateSettings(Section):
    """What is measured, and on how much text."""

    characters: int = Field(
        default=10_000, ge=100, description="Characters of held-out text for bits per byte, each language"
    )
    window: int = Field(default=1500, ge=100, description="Characters that the model sees at once")
    speed_characters: int = Field(default=800, ge=100, description="Characters read and written in the speed test")
    speed_repeats: int = Field(default=3, ge=1)
    prompts: list[str] = Field(default_factory=list, description="Openings that base and adapted model continue")
    max_tokens: int = Field(default=40, ge=1, description="Longest continuation in tokens of the new vocabulary")
    behaviour: Behaviour | None = None
    darumeru: Benchmark | None = Field(default=None, description="Ask original and adapted models the benchmark")
