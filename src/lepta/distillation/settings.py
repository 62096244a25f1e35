"""What a user may say about token distillation."""

from typing import Literal

from pydantic import Field

from lepta.settings import Section
from lepta.training.settings import BodyDtype


class DistillSettings(Section):
    """Rows of new tokens learned from the original model (docs/distillation.md)."""

    tokens: int = Field(ge=1, description="Tokens of text to learn from, in the new vocabulary")
    rows: Literal["new-rows", "target-rows"] = Field(
        "target-rows",
        description="target-rows: rows of new tokens, and of old tokens that only text in the script of the new ones "
        "uses; new-rows: those of new tokens alone",
    )
    untie: bool = Field(False, description="Give a model whose head is its embeddings a head of its own, which learns")
    layer: int | None = Field(
        None, ge=1, description="Hidden states are compared after this layer; default: a third of all layers"
    )
    hidden_share: float = Field(
        1.0, ge=0, le=1, description="Share of the passages that hidden states are compared on, before the head learns"
    )
    output_share: float = Field(
        1.0, ge=0, le=1, description="Share of the passages that the head learns on; 0: rows stay where counting put them"
    )
    passage: int = Field(400, ge=40, description="Longest passage in characters")
    occurrences: int = Field(8, ge=0, description="Passages are chosen so that each new token occurs so often")
    batch: int = Field(16, ge=1, description="Passages per step, over all processes")
    micro_batch: int | None = Field(None, ge=1, description="Passages that one process holds at once; default: its share")
    hidden_rate: float = Field(0.1, gt=0, description="Peak rate for hidden states, in units of the rows' RMS")
    output_rate: float = Field(0.05, gt=0, description="Peak rate for the head, in units of the rows' RMS")
    body_dtype: BodyDtype = Field("auto", description="Precision of the frozen body")
    save_every: int = Field(200, ge=1, description="Steps between checkpoints")
    measure_every: int = Field(200, ge=1, description="Steps between measurements on passages that are put aside")
