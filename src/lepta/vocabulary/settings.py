"""Settings of a new vocabulary (paper 2.4.1): the scenarios, and which numbers go with which."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lepta.core.settings import Section, Sources, known_script

Scenario = Literal["extended", "replaced", "optimized", "bpe", "unigram"]
KeepBy = Literal["frequency", "rank"]
KEEP_IDS = ("extended", "replaced")  # old tokens that stay have their old ids

# Written beside a new tokenizer: its scenario, for each old id the new one, or null if the token is gone, and for
# `replaced` the share of documents whose ids may change.
ID_MAP = "id_map.json"
LARGEST_VOCABULARY = 1 << 22  # tokens; 16 times the largest of an open model (Gemma, 262,144)
LARGEST_PADDING = 1 << 16  # rows; what hardware asks for is 64 to 1024


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
        if reason := self._misfit():
            raise ValueError(reason)
        return self

    def _misfit(self) -> str:
        """Why these numbers cannot be had of the scenario, and what to give; empty if they can."""
        scenario, add, size = self.scenario, self.add, self.size
        if scenario == "replaced" and add is None:
            return "scenario replaced keeps the size: give `add`, the number of tokens that are replaced by new ones"
        if self.keep_text and scenario != "replaced":
            return f"`keep_text`: only scenario replaced chooses tokens by it, not {scenario}"
        if (add is None) == (size is None):
            return "give either `add` (number of new tokens) or `size` (of the whole vocabulary)"
        for name, number in (("add", add), ("size", size)):
            if isinstance(number, int) and number > LARGEST_VOCABULARY:
                return f"`{name}` {number}: more tokens than any vocabulary has; give at most {LARGEST_VOCABULARY:,}"
        if size == "auto" and scenario != "extended":
            return f"`size` auto: only of scenario extended; for {scenario} name a size"
        if self.keep is not None and scenario != "optimized":
            return f"`keep` {self.keep}: scenario {scenario} keeps all old tokens or none; expected scenario optimized"
        if size is None and scenario == "unigram":
            return "scenario unigram replaces the vocabulary: give its whole `size`, not `add`"
        if self.trim and scenario in ("replaced", "unigram"):
            return f"`trim`: scenario {scenario} has as many tokens as it was asked for; ask for fewer"
        return ""

    @property
    def key(self) -> dict[str, Any]:
        """What decides the result beside texts and other tokenizers, which count by their contents."""
        return self.model_dump(exclude={"corpus", "keep_text", "donor", "pad_to"})

    @property
    def texts(self) -> dict[str, list[str]]:
        """Label -> text sources that are read."""
        texts = {"corpus": self.corpus, "keep_text": self.keep_text}
        return {label: sources for label, sources in texts.items() if sources}
