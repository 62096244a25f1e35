"""What the repair of a propagated variant costs: training on text, then distillation of the head."""

from dataclasses import dataclass

from lepta.distillation.settings import RepairSettings
from lepta.plan.distillation import distillation_cost
from lepta.plan.shapes import Shape
from lepta.plan.training import flops_per_token, memory, stage_weights


@dataclass(frozen=True)
class RepairCost:
    """Operations of both steps for one variant, and the bytes that a process holds in the step that needs more."""

    states: int
    head: int
    needs: float

    @property
    def operations(self) -> int:
        """Of both steps."""
        return self.states + self.head

    @staticmethod
    def of(
        settings: RepairSettings, after: Shape, old_rows: int, first_new: int, old_per_new: float, cpu: bool
    ) -> "RepairCost":
        """`after` is the model with the new vocabulary, in which new tokens begin at `first_new`.

        `old_rows` and `old_per_new` are as for `distillation_cost`. A CPU is taken to compute in float32 in the first
        step.
        """
        states = settings.states
        weights = stage_weights(after, states, first_new)
        of_states = states.tokens * flops_per_token(after, states, weights).total
        needs = memory(after, states, weights, cpu=cpu).total
        of_head = 0
        if settings.head:
            head = distillation_cost(settings.head, after, old_rows, after.rows - first_new, old_per_new)
            of_head = head.operations
            needs = max(needs, head.needs(cpu))
        return RepairCost(of_states, of_head, needs)
