"""Settings: text of a language, to train on and to measure with."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator

from lepta.core.settings import Section, Sources


def check_held_out(train: Sequence[str], valid: Sequence[str]) -> None:
    """ValueError if a source of held-out text is trained on too, by itself or in a folder."""
    trained = {Path(name).resolve(): name for name in train}
    for name in valid:
        path = Path(name).resolve()
        for known, by_name in trained.items():
            if path.is_relative_to(known) or known.is_relative_to(path):
                raise ValueError(f"{name} is trained on ({by_name}); expected held-out text that training never sees")


class Language(Section):
    """Text of one language."""

    language: str = Field(description="Name shown in reports, for example ru")
    train: list[str] = Field(default_factory=list, description="Text sources to train on")
    valid: Sources = Field(description="Held-out text sources, for measuring")

    @model_validator(mode="after")
    def _held_out(self) -> "Language":
        check_held_out(self.train, self.valid)
        return self


class Text(Section):
    """Text of the language that the model is to learn, and of the one it knows."""

    target: Language
    source: Language
