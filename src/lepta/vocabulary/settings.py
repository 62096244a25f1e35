"""Settings of a new vocabulary."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lepta.core.settings import Section, Sources, known_script
from lepta.vocabulary.scenarios import LARGEST_PADDING, KeepBy, Scenario, misfit


class VocabularySettings(Section):
    """The new vocabulary (paper 2.4.1)."""

    scenario: Scenario = Field(
        default="extended",
        description="extended: keep the vocabulary, add tokens; replaced: the same size, the least useful tokens give "
        "their ids to new ones; optimized: keep its most useful part, add tokens; bpe, unigram: a new vocabulary",
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
    keep_text: list[str] = Field(
        default_factory=list,
        description="replaced: text of all languages that shall stay, to choose tokens by; without it only tokens of "
        "scripts other than Latin and the target one go, so text in Latin letters, code and signs stays as it is",
    )
    most_changed: float = Field(
        default=0.01, ge=0, le=1, description="replaced: share of the documents of `keep_text` whose ids may change"
    )
    corpus: Sources = Field(description="Text sources and wordfreq:LANGUAGE")
    donor: list[str] = Field(
        default_factory=list,
        description="Other tokenizers whose tokens in the target script are candidates too; the corpus counts them",
    )
    trim: int | None = Field(
        default=None,
        ge=1,
        description="Leave out new tokens that the text of the corpus, word lists not counted, uses fewer times: too "
        "seldom for their rows to be learned",
    )
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

    @field_validator("script")
    @classmethod
    def _known(cls, script: str) -> str:
        return script if script == "auto" else known_script(script)

    @model_validator(mode="after")
    def _numbers_fit(self) -> "VocabularySettings":
        if reason := misfit(self.scenario, self.add, self.size, self.keep, self.keep_text):
            raise ValueError(reason)
        if self.trim and self.scenario in ("replaced", "unigram"):
            raise ValueError(f"`trim`: scenario {self.scenario} has as many tokens as it was asked for; ask for fewer")
        return self

    @property
    def key(self) -> dict[str, Any]:
        """What decides the result beside texts and other tokenizers, which count by their contents."""
        return self.model_dump(exclude={"corpus", "keep_text", "donor", "pad_to"})

    @property
    def texts(self) -> dict[str, list[str]]:
        """Label -> text sources that are read."""
        texts = {"corpus": self.corpus, "keep_text": self.keep_text}
        return {label: sources for label, sources in texts.items() if sources}
