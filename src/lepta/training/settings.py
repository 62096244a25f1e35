"""Settings of pre-training, of tuning on conversations and of preferences, in recipes and commands."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from lepta.core.errors import LeptaError
from lepta.core.machine import launched_processes
from lepta.core.settings import Section, Sources, as_list
from lepta.darumeru.settings import Benchmark

BodyDtype = Literal["auto", "float32", "bfloat16", "float16", "8bit", "4bit"]
FEW_STEPS, SMALL_STEP = 100, 512  # in a run; tokens of a step that need not be smaller
QUANTISED = {"8bit": 8, "4bit": 4}  # of a body that is frozen -> bits of a weight
TuneTrains = Literal["lora", "lora+head", "embeddings+lora", "full"]
PreferenceMethod = Literal["kto", "dpo", "simpo"]
Trains = Literal["new-rows", "embeddings", "new-rows+lora", "embeddings+lora", "full"]
TeacherLoss = Literal["likelihoods", "states"]
ChatShare = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="Share of the text that is read as conversations in the model's chat template: of a piece of 1,500 "
        "characters, the beginning asks and the rest answers",
    ),
]
AUTO: Literal["auto"] = "auto"
ALL_LINEAR: Literal["all-linear"] = "all-linear"
LARGEST_RANK = 1 << 14  # the width of the widest open models


def _rate(value: Any) -> float | str:
    """A learning rate, or `auto`."""
    if value == AUTO:
        return AUTO
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number <= 1:
        raise ValueError(f"expected a number above 0 and at most 1, or {AUTO}; found {str(value)[:20]}")
    return number


Rate = Annotated[float | Literal["auto"], PlainValidator(_rate)]


def _targets(value: Any) -> Any:
    """Names of layers as a list, or `all-linear`, which the command line gives as a list of one."""
    names = as_list(value)
    if ALL_LINEAR not in names:
        return names
    if len(names) > 1:
        raise ValueError(f"{ALL_LINEAR} is every layer: give it alone, or names of layers")
    return ALL_LINEAR


class Lora(Section):
    """Low-rank changes of the body's linear layers, merged into them when training ends."""

    rank: int = Field(default=32, ge=1, le=LARGEST_RANK, description="Rank of the low-rank changes")
    alpha: int = Field(default=32, ge=1, description="The change is scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Share of their inputs that is dropped in training")
    targets: Annotated[Sources | Literal["all-linear"], BeforeValidator(_targets)] = Field(
        default=ALL_LINEAR,
        description="Names of linear layers of the language model, such as q_proj; all-linear: every one but the head, "
        "and of a model with experts those of attention",
    )
    layers: list[int] | None = Field(
        default=None, min_length=1, description="Layers that have them, from 0, or from the end: -1; default: all"
    )


class Conversations(Section):
    """How many conversations are read."""

    limit: int | None = Field(default=None, ge=1, description="Use only the first so many conversations")


class TuneSettings(Section):
    """Tuning on conversations (paper 2.4.3): the loss counts what the assistant says."""

    trains: TuneTrains = Field(
        default="lora+head",
        description="lora: low-rank changes of the body; lora+head: the head too (paper; of a tied model that is its "
        "embeddings); embeddings+lora: embeddings and head; full: everything",
    )
    lora: Lora = Field(default_factory=lambda: Lora(rank=32, alpha=16))
    learning_rate: float = Field(default=5e-5, gt=0, le=1, description="Peak rate; a tenth of the steps warms up")
    weight_decay: float = Field(default=0.05, ge=0, description="Pulls what trains towards 0")
    batch: int = Field(
        default=128, ge=1, description="Conversations per step, over all processes; rows if they are packed"
    )
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="What one process holds at once; default: 1 on a CPU, else 4 or the next smaller divisor of its "
        "share",
    )
    epochs: int = Field(default=1, ge=1, description="Times that each conversation is seen")
    max_length: int = Field(
        default=4096, ge=8, description="Tokens; a longer conversation is left out whole, and counted"
    )
    thinking: bool = Field(
        default=False,
        description="Learn the thinking of last answers that have it (reasoning_content, or <think> in the text)",
    )
    packing: bool = Field(
        default=False, description="Several conversations to a row of `max_length`; none sees another"
    )
    body_dtype: BodyDtype = Field(default="auto", description="Precision of a frozen body, as in pretrain")
    gradient_checkpointing: bool = Field(default=False, description="Compute activations twice instead of keeping them")
    save_every: int = Field(
        default=100, ge=1, description="Steps between checkpoints; by default a tenth of all if that is less"
    )
    report_to: list[str] = Field(default_factory=list, description="Trackers, such as tensorboard or wandb")

    @model_validator(mode="after")
    def _whole_body(self) -> "TuneSettings":
        if self.trains == "full" and self.body_dtype in QUANTISED:
            raise ValueError(f"`body_dtype`: {self.body_dtype} weights cannot train; give another `trains`")
        return self


def check_batch(settings: "PretrainSettings | TuneSettings") -> None:
    """LeptaError if the processes that were launched cannot share a batch equally; for before anything is loaded."""
    split_batch(settings.batch, settings.micro_batch, launched_processes())


def split_batch(batch: int, micro_batch: int | None, processes: int) -> tuple[int, int]:
    """How many examples a process holds at once, and how often in a step; LeptaError if they cannot be shared equally.

    `batch` counts the examples of a step over all processes; without `micro_batch` a process holds its whole share.
    """
    share, rest = divmod(batch, processes)
    if rest or not share:
        raise LeptaError(f"batch: {batch} examples per step cannot be shared by {processes} processes equally")
    micro_batch = micro_batch or share
    if share % micro_batch:
        raise LeptaError(
            f"micro_batch: {micro_batch} does not divide the {share} examples of a step that each process has "
            f"(`batch` {batch}, {processes} processes)"
        )
    return micro_batch, share // micro_batch


def checkpoint_steps(settings: Any, steps: int) -> int:
    """Steps between the checkpoints of a run of `steps`, by settings with `save_every`.

    In a short run the default gives way, and a number that was given does not.
    """
    every = int(settings.save_every)
    return every if "save_every" in settings.model_fields_set else max(1, min(every, steps // 10))


def few_steps(settings: "PretrainSettings") -> str | None:
    """What to say of a run that has few steps, as they are large; None of others. Measured: docs/training.md.

    Hidden states of a teacher, compared at all positions, teach in 22 large steps (docs/propagation.md).
    """
    size = settings.batch * settings.block
    steps = math.ceil(settings.tokens / size)
    if steps >= FEW_STEPS or size <= SMALL_STEP or settings.teacher_loss == "states":
        return None
    return f"{steps} steps of {size:,} tokens are few; smaller steps (batch, block) make more of them"


class PretrainSettings(Section):
    """Continued pre-training (paper 2.1.3).

    Defaults fit one machine and a short text. A step of the paper's, 256 blocks of 1,024 tokens, needs `micro_batch` on
    a GPU of 80 GB, and is more than all of a text of 200,000 tokens.
    """

    trains: Trains = Field(
        default="embeddings",
        description="embeddings: input and output embeddings (paper); new-rows: only those of new tokens; "
        "+lora: low-rank changes of the body too; full: everything",
    )
    tokens: int = Field(ge=1, description="Tokens to train on, in all")
    block: int = Field(default=256, ge=8, description="Block length in tokens; the paper's runs used 1024")
    documents_apart: bool = Field(
        default=False, description="A token sees its own document only, not what else the block has"
    )
    batch: int = Field(default=2, ge=1, description="Blocks per step, over all processes; the paper's runs used 256")
    micro_batch: int | None = Field(
        default=None, ge=1, description="Blocks that one process holds at once; default: its whole share of the batch"
    )
    learning_rate: Annotated[list[Rate], BeforeValidator(as_list), Field(min_length=1)] = Field(
        default=[AUTO],
        description="Peak rate, or auto: by the size of the rows and the tokens of a step; of several, each is tried "
        "on `sweep_share` of the tokens",
    )
    sweep_share: float = Field(
        default=0.2, gt=0, le=1, description="Share of the tokens that each learning rate is tried on"
    )
    old_rows_learning_rate: float | None = Field(
        default=None, gt=0, le=1, description="For rows of old tokens; default: the same"
    )
    body_learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="For LoRA or the whole body; default: the same, or 1e-4 where that is auto",
    )
    warmup_steps: int = Field(
        default=100,
        ge=0,
        description="Steps in which the rate rises to its peak. If it is not given, a run that has no more steps than "
        "the default warms up for a tenth of them",
    )
    schedule: Literal["cosine", "wsd"] = Field(
        default="cosine",
        description="After warming up the rate falls as a cosine, or (wsd: warm-up, stable, decay) stays at its peak "
        "and falls at the end",
    )
    decay_share: float = Field(default=0.2, gt=0, le=1, description="Share of the steps in which wsd lets it fall")
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        description="Shrinks what trains by about rate x decay x steps / 2, also rows that text seldom has "
        "(docs/training.md). The paper's runs used 0.1",
    )
    adam_epsilon: float = Field(
        default=1e-5,
        gt=0,
        description="What AdamW adds to the root of the second moment; it keeps rows of tokens that are not in the "
        "batch from drifting. The paper's runs used 1e-5 too",
    )
    lora: Lora = Field(default_factory=Lora, description="Used by new-rows+lora and embeddings+lora")
    body_dtype: BodyDtype = Field(
        default="auto",
        description="Precision of the frozen body and of products; auto: bfloat16 on a GPU that has it, and on a CPU "
        "that is faster in it than in float32, which a product of the model's shape tells. What trains is float32 in "
        "any case",
    )
    gradient_checkpointing: bool = Field(default=False, description="Compute activations twice instead of keeping them")
    source_share: float = Field(default=0.0, ge=0, lt=1, description="Share of tokens in the source language")
    chat_share: ChatShare = 0.0
    substitution: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of a new token's occurrences that are spelt by its two parts, if one of them is new and "
        "rarer than the token itself",
    )
    teacher: str | None = Field(
        default=None,
        min_length=1,
        description="Model with the original vocabulary, mostly the original itself, that reads the same text for a "
        "second loss: HF folder, GGUF file, package:NAME/FILE or hub id",
    )
    teacher_loss: TeacherLoss = Field(
        default="likelihoods",
        description="What is compared where tokens of both end: likelihoods of the text before, or last hidden states, "
        "which keeps the body as variants of the original know it",
    )
    teacher_weight: float = Field(
        default=1.0, gt=0, le=1000, description="How much that loss counts beside the usual one"
    )
    save_every: int = Field(
        default=100, ge=1, description="Steps between checkpoints; by default a tenth of all if that is less"
    )
    measure_every: int = Field(default=100, ge=1, description="Steps between measurements on held-out text")
    measure_characters: int = Field(default=4000, ge=100, description="Characters of held-out text for those")
    darumeru: Benchmark | None = Field(
        default=None, description="Tasks of the benchmark to ask at each measurement too"
    )
    keep: Literal["last", "best"] | None = Field(
        default=None,
        description="Which weights: last, or best on held-out text, those before the first step among them; default: "
        "best where there is held-out text of the target language",
    )
    forget_limit: float | None = Field(
        default=None, gt=0, description="Stop when the source language is so many bits per byte worse than at the start"
    )
    report_to: list[str] = Field(default_factory=list, description="Trackers, such as wandb, trackio or mlflow")

    @property
    def keeps_old_rows(self) -> bool:
        """Rows of old tokens stay as they are."""
        return self.trains in ("new-rows", "new-rows+lora")

    @property
    def trains_lora(self) -> bool:
        """Low-rank changes of the body are trained."""
        return self.trains.endswith("+lora")

    @property
    def changes_body(self) -> bool:
        """The result has another body than the model that training began with."""
        return self.trains_lora or self.trains == "full"

    @model_validator(mode="after")
    def _whole_body(self) -> "PretrainSettings":
        if self.trains == "full" and self.body_dtype in QUANTISED:
            raise ValueError(f"`body_dtype`: {self.body_dtype} weights cannot train; give `trains` embeddings+lora")
        if self.forget_limit is not None and self.keep == "last":
            raise ValueError("`forget_limit`: needs `keep` best, for weights from before the limit was passed")
        if self._changed("decay_share") and self.schedule != "wsd":
            raise ValueError("`decay_share`: only `schedule` wsd has it")
        for name in ("teacher_weight", "teacher_loss"):
            if self._changed(name) and self.teacher is None:
                raise ValueError(f"`{name}`: needs `teacher`, the model that the second loss is from")
        return self

    def _changed(self, name: str) -> bool:
        """Whether a setting is not its default, which a recipe that a program wrote may name without need."""
        return bool(getattr(self, name) != PretrainSettings.model_fields[name].default)


class PreferenceSettings(Section):
    """A preference step after tuning, through TRL: low-rank changes of the body."""

    method: PreferenceMethod = Field(default="kto", description="kto: single answers, good or bad; dpo, simpo: pairs")
    beta: float | None = Field(default=None, gt=0, description="Default: 0.15 for kto, 0.1 for dpo, 2.5 for simpo")
    gamma: float = Field(default=0.6, ge=0, description="simpo: margin of the rewards")
    lora: Lora = Field(default_factory=lambda: Lora(rank=32, alpha=16))
    learning_rate: float = Field(default=1e-5, gt=0, le=1, description="Peak rate")
    batch: int = Field(default=32, ge=2, description="Examples per step, over all processes")
    micro_batch: int = Field(
        default=2, ge=2, description="What one process holds at once; kto compares them with each other"
    )
    epochs: int = Field(default=1, ge=1, description="Times that each example is seen")
    max_length: int = Field(default=4096, ge=8, description="Tokens; longer examples are left out whole")
    save_every: int = Field(default=100, ge=1, description="Steps between checkpoints")

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> "PreferenceSettings":
        if self.batch % self.micro_batch:
            raise ValueError(f"`batch`: {self.batch}; expected a multiple of {self.micro_batch} (`micro_batch`)")
        return self

    @property
    def strength(self) -> float:
        """Beta, or what it is by default."""
        return self.beta or {"kto": 0.15, "dpo": 0.1, "simpo": 2.5}[self.method]
