"""Averages and sums: Epsilon on the pooling's own map."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.graph import Node
from relprop.graph.maps import per_axis
from relprop.operations.base import (
    Operation,
    Step,
    laid_out,
    layout,
    quotient,
    register,
    wide,
)
from relprop.rules import Norm, Rule

__all__ = [
    "AdaptiveAveragePooling",
    "AveragePooling",
    "LinearPooling",
    "Reduction",
    "flat_shape",
    "stacked",
    "window",
]

aten = torch.ops.aten


class LinearPooling(Operation):
    """Base of the poolings that are linear: R_in = a * adjoint(R / st(z))."""

    kind = "avg_pool"
    carry = "norm"
    averages = True
    needs_kernel = True

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        return values[step.inputs[0]], out

    def adjoint(self, node: Node, s: Tensor, a: Tensor) -> Tensor:
        """The transposed map on `s`, shaped like `a`."""
        raise TypeError(type(self).__name__)

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Any) -> Sequence[Tensor]:
        a, out = saved
        assert isinstance(step.rule, Norm) and step.rule.epsilon is not None
        s = quotient(r, out, step.rule.epsilon)
        a = wide(a)
        rows = [self.adjoint(step.node, row, a).mul_(a) for row in s]
        return (laid_out(stacked(rows), layout(a)),)

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        return known(node.args[0])

    def accepts(self, rule: Rule) -> bool:
        return isinstance(rule, Norm)

    def default_rule(self, epsilon: float) -> Rule:
        return Norm(epsilon)


@register("avg_pool1d", "avg_pool2d", "avg_pool3d")
class AveragePooling(LinearPooling):
    """Average pooling."""

    def options(self, node: Node) -> tuple[Any, ...]:
        """Kernel, stride, padding, and ceil_mode, count_include_pad, divisor_override."""
        return (
            *window(node),
            node.argument(4, "ceil_mode", False),
            node.argument(5, "count_include_pad", True),
            node.argument(6, "divisor_override", None),
        )

    def adjoint(self, node: Node, s: Tensor, a: Tensor) -> Tensor:
        spatial = int(node.op[-2])
        kernel, stride, padding, ceil_mode, count_padding, divisor = self.options(node)
        shape = a.shape
        s, a = s.view(flat_shape(s.shape, spatial)), a.reshape(flat_shape(shape, spatial))
        if spatial == 1:
            s, a = s.unsqueeze(-2), a.unsqueeze(-2)
            kernel, stride, padding = [1, *kernel], [1, *stride], [0, *padding]
        backward = aten.avg_pool3d_backward if spatial == 3 else aten.avg_pool2d_backward
        out: Tensor = backward(s, a, kernel, stride, padding, ceil_mode, count_padding, divisor)
        return out.reshape(shape)


@register(
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "_adaptive_avg_pool3d",
)  # fmt: skip
class AdaptiveAveragePooling(LinearPooling):
    """Adaptive average pooling."""

    def adjoint(self, node: Node, s: Tensor, a: Tensor) -> Tensor:
        spatial = int(node.op[-2])
        shape = a.shape
        s, a = s.reshape(flat_shape(s.shape, spatial)), a.reshape(flat_shape(shape, spatial))
        if spatial == 1:
            s, a = s.unsqueeze(-2), a.unsqueeze(-2)
        if spatial == 3:
            return aten._adaptive_avg_pool3d_backward(s, a).reshape(shape)
        return aten._adaptive_avg_pool2d_backward(s, a).reshape(shape)


@register("mean", "sum")
class Reduction(LinearPooling):
    """Mean or sum over axes."""

    def axes(self, node: Node, ndim: int) -> list[int]:
        """The axes that go, in order."""
        return sorted(axis % ndim for axis in node.argument(1, "dim", None) or range(ndim))

    def adjoint(self, node: Node, s: Tensor, a: Tensor) -> Tensor:
        axes = self.axes(node, a.ndim)
        if not node.argument(2, "keepdim", False):
            for axis in axes:
                s = s.unsqueeze(axis)
        if node.op == "mean":
            s = s / math.prod(a.shape[axis] for axis in axes)
        return s.expand(a.shape).clone()


def flat_shape(shape: torch.Size, spatial: int) -> list[int]:
    """The shape with one batch axis: pooling also takes inputs without one."""
    lead = shape[: len(shape) - spatial - 1]
    return [math.prod(lead), *shape[len(shape) - spatial - 1 :]]


def window(node: Node) -> list[list[int]]:
    """Kernel, stride and padding of a pooling whose name ends in its number of axes and a d."""
    spatial = int(node.op[-2])
    kernel = per_axis(node.args[1], spatial)
    stride = node.argument(2, "stride", []) or kernel
    return [kernel, per_axis(stride, spatial), per_axis(node.argument(3, "padding", 0), spatial)]


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """One tensor of the rows of all targets; a view where there is one."""
    return torch.stack(list(rows)) if len(rows) > 1 else rows[0].unsqueeze(0)
