"""The correctness gate: what disagrees with float64 is reported as wrong, and not timed.

How near float64 a narrower evaluation can come is a property of the question: dividing by a z close
to 0 multiplies any rounding.  So the gate measures it: a variant may be as far away as the float64
explanation itself moves when every weight is changed by at most `ALLOWED` roundings of the
precision at hand, and never more than half of the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["ALLOWED", "Gate", "distance", "perturbed", "roundoff"]

ALLOWED = 32
"""Roundings: those of activations and sums add to those of the weights."""
LEAST, MOST = 64, 0.5
_ROUNDOFF = {"highest": 2.0**-24, "high": 2.0**-24, "medium": 2.0**-9}
"""Relative error of one rounding: float32; on CUDA "high" is TF32, see `roundoff`; bfloat16."""
TF32 = 2.0**-11


def roundoff(precision: str, device: str) -> float:
    """The relative error of one rounding of an operand."""
    return TF32 if precision == "high" and device == "cuda" else _ROUNDOFF[precision]


def distance(found: Tensor, exact: Tensor) -> float:
    """Relative distance in the Euclidean norm; infinite if not finite or not of one shape."""
    if found.shape != exact.shape:
        return float("inf")
    error = float((found.detach().double().cpu() - exact.cpu()).norm() / exact.norm().cpu())
    return error if error == error else float("inf")


def perturbed(tensor: Tensor, size: float) -> Tensor:
    """Each entry times 1 + size * u, u uniform in [-1, 1], always the same numbers."""
    generator = torch.Generator().manual_seed(1)
    u = torch.rand(tensor.shape, generator=generator).to(tensor)
    return u.mul_(2).sub_(1).mul_(size).add_(1).mul_(tensor)


@dataclass(frozen=True)
class Gate:
    """One explanation in float64.

    Attributes:
        truth: the naive evaluation, in float64.
        nearby: the same with all weights perturbed by a relative size.
        device: "cpu" or "cuda".
    """

    truth: Callable[[], Tensor]
    nearby: Callable[[float], Tensor]
    device: str = "cpu"

    @cached_property
    def exact(self) -> Tensor:
        """The explanation in float64."""
        return self.truth()

    def tolerance(self, precision: str) -> float:
        """How far a variant of that precision may be."""
        size = roundoff(precision, self.device)
        if size not in self._tolerances:
            # the changes together, not one of them times their number: where ReLUs and poolings
            # switch, an explanation answers in jumps
            yardstick = distance(self.nearby(ALLOWED * size), self.exact)
            self._tolerances[size] = min(MOST, yardstick + LEAST * size)
        return self._tolerances[size]

    @cached_property
    def _tolerances(self) -> dict[float, float]:
        return {}

    def error(self, answer: Callable[[], Tensor]) -> float:
        """How far an answer is."""
        return distance(answer(), self.exact)
