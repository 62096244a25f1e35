"""What the repair of a propagated variant costs: training on text, then distillation of the head."""

from dataclasses import dataclass

from lepta.distillation.settings import RepairSettings
from lepta.plan.distillation import NO_DISTILLATION, DistillationCost, distillation_cost
from lepta.plan.shapes import Shape
from lepta.plan.training import flops_per_token, memory, stage_weights


@dataclass(frozen=True)
class RepairCost:
    """Operations of the first step for one variant, bytes that a process holds in it, and the cost of the second."""

    states: int
    on_gpu: float
    on_cpu: float
    head: DistillationCost = NO_DISTILLATION

    @property
    def operations(self) -> int:
        """Of both steps."""
        return self.states + self.head.operations

    def needs(self, cpu: bool) -> float:
        """Bytes that a process holds in the step that needs more; a CPU is taken to compute the first in float32."""
        return max(self.on_cpu if cpu else self.on_gpu, self.head.needs(cpu))


NO_REPAIR = RepairCost(0, 0, 0)


def repair_cost(
    settings: RepairSettings, after: Shape, old_rows: int, first_new: int, old_per_new: float
) -> RepairCost:
    """What both steps cost one variant.

    `after` is the model with the new vocabulary, in which new tokens begin at `first_new`; `old_rows` and `old_per_new`
    are as for `distillation_cost`.
    """
    states, head = settings.states, NO_DISTILLATION
    weights = stage_weights(after, states, first_new)
    if settings.head:
        head = distillation_cost(settings.head, after, old_rows, after.rows - first_new, old_per_new)
    return RepairCost(
        states.tokens * flops_per_token(after, states, weights).total,
        memory(after, states, weights).total,
        memory(after, states, weights, cpu=True).total,
        head,
    )
