"""Poolings: averages and sums by Epsilon on their own map, maxima by the winner."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.graph import Node
from relprop.graph.maps import per_axis
from relprop.operations.base import (
    Engine,
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
    "AdaptiveMaxPooling",
    "AveragePooling",
    "LinearPooling",
    "MaxPooling",
    "Maximum",
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

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
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


aten = torch.ops.aten


class Winner(Operation):
    """Base: of each window the largest element takes all, the first of equal ones."""

    kind = "max_pool"
    carry = "winner"
    combines_gates = True
    scales_magnitudes = True
    needs_kernel = True

    def winners(self, node: Node, x: Tensor) -> tuple[Tensor, Tensor]:
        """The values, and for each the index of its winner among the pooled axes, flattened."""
        raise TypeError(type(self).__name__)

    def pooled_axes(self, node: Node, ndim: int) -> int:
        """How many trailing axes the indices run over."""
        raise TypeError(type(self).__name__)

    def forward(self, step: Step, values: Mapping[str, Any], engine: Engine) -> tuple[Any, Any]:
        x = values[step.inputs[0]]
        out, indices = self.winners(step.node, x)
        within = math.prod(x.shape[x.ndim - self.pooled_axes(step.node, x.ndim) :])
        short = within <= torch.iinfo(torch.int32).max  # kept until relevance comes, at half size
        return out, (indices.int() if short else indices, x.shape)

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        indices, shape = saved
        indices = indices.long()
        pooled = self.pooled_axes(step.node, len(shape))
        lead = shape[: len(shape) - pooled]
        result = r.new_zeros(r.shape[0], *lead, math.prod(shape[len(shape) - pooled :]))
        flat = indices.reshape(*lead, -1).expand(r.shape[0], *lead, -1)
        result.scatter_add_(-1, flat, r.reshape(flat.shape))
        return (result.view(r.shape[0], *shape),)

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        return known(node.args[0])


@register("max_pool1d", "max_pool2d", "max_pool3d")
class MaxPooling(Winner):
    """Max pooling."""

    def pooled_axes(self, node: Node, ndim: int) -> int:
        return int(node.op[-2])

    def options(self, node: Node) -> list[list[int]]:
        """Kernel, stride, padding, dilation."""
        return [*window(node), per_axis(node.argument(4, "dilation", 1), int(node.op[-2]))]

    def winners(self, node: Node, x: Tensor) -> tuple[Tensor, Tensor]:
        options, ceil_mode = self.options(node), node.argument(5, "ceil_mode", False)
        if node.op == "max_pool1d":
            options = [[neutral, *o] for neutral, o in zip((1, 1, 0, 1), options, strict=True)]
            out, indices = aten.max_pool2d_with_indices(x.unsqueeze(-2), *options, ceil_mode)
            return out.squeeze(-2), indices.squeeze(-2)
        function = getattr(aten, f"{node.op}_with_indices")
        out, indices = function(x, *options, ceil_mode)
        return out, indices

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        # the library's backward keeps channels_last and is several times faster than a scatter
        indices, shape = saved
        indices = indices.long()
        node = step.node
        if node.op != "max_pool2d" or len(shape) != 4:
            return super().relevance(step, (indices, shape), r, engine)
        options = [*self.options(node), node.argument(5, "ceil_mode", False)]
        last = indices.is_contiguous(memory_format=torch.channels_last)
        form = torch.channels_last if last else torch.contiguous_format
        like = torch.empty(shape, dtype=r.dtype, device=r.device, memory_format=form)
        rows = [
            aten.max_pool2d_with_indices_backward(
                row.contiguous(memory_format=form), like, *options, indices
            )
            for row in r
        ]
        return (laid_out(stacked(rows), form),)


@register("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
class AdaptiveMaxPooling(Winner):
    """Adaptive max pooling."""

    def pooled_axes(self, node: Node, ndim: int) -> int:
        return int(node.op[-2])

    def winners(self, node: Node, x: Tensor) -> tuple[Tensor, Tensor]:
        out, indices = getattr(aten, node.op)(x, node.args[1])
        return out, indices


@register("amax", "max")
class Maximum(Winner):
    """Maximum over one or several axes."""

    def _axes(self, node: Node, ndim: int) -> list[int]:
        axes = node.argument(1, "dim", [])
        axes = [axes] if isinstance(axes, int) else list(axes)
        return sorted(axis % ndim for axis in axes) or list(range(ndim))

    def forward(self, step: Step, values: Mapping[str, Any], engine: Engine) -> tuple[Any, Any]:
        x = values[step.inputs[0]]
        axes = self._axes(step.node, x.ndim)
        order = [axis for axis in range(x.ndim) if axis not in axes] + axes
        moved = x.permute(order)
        flat = moved.reshape(*moved.shape[: x.ndim - len(axes)], -1)
        # argmax leaves open which of equal elements it gives; the first is at the largest countdown
        top = flat.amax(-1, keepdim=True)
        countdown = torch.arange(flat.shape[-1], 0, -1, device=x.device)
        indices = ((flat == top) * countdown).argmax(-1)
        out = top.squeeze(-1)
        if step.node.argument(2, "keepdim", False):
            for axis in axes:
                out = out.unsqueeze(axis)
        return out, (indices, order, moved.shape, flat.shape)

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        indices, order, moved, flat = saved
        result = r.new_zeros(r.shape[0], *flat)
        index = indices.unsqueeze(-1).expand(r.shape[0], *flat[:-1], 1)
        result.scatter_(-1, index, r.reshape(index.shape))
        inverse = sorted(range(len(order)), key=order.__getitem__)
        result = result.view(r.shape[0], *moved)
        return (result.permute(0, *(axis + 1 for axis in inverse)),)
