"""What every rule is: immutable data, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["EPSILON", "Rule", "check_number", "set_values"]

EPSILON = 1e-6
"""Default stabilizer of every rule."""


@dataclass(frozen=True)
class Rule:
    """Base class of all rules.  Rules are immutable, comparable, hashable and picklable."""


def set_values(rule: Rule, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(rule, name, value)


def check_number(rule: Rule, name: str, value: Any, minimum: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < minimum:
        raise ValueError(
            f"{type(rule).__name__}: {name} is {value!r}; expected a finite number >= {minimum:g}"
        )
