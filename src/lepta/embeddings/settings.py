"""Settings of Learned Embedding Propagation."""

from typing import Literal

from pydantic import Field

from lepta.core.settings import Section

Method = Literal["swap", "overlap", "conversion", "ridge", "procrustes", "delta", "anchored"]
AnyMethod = Literal[Method, "auto"]


class PropagateSettings(Section):
    """Learned Embedding Propagation (paper 2.2)."""

    method: AnyMethod = "anchored"
    body_delta: float = Field(
        default=1.0,
        description="If pre-training changed the body too: add that change so many times to the variant's body",
    )
