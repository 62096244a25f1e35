"""Settings of a new vocabulary."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lepta.core.settings import Section, Sources
from lepta.vocabulary.scenarios import LARGEST_PADDING, KeepBy, Scenario, misfit


class VocabularySettings(Section):
    """The new vocabulary (paper 2.4.1)."""

    scenario: Scenario = Field(
        default="extended",
        description="extended: keep the vocabulary, add tokens; optimized: keep its most useful part, add tokens; "
        "bpe, unigram: a new vocabulary",
    )
    add: int | None = Field(default=None, ge=1, description="Number of new tokens; or give `size`")
    size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default=None,
        description="Size of the whole new vocabulary, or give `add`; auto: as many new tokens as make text cheapest",
    )
    keep: int | None = Field(
        default=None, ge=1, description="optimized: tokens to keep, special ones not counted; default: half"
    )
    keep_by: KeepBy = Field(
        default="frequency", description="optimized: keep the most used in the corpus, or the lowest ranks"
    )
    corpus: Sources = Field(description="Text sources and wordfreq:LANGUAGE")
    script: str = Field(
        default="auto",
        description="Unicode script of the new tokens; auto: the one other than Latin that most letters of the corpus "
        "are in, if a tenth of them are; else Latin",
    )
    pad_to: int | None = Field(
        default=None,
        ge=1,
        le=LARGEST_PADDING,
        description="Pad rows to this multiple; default: as the source was padded",
    )

    @model_validator(mode="after")
    def _numbers_fit(self) -> "VocabularySettings":
        if reason := misfit(self.scenario, self.add, self.size, self.keep):
            raise ValueError(reason)
        return self
