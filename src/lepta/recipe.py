"""What a user may write in a recipe: one YAML file from texts and models to adapted models and a report.

Paths are relative to the folder that `lepta` is run in, as on the command line. Text sources are described in
`lepta.text.sources`, model sources in `lepta.text.locate`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, field_validator, model_validator

from lepta.calibration.settings import CalibrateSettings
from lepta.core.errors import LeptaError
from lepta.core.settings import NAME, Section, Sources, read_settings
from lepta.darumeru.data import BUILTIN, HUB
from lepta.darumeru.tasks import named_tasks
from lepta.distillation.settings import DistillSettings
from lepta.embeddings.propagate import Method
from lepta.training.settings import BodyDtype, Lora, TuneSettings
from lepta.vocabulary.scenarios import KeepBy, Scenario

AUTO: Literal["auto"] = "auto"
Trains = Literal["new-rows", "embeddings", "embeddings+lora", "full"]


def _as_list(value: Any) -> Any:
    """One value stands for a list of one."""
    return value if isinstance(value, list) else [value]


def _rate(value: Any) -> float | str:
    """A learning rate, or `auto`."""
    if value == AUTO:
        return AUTO
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not number > 0:
        raise ValueError(f"expected a number above 0, or {AUTO}; found {value}")
    return number


Rate = Annotated[float | Literal["auto"], PlainValidator(_rate)]


class Tune(TuneSettings):
    """Make the variant here, by tuning the base model on conversations."""

    dialogues: str = Field(description="File of conversations, a row each: `messages`, or `prompt` and `answer`")
    limit: int | None = Field(None, ge=1, description="Use only the first so many conversations")


class Variant(Section):
    """One instruct variant of the base model: a model that exists, or one tuned here."""

    model: str | None = Field(None, description="Folder, GGUF file, package:NAME/FILE or hub id")
    tune: Tune | None = None

    @model_validator(mode="after")
    def _one_of(self) -> "Variant":
        if (self.model is None) == (self.tune is None):
            raise ValueError("give either `model` (a variant that exists) or `tune` (make one here)")
        return self


class Language(Section):
    """Text of one language."""

    language: str = Field(description="Name shown in reports, for example ru")
    train: list[str] = Field(default_factory=list, description="Text sources to train on")
    valid: Sources = Field(description="Held-out text sources, for measuring")


class Text(Section):
    """Text of the language that the model is to learn, and of the one it knows."""

    target: Language
    source: Language


class VocabularySettings(Section):
    """The new vocabulary (paper 2.4.1)."""

    scenario: Scenario = Field(
        "extended",
        description="extended: keep the vocabulary, add tokens; optimized: keep its most useful part, add tokens; "
        "bpe, unigram: a new vocabulary",
    )
    add: int | None = Field(None, ge=1, description="Number of new tokens; or give `size`")
    size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None,
        description="Size of the whole new vocabulary, or give `add`; auto: as many new tokens as make text cheapest",
    )
    keep: int | None = Field(
        None, ge=1, description="optimized: tokens to keep, special ones not counted; default: half"
    )
    keep_by: KeepBy = Field("frequency", description="optimized: keep the most used in the corpus, or the lowest ranks")
    corpus: Sources = Field(description="Text sources and wordfreq:LANGUAGE")
    script: str = Field(
        "auto",
        description="Unicode script of the new tokens; auto: the one other than Latin that most letters of the corpus "
        "are in, if a tenth of them are; else Latin",
    )
    pad_to: int | None = Field(None, ge=1, description="Pad rows to this multiple; default: as the source was padded")

    @model_validator(mode="after")
    def _one_number(self) -> "VocabularySettings":
        if (self.add is None) == (self.size is None):
            raise ValueError("give either `add` (number of new tokens) or `size` (of the whole vocabulary)")
        return self


class Benchmark(Section):
    """Darumeru, the benchmark (docs/darumeru.md)."""

    data: str = Field("builtin", description="builtin, hub, or a folder of datasets")
    tasks: list[str] = Field(default_factory=list, description="Names of tasks; default: all 17")
    limit: int | None = Field(None, ge=1, description="Rows of each task; default: all")
    shots: int = Field(5, ge=0, description="Examples before a question in plain text; a chat template gets none")

    @field_validator("tasks")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        try:
            named_tasks(names)
        except LeptaError as error:
            raise ValueError(str(error)) from error
        return names

    @model_validator(mode="after")
    def _data_is_there(self) -> "Benchmark":
        """A missing dataset is told before anything runs, not after training."""
        if self.data not in (BUILTIN, HUB):
            for name in {task.dataset for task in named_tasks(self.tasks)}:
                if not (Path(self.data).expanduser() / name).is_dir():
                    raise ValueError(
                        f"data: {self.data}/{name}: no such folder; expected {BUILTIN}, {HUB} or a folder "
                        "of datasets, as `lepta darumeru import` writes them"
                    )
        return self

    @property
    def files(self) -> dict[str, Path]:
        """Label -> the folder of data, if it is one."""
        return {} if self.data in (BUILTIN, HUB) else {"darumeru": Path(self.data).expanduser()}


class PretrainSettings(Section):
    """Continued pre-training (paper 2.1.3); defaults are the paper's where it names them."""

    trains: Trains = Field(
        "embeddings",
        description="embeddings: input and output embeddings (paper); new-rows: only those of new tokens; "
        "embeddings+lora: low-rank changes of the body too; full: everything",
    )
    tokens: int = Field(ge=1, description="Tokens to train on, in all")
    block: int = Field(1024, ge=8, description="Block length in tokens")
    documents_apart: bool = Field(False, description="A token sees its own document only, not what else the block has")
    batch: int = Field(256, ge=1, description="Blocks per step, over all processes")
    micro_batch: int | None = Field(
        None, ge=1, description="Blocks that one process holds at once; default: its whole share of the batch"
    )
    learning_rate: Annotated[list[Rate], BeforeValidator(_as_list), Field(min_length=1)] = Field(
        [AUTO],
        description="Peak rate, or auto: by the size of the rows and the tokens of a step; of several, each is tried "
        "on `sweep_share` of the tokens",
    )
    sweep_share: float = Field(0.2, gt=0, le=1, description="Share of the tokens that each learning rate is tried on")
    old_rows_learning_rate: float | None = Field(None, gt=0, description="For rows of old tokens; default: the same")
    body_learning_rate: float | None = Field(
        None, gt=0, description="For LoRA or the whole body; default: the same, or 1e-4 where that is auto"
    )
    warmup_steps: int = Field(
        100,
        ge=0,
        description="Steps in which the rate rises to its peak. If it is not given, a run that has no more steps than "
        "the default warms up for a tenth of them",
    )
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="Shrinks what trains by about rate x decay x steps / 2, also rows that text seldom has "
        "(docs/training.md). The paper's runs used 0.1",
    )
    adam_epsilon: float = Field(1e-8, gt=0, description="The paper's runs used 1e-5")
    lora: Lora = Field(default_factory=Lora, description="Used by embeddings+lora")
    body_dtype: BodyDtype = Field(
        "auto",
        description="Precision of the frozen body and of products; auto: bfloat16 on a GPU that has it, and on a CPU "
        "that is faster in it than in float32, which a product of the model's shape tells. What trains is float32 in "
        "any case",
    )
    gradient_checkpointing: bool = Field(False, description="Compute activations twice instead of keeping them")
    source_share: float = Field(0.0, ge=0, lt=1, description="Share of tokens in the source language")
    save_every: int = Field(100, ge=1, description="Steps between checkpoints")
    measure_every: int = Field(100, ge=1, description="Steps between measurements on held-out text")
    measure_characters: int = Field(4000, ge=100, description="Characters of held-out text for those")
    darumeru: Benchmark | None = Field(None, description="Tasks of the benchmark to ask at each measurement too")
    keep: Literal["last", "best"] | None = Field(
        None,
        description="Which weights: last, or best on held-out text, those before the first step among them; default: "
        "best where there is held-out text of the target language",
    )
    forget_limit: float | None = Field(
        None, gt=0, description="Stop when the source language is so many bits per byte worse than at the start"
    )
    report_to: list[str] = Field(default_factory=list, description="Trackers: tensorboard, wandb, trackio, mlflow, ...")

    @model_validator(mode="after")
    def _whole_body(self) -> "PretrainSettings":
        if self.trains == "full" and self.body_dtype == "4bit":
            raise ValueError("body_dtype: 4bit weights cannot train; give trains: embeddings+lora")
        if self.forget_limit is not None and self.keep == "last":
            raise ValueError("forget_limit: needs keep: best, for weights from before the limit was passed")
        return self


def rows_apart(settings: PretrainSettings) -> str:
    """What asks for old and new rows to be trained apart; empty if nothing does."""
    if settings.trains == "new-rows":
        return "trains: new-rows"
    return "old_rows_learning_rate" if settings.old_rows_learning_rate else ""


class CommandPretrainSettings(PretrainSettings):
    """The same with the default of `lepta pretrain`, which is meant for short runs."""

    warmup_steps: int = Field(5, ge=0)


class PropagateSettings(Section):
    """Learned Embedding Propagation (paper 2.2)."""

    method: Literal[Method, "auto"] = "anchored"
    body_delta: float = Field(
        1.0, description="If pre-training changed the body too: add that change so many times to the variant's body"
    )


class Behaviour(Section):
    """A style that can be counted: answers open as the reference answers do, up to and including a mark."""

    dialogues: str = Field(description="JSONL file with held-out conversations")
    mark: str = Field(":", min_length=1)
    prompts: int = Field(24, ge=1, description="Use the first so many conversations")
    max_tokens: int = Field(24, ge=1, description="Longest answer in tokens")


class EvaluateSettings(Section):
    """What is measured, and on how much text."""

    characters: int = Field(10_000, ge=100, description="Characters of held-out text for bits per byte, each language")
    window: int = Field(1500, ge=100, description="Characters that the model sees at once")
    speed_characters: int = Field(800, ge=100, description="Characters read and written in the speed test")
    speed_repeats: int = Field(3, ge=1)
    prompts: list[str] = Field(default_factory=list, description="Openings that base and adapted model continue")
    max_tokens: int = Field(40, ge=1, description="Longest continuation in tokens of the new vocabulary")
    behaviour: Behaviour | None = None
    darumeru: Benchmark | None = Field(None, description="Ask original and adapted models the benchmark")


class Recipe(Section):
    """One adaptation from beginning to end."""

    name: str = Field(pattern=NAME)
    output: Path = Field(description="Folder for everything that the recipe makes")
    seed: int = 1
    base: str = Field(description="Foundation model: folder, GGUF file, package:NAME/FILE or hub id")
    variants: dict[Annotated[str, Field(pattern=NAME)], Variant] = Field(default_factory=dict)
    text: Text
    vocabulary: VocabularySettings
    distill: DistillSettings | None = Field(None, description="Rows of new tokens learned from the original model")
    pretrain: Annotated[list[PretrainSettings], BeforeValidator(_as_list)] = Field(
        default_factory=list, description="Stages of continued pre-training; none only where rows are distilled"
    )
    propagate: PropagateSettings = Field(default_factory=PropagateSettings)
    calibrate: CalibrateSettings | None = Field(None, description="Self-calibration of each propagated variant")
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        if not self.text.target.train:
            raise ValueError("text.target.train: at least one text source is needed")
        if not self.pretrain and not self.distill:
            raise ValueError("pretrain: missing; expected it, or distill, or both")
        replaced = self.vocabulary.scenario in ("bpe", "unigram")
        for stage in self.pretrain:
            if replaced and (apart := rows_apart(stage)):
                raise ValueError(
                    f"pretrain.{apart} needs old rows to keep apart: vocabulary.scenario extended or optimized"
                )
            if stage.source_share and not self.text.source.train:
                raise ValueError("pretrain.source_share is above 0: text.source.train needs at least one text source")
        return self


def read_recipe(path: str | Path) -> Recipe:
    """Read and validate a recipe.

    Raises
    ------
    LeptaError
        Naming the file and field, what was expected, and for an unknown key the nearest one that exists.
    """
    return read_settings(path, Recipe, "recipe", "recipes/demo.yaml")
