"""Settings of Learned Embedding Propagation."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from lepta.core.settings import Section, as_list

Method = Literal["swap", "overlap", "conversion", "ridge", "procrustes", "delta", "anchored"]
AnyMethod = Literal[Method, "auto"]
# Of a change; more than 100 times it is no model any more.
Scales = Annotated[list[Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(as_list)]


class PropagateSettings(Section):
    """Learned Embedding Propagation (paper 2.2)."""

    method: AnyMethod = Field(
        default="anchored",
        description="anchored: the variant's own initial rows, and a map of what training changed; delta: the same "
        "without a map; overlap, conversion: the paper's maps, of shared tokens, of all; ridge: overlap, drawn towards "
        "no map; procrustes: a rotation for conversion; swap: no map, the adapted rows; auto: the one with which the "
        "variant reads held-out text, and predicts answers, best, for which the variant is loaded once for each map; "
        "without these, or where it cannot be loaded, the one that predicts held-out rows best",
    )
    delta_scale: Scales = Field(
        default=[1.0],
        min_length=1,
        description="Scale of what training changed in the embeddings; of several, the best is taken",
    )
    body_delta: Scales = Field(
        default=[],
        description="Scale of what training changed in the body, where it did, before that is added to the variant's "
        "body; of several, the best is taken; default: a recipe takes 1, the command asks",
    )
    answers: list[str] = Field(
        default=[], description="Held-out conversations, files of rows, whose answers are judged beside held-out text"
    )

    @property
    def several(self) -> bool:
        """There is something to choose."""
        return self.method == "auto" or len(self.delta_scale) > 1 or len(self.body_delta) > 1
