"""Vector norms: lengths and distances, where they are what is explained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from relprop.graph import Node
from relprop.operations.base import Engine, Operation, Step, quotient, register, wide

__all__ = ["VectorNorm"]


@register("linalg_vector_norm", "norm")
class VectorNorm(Operation):
    """A norm's relevance falls to its elements in proportion to |x|^p, which are its summands.

    The norm is homogeneous, so that this is LRP-0 of it: input times gradient over the output.
    """

    kind = "vector_norm"
    carry = "share"
    measures = True
    averages = True

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        x = wide(values[step.inputs[0]])
        order = step.node.argument(1, "ord", step.node.kwargs.get("p", 2))
        axes = _axes(step.node, x.ndim)
        size = x.abs()
        if math.isinf(order):
            best = size.amax(axes, keepdim=True) if order > 0 else size.amin(axes, keepdim=True)
            return (size == best).to(x), axes
        return (size**order if order else (size > 0).to(x)), axes

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        summands, axes = saved
        total = summands.sum(axes, keepdim=True)
        return (quotient(r.reshape(r.shape[0], *total.shape), total, 0.0) * summands,)

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        return True


def _axes(node: Node, ndim: int) -> list[int]:
    given = node.argument(2, "dim", None)
    axes = [given] if isinstance(given, int) else list(given or range(ndim))
    return [axis % ndim for axis in axes]
