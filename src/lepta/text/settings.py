"""Settings: text of a language, to train on and to measure with."""

from pydantic import Field

from lepta.core.settings import Section, Sources


class Language(Section):
    """Text of one language."""

    language: str = Field(description="Name shown in reports, for example ru")
    train: list[str] = Field(default_factory=list, description="Text sources to train on")
    valid: Sources = Field(description="Held-out text sources, for measuring")


class Text(Section):
    """Text of the language that the model is to learn, and of the one it knows."""

    target: Language
    source: Language
