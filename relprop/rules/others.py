"""The rules for everything but linear maps: sums, products, recurrent layers, what passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from relprop.rules.linear import EPSILON, LinearRule, Rule, check_number

__all__ = ["Norm", "Pass", "Product", "Recurrent"]


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance passes unchanged.  For activations, and wherever input and output are alike."""


@dataclass(frozen=True)
class Norm(Rule):
    """Epsilon on an operation's own linear map: pooling, resampling, sums.

    Args:
        epsilon: the stabilizer; None takes the composite's.
    """

    epsilon: float | None = None

    def __post_init__(self) -> None:
        if self.epsilon is not None:
            check_number(self, "epsilon", self.epsilon, minimum=0.0)


@dataclass(frozen=True)
class Product(Rule):
    """A product of two tensors that both carry relevance.

    Args:
        mode: "half" gives each factor half; "left" or "right" gives all to that factor.
    """

    mode: str = "half"
    MODES: ClassVar[tuple[str, ...]] = ("half", "left", "right")

    def __post_init__(self) -> None:
        if self.mode not in self.MODES:
            raise ValueError(f"Product: mode is {self.mode!r}; expected one of {self.MODES}")


@dataclass(frozen=True)
class Recurrent(Rule):
    """LSTM, GRU, RNN and their cells.  Arras et al. 2017, 2019.

    Args:
        gate: "all" (signal takes all), "prop", "abs" or "half".
        epsilon: the stabilizer.
        bias_factor: share of bias and stabilizer handed to the inputs, 0 to 1.
        rule: replaces Epsilon on the candidate's map.
    """

    gate: str = "all"
    epsilon: float = EPSILON
    bias_factor: float = 0.0
    rule: LinearRule | None = None
    GATES: ClassVar[tuple[str, ...]] = ("all", "prop", "abs", "half")

    def __post_init__(self) -> None:
        check_number(self, "epsilon", self.epsilon, minimum=0.0)
        check_number(self, "bias_factor", self.bias_factor, minimum=0.0)
        if self.gate not in self.GATES:
            raise ValueError(f"Recurrent: gate is {self.gate!r}; expected one of {self.GATES}")
