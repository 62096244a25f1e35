"""What a user may say about token distillation."""

import math
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from lepta.core.errors import LeptaError
from lepta.core.settings import Section
from lepta.training.settings import LARGEST_RANK, ChatShare, Lora, PretrainSettings

FloatDtype = Literal["auto", "float32", "bfloat16", "float16"]
HELD_OUT = 64  # passages put aside to measure on; of a text of fewer than 640 a tenth
HELD_OUT_SHARE = 0.2  # of the tokens to learn from, which passages put aside have at most
FITTED = 600_000  # positions that the head goes through, where no setting says how often
# Of the next token, beside what the original expects, one fit after the other. An original that reads well can be
# given more: held-out bits per byte go from 1.127 to 1.109 and then 1.096 on Gemma 3 270M (24,000 tokens of text), from
# 1.709 to 1.588 and then 1.603 on SmolLM2 (12,000). The text alone, 1.0: 1.154 and 1.629.
TEXT_WEIGHTS = (0.6, 0.3)
SHORTEST = 8  # new tokens of a passage that is worth a row in a batch, the one that starts it among them


class DistillSettings(Section):
    """Rows of new tokens learned from the original model (docs/distillation.md)."""

    tokens: int = Field(ge=1, description="Tokens of text to learn from, in the new vocabulary")
    rows: Literal["new-rows", "target-rows"] = Field(
        default="target-rows",
        description="target-rows: rows of new tokens, and of their first old pieces where only text in their script "
        "has those; new-rows: those of new tokens alone",
    )
    untie: bool = Field(
        default=False, description="Give a model whose head is its embeddings a head of its own, which learns"
    )
    head_only: bool = Field(
        default=False,
        description="Leave input rows as they are, and fit the head's further to what the original expects. The body "
        "may have been trained: for propagated variants, with the variant itself as the original",
    )
    layer: int | None = Field(
        default=None, ge=1, description="Hidden states are compared after this layer; default: a third of all layers"
    )
    passage: int = Field(default=400, ge=40, description="Longest passage in characters")
    occurrences: int = Field(default=8, ge=0, description="Passages are chosen so that each new token occurs so often")
    batch: int = Field(default=8, ge=1, description="Passages per step, over all processes")
    micro_batch: int | None = Field(
        default=None, ge=1, description="Passages that one process holds at once; default: its share"
    )
    hidden_rate: float = Field(
        default=0.02, gt=0, le=100, description="Peak rate for hidden states, in units of the rows' RMS"
    )
    lora_rank: int = Field(
        default=0,
        ge=0,
        le=LARGEST_RANK,
        description="Rank of low-rank changes of the layers up to `layer`, which learn together with the rows; 0: the "
        "body stays as it is",
    )
    lora_rate: float = Field(default=5e-4, gt=0, le=1, description="Peak rate for low-rank changes")
    source_share: float = Field(
        default=0.15,
        gt=0,
        lt=1,
        description="Share of tokens in the source language, for low-rank changes (`lora_rank`) and `head_only`, which "
        "leave that as it is",
    )
    chat_share: ChatShare = 0.0
    head_rate: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="Peak rate for rows of the head, in units of the rows' RMS; default: 0.08, 0.02 for `head_only`",
    )
    head_tokens: int = Field(
        default=200_000,
        ge=1,
        description="Tokens of the text that the head learns from; their last hidden states, of both models, are held "
        "in memory in the precision of the body",
    )
    text_weight: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Weight of the text's next token when the head is fitted, beside what the original expects; "
        "default: 0.6, then 0.3, of which the better is kept (0.3 for `head_only`). With 1 the model writes more of "
        "its new tokens and reads a little worse",
    )
    head_epochs: float | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="Times that the head goes through those tokens; default: fewer for more tokens (6 up to 100,000, 3 "
        "at 200,000, at least 2)",
    )
    body_dtype: FloatDtype = Field(default="auto", description="Precision of the frozen body")
    save_every: int = Field(
        default=200, ge=1, description="Steps between checkpoints; by default a tenth of all if that is less"
    )

    @property
    def source_tokens(self) -> int:
        """Tokens of text in the source language."""
        return round(self.tokens * self.source_share) if self.reads_source else 0

    @property
    def reads_source(self) -> bool:
        """Text of the source language is read where the body learns, and where the head alone does."""
        return self.lora_rank > 0 or self.head_only

    def check_source_text(self, given: bool) -> None:
        """LeptaError if text of the source language is read and none is given."""
        if self.reads_source and not given:
            raise LeptaError(
                f"distill.{'head_only' if self.head_only else 'lora_rank'}: needs text of the language that the model "
                "knows, to keep that as it is; expected text.source.train, or --source-text"
            )

    @property
    def peak_rate(self) -> float:
        """The head's, in units of the rows' RMS."""
        return self.head_rate or (0.02 if self.head_only else 0.08)

    @property
    def text_weights(self) -> tuple[float, ...]:
        """Those of the fits of the head, one after the other."""
        if self.text_weight is not None:
            return (self.text_weight,)
        return TEXT_WEIGHTS[-1:] if self.head_only else TEXT_WEIGHTS

    def epochs_over(self, positions: int) -> float:
        """How often the head goes through so many positions."""
        if self.head_epochs is not None:
            return self.head_epochs
        return min(6.0, max(2.0, FITTED / positions))

    def too_short_for(self, new_tokens: int) -> str | None:
        """What to say of text that cannot have each of so many new tokens `occurrences` times; None if it can."""
        target, needed = self.tokens - self.source_tokens, new_tokens * self.occurrences
        if target >= needed:
            return None
        return (
            f"{target:,} tokens of text are few for {new_tokens:,} new tokens: for each to occur {self.occurrences} "
            f"times, more than {needed:,} are needed; rows of tokens that do not occur stay as they are"
        )

    @model_validator(mode="after")
    def _head_alone(self) -> "DistillSettings":
        if self.head_only and (self.lora_rank or self.untie):
            other = "lora_rank" if self.lora_rank else "untie"
            raise ValueError(f"`{other}`: changes more than the rows of a head; leave it out with `head_only`")
        return self

    @model_validator(mode="after")
    def _tokens_fill_a_batch(self) -> "DistillSettings":
        """Too few tokens for a batch of the shortest passages are told at once, not when the text has been read."""
        target = self.tokens - self.source_tokens
        if math.ceil(target / (SHORTEST - 1)) < self.batch:
            raise ValueError(
                f"`tokens`: {target} tokens of the target language cannot fill a `batch` of {self.batch} passages; "
                "expected more tokens (a passage of 400 characters has about 100), or a smaller batch"
            )
        return self


class RepairSettings(Section):
    """Training of a propagated variant on text, with the original variant as its teacher (docs/propagation.md)."""

    tokens: int = Field(
        default=90_000,
        ge=1,
        description="Tokens of text in the first step, which brings hidden states back to those of the original: new "
        "rows and low-rank changes of the body train",
    )
    head_tokens: int = Field(
        default=170_000,
        ge=0,
        description="Tokens of text in the second step, which fits the head's rows of new tokens to what the original "
        "expects; 0 leaves it out, as it must be where one matrix serves both ends",
    )
    chat_share: float = Field(
        default=0.5, ge=0, le=1, description="Share of the text that is read as conversations in the chat template"
    )
    source_share: float = Field(default=0.15, gt=0, lt=1, description="Share of tokens in the source language")
    learning_rate: float = Field(default=2e-4, gt=0, le=1, description="Peak rate of new rows in the first step")
    body_learning_rate: float = Field(default=4e-4, gt=0, le=1, description="Peak rate of low-rank changes")
    lora_rank: int = Field(default=32, ge=1, le=LARGEST_RANK, description="Rank of the low-rank changes")
    block: int = Field(default=512, ge=8, description="Block length of the first step in tokens")
    batch: int = Field(default=8, ge=1, description="Blocks, then passages, per step, over all processes")
    micro_batch: int | None = Field(
        default=None, ge=1, description="Blocks and passages that one process holds at once; default: its share"
    )
    documents_together: bool = Field(
        default=False,
        description="A token sees all of its block, not its own document only, which a few architectures cannot keep "
        "apart",
    )
    passage: int = Field(default=1600, ge=40, description="Longest passage of the second step in characters")
    body_dtype: FloatDtype = Field(default="auto", description="Precision of the frozen body")
    gradient_checkpointing: bool = Field(default=False, description="Compute activations twice instead of keeping them")

    @model_validator(mode="after")
    def _head_fills_a_batch(self) -> "RepairSettings":
        try:
            _ = self.head
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(reason.replace("`tokens`", "`head_tokens`")) from error
        return self

    @property
    def states(self) -> PretrainSettings:
        """The first step."""
        return PretrainSettings(
            trains="new-rows+lora",
            teacher="original",
            teacher_loss="states",
            teacher_weight=4.0,
            learning_rate=[self.learning_rate],
            lora=Lora(rank=self.lora_rank, alpha=self.lora_rank),
            documents_apart=not self.documents_together,
            **self._shared("tokens", "block", "body_learning_rate", "gradient_checkpointing"),
        )

    @property
    def head(self) -> DistillSettings | None:
        """The second step, if there is one."""
        if not self.head_tokens:
            return None
        return DistillSettings(tokens=self.head_tokens, head_only=True, **self._shared("passage"))

    def _shared(self, *names: str) -> dict[str, Any]:
        """Settings of this section that a step has under the same name, those of both steps among them."""
        return self.model_dump(include={*names, "chat_share", "source_share", "batch", "micro_batch", "body_dtype"})
