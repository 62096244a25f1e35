"""Intervals of shares."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

Z = 1.96  # standard deviations within which 95 % of a normal distribution lie


def wilson(share: float, number: int) -> tuple[float, float]:
    """The 95 % interval of a share of so many units (Wilson 1927): honest for few of them, and at 0 and 1."""
    square = Z * Z
    centre = (share + square / (2 * number)) / (1 + square / number)
    reach = Z / (1 + square / number) * math.sqrt(share * (1 - share) / number + square / (4 * number * number))
    return max(0.0, centre - reach), min(1.0, centre + reach)  # rounding may lead out


@dataclass(frozen=True)
class Share:
    """So many of a number, half ones allowed, and the 95 % interval of their share."""

    right: float
    number: int
    share: float
    low: float
    high: float

    @classmethod
    def of(cls, right: float, number: int) -> "Share":
        """With Wilson's interval; `number` is above 0."""
        return cls(right, number, right / number, *wilson(right / number, number))


def shares_of(found: Iterable[tuple[str, bool]]) -> dict[str, Share]:
    """Of each of some names the share of what is true, in the order of the names."""
    values: dict[str, list[bool]] = {}
    for name, value in found:
        values.setdefault(name, []).append(value)
    return {name: Share.of(sum(values[name]), len(values[name])) for name in sorted(values)}
