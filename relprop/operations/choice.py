"""Element by element the larger (or smaller) of two tensors: the winner takes all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from relprop.graph import Node, Ref
from relprop.operations.base import Engine, Operation, Step, register, unbroadcast

__all__ = ["Choice", "taken"]


@register("maximum", "minimum")
class Choice(Operation):
    """max(a, b), min(a, b); of equal elements the first operand's wins."""

    kind = "max_pool"
    carry = "choice"
    several = True
    combines_gates = True
    scales_magnitudes = True

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        return taken(step, values)

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        return [unbroadcast(r * mask, shape) for mask, shape in saved]

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        known_operands = [known(x) for x in node.args[:2]]
        return any(known_operands) if node.op == "maximum" else all(known_operands)


def taken(step: Step, values: Mapping[str, Any]) -> list[tuple[Tensor, Any]]:
    """For each operand that carries relevance, where it was taken, and its shape."""
    a, b = (values[x.name] for x in step.node.args[:2])
    first = a >= b if step.node.op == "maximum" else a <= b
    return [
        (mask, values[x.name].shape)
        for x, mask in zip(step.node.args[:2], (first, ~first), strict=True)
        if isinstance(x, Ref) and x.name in step.inputs
    ]
