"""What a user may say about self-calibration; defaults are the paper's (2.4.2) where it names them."""

from pydantic import Field, model_validator

from lepta.core.settings import Section
from lepta.darumeru.settings import TaskNames
from lepta.inference.settings import Thinking
from lepta.training.settings import Lora, TuneSettings

COPY_TASKS = ("copy_sentence_ru", "copy_paragraph_ru", "copy_sentence_en", "copy_paragraph_en")


class AnswerSettings(Thinking):
    """How the original model answers."""

    samples: int = Field(default=1, ge=1, description="Answers to each prompt; the best graded one is taken")
    temperature: float = Field(default=0.0, ge=0, description="0: greedy (paper); several samples need more")
    max_tokens: int = Field(default=1024, ge=1, description="An answer that has not ended by then is not learned from")
    context: int = Field(default=4096, ge=16, description="Most tokens of prompt and answer")
    batch: int = Field(default=8, ge=1, description="Prompts that a local model answers at once")

    @model_validator(mode="after")
    def _samples_differ(self) -> "AnswerSettings":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("`samples`: several greedy answers are all the same; give a `temperature` above 0")
        return self


class ModelOrServer(Section):
    """A model that answers: here, or on a server."""

    model: str | None = Field(default=None, description="Folder, GGUF file, package:NAME/FILE or hub id")
    server: str | None = Field(default=None, description="Address of an OpenAI-compatible server, up to and with /v1")
    server_model: str | None = Field(default=None, description="The model's name there")

    @model_validator(mode="after")
    def _one_of(self) -> "ModelOrServer":
        if (self.model is None) == (self.server is None):
            raise ValueError("give either `model` or `server`")
        if self.server and not self.server_model:
            raise ValueError("`server_model`: missing; the model's name on the server")
        return self


class JudgeSettings(ModelOrServer):
    """Who grades the answers, from 1 to 5 for grammar and for relevance."""

    model: str | None = Field(default=None, description="A local model; original: the one that answers")
    keep: int = Field(default=4, ge=1, le=5, description="Answers are kept with both grades at least so high")
    tries: int = Field(default=3, ge=1, description="Times that a judge is asked until its grades can be read")
    repeat_share: float = Field(
        default=0.1, ge=0, le=1, description="Share of answers graded a second time, for agreement"
    )
    max_tokens: int = Field(default=128, ge=8, description="Longest reply of the judge, in tokens")


class CopySettings(Section):
    """Examples that ask to repeat a text: they force the new tokens to be used."""

    text: list[str] = Field(default_factory=list, description="Text sources to draw from")
    number: int = Field(default=10_000, ge=0, description="Texts to repeat")
    characters: int = Field(default=2000, ge=100, description="Longest text to repeat")
    language: str = Field(default="ru", description="Of the request; or write `prompts`")
    prompts: list[str] = Field(default_factory=list, description="Requests with {text} in them")
    apart_from: list[str] | None = Field(
        default=None,
        description="Texts with which copies share no run of `ngram` words; default: training text and benchmark",
    )
    ngram: int = Field(default=13, ge=2, description="Words in a run that no copy may share")

    @model_validator(mode="after")
    def _has_text(self) -> "CopySettings":
        if wrong := [prompt for prompt in self.prompts if "{text}" not in prompt]:
            raise ValueError(f"`prompts`: no {{text}} in {wrong[0]!r}")
        return self


def calibration_tuning() -> TuneSettings:
    """The paper's: rank 8, alpha 1, first and last layer, embeddings and head whole."""
    return TuneSettings(
        trains="embeddings+lora",
        lora=Lora(rank=8, alpha=1, layers=[0, -1]),
        learning_rate=2.5e-5,
        weight_decay=0.1,
        batch=64,
        max_length=8096,
    )


class CalibrateSettings(Section):
    """Self-calibration of propagated variants."""

    prompts: list[str] = Field(
        default_factory=list, description="Files of conversations; the last answer of each is left out"
    )
    limit: int | None = Field(default=None, ge=1, description="Use only the first so many different prompts")
    shown: int = Field(default=8, ge=0, description="Prompts put aside, to compare how models answer them")
    answers: AnswerSettings = Field(default_factory=AnswerSettings)
    judge: JudgeSettings | None = Field(
        default=None, description="Default: none, all answers that came to an end are kept"
    )
    copies: CopySettings = Field(default_factory=lambda: CopySettings(number=0))
    tune: TuneSettings = Field(default_factory=calibration_tuning)

    @model_validator(mode="after")
    def _copies_have_text(self) -> "CalibrateSettings":
        if self.copies.number and not self.copies.text:
            raise ValueError("`copies.text`: at least one text source is needed")
        if not self.copies.number and not self.prompts:
            raise ValueError("`prompts`: at least one file is needed, or copies")
        return self


class EffectSettings(Thinking):
    """What is measured before and after."""

    target: list[str] = Field(default_factory=list, description="Held-out text of the new vocabulary's language")
    source: list[str] = Field(default_factory=list, description="Held-out text of the language the model knows")
    characters: int = Field(default=10_000, ge=100, description="Characters of each text")
    tasks: TaskNames = Field(default_factory=lambda: list(COPY_TASKS), description="Tasks of Darumeru")
    benchmark: str = Field(default="builtin", description="Data of those: builtin, hub or a folder")
    limit: int | None = Field(default=None, ge=1, description="Rows of each task")
    max_tokens: int = Field(default=64, ge=1, description="Of answers that are shown")
