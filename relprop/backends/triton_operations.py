"""Pooling, reductions and residual sums of the Triton backend.

Each is an operation of `relprop.layers` whose relevance, and for pooling whose value, a kernel
computes.  A reduction over whole axes takes its value from the library: its relevance is a pooling
with one window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.backends.joined import Joined, Quotients
from relprop.backends.triton_fusion import Dividing, lower_of
from relprop.errors import InputError
from relprop.graph import Node, Ref
from relprop.layers import Operation, Step
from relprop.layers.base import argument, unbroadcast
from relprop.layers.pointwise import Sum, operand_factors
from relprop.layers.pool import (
    AdaptiveAveragePooling,
    AdaptiveMaxPooling,
    AveragePooling,
    Maximum,
    MaxPooling,
    Reduction,
    Resampling,
    flat_shape,
    per_axis,
)
from relprop.rules import Norm, Pass

__all__ = ["OPERATIONS", "check_operands"]


def check_operands(where: str, **tensors: Tensor | None) -> None:
    """Refuse what no kernel takes.

    Raises:
        InputError: a tensor is float64 or not on a CUDA device (in the interpreter, anywhere).
    """
    from relprop import kernels

    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not tensor.is_cuda and not kernels.interpreted():
            raise InputError(
                f"{where}: backend='triton' runs on a CUDA device, the {name} is on "
                f"{tensor.device}; move model and input there, or use backend='aten'"
            )
        if tensor.dtype == torch.float64:
            raise InputError(
                f"{where}: the {name} is float64, which no Triton kernel takes; "
                "use backend='aten' or float32"
            )


def _images(x: Tensor, spatial: int) -> Tensor:
    """`[images, channels, *spatial]` of a value that may have no batch axis."""
    return x if x.ndim == spatial + 2 else x.reshape(flat_shape(x.shape, spatial))


def _rows(r: Tensor, spatial: int) -> Tensor:
    """Relevance `[K, images, channels, *spatial]` of such a value."""
    return r if r.ndim == spatial + 3 else r.reshape(len(r), *flat_shape(r.shape[1:], spatial))


def _parts(saved: Any) -> tuple[Any, tuple[Any, ...]]:
    """What a step saved itself, and what the layers below did whose quotients it takes."""
    return (saved.own, saved.below) if isinstance(saved, Joined) else (saved, (None, None))


def _result(out: Tensor, lower: object, shape: Sequence[int]) -> Any:
    """Relevance of a value of that shape, or the quotients that stand for it."""
    return out.reshape(len(out), *shape) if lower is None else Quotients(out)


class TritonMaxPooling(Dividing, MaxPooling):
    """Max pooling by kernels."""

    backend = "triton"

    def forward(self, step: Step, values: Mapping[str, Any], engine: Any) -> tuple[Any, Any]:
        from relprop import kernels

        x, node = values[step.inputs[0]], step.node
        check_operands(step.where, input=x)
        ceil_mode = argument(node, 5, "ceil_mode", False)
        images = _images(x, self.pooled_axes(node, x.ndim))
        y, winners = kernels.max_pool(images, *self.options(node), ceil_mode)
        y = y.to(x.dtype).reshape(*x.shape[: x.ndim - y.ndim + 1], *y.shape[1:])
        return y, (winners, images.shape, x.shape)

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Any) -> Sequence[Any]:
        from relprop import kernels

        (winners, images, shape), below = _parts(saved)
        lower = lower_of(below[0], images) if images == shape else None
        rows = _rows(r, len(images) - 2)
        options = self.options(step.node)
        out = kernels.max_pool_relevance(rows, winners, images, *options, lower=lower)
        return (_result(out, lower, shape),)


class TritonAdaptiveMaxPooling(Dividing, AdaptiveMaxPooling):
    """Adaptive max pooling by kernels."""

    backend = "triton"

    def forward(self, step: Step, values: Mapping[str, Any], engine: Any) -> tuple[Any, Any]:
        from relprop import kernels

        x = values[step.inputs[0]]
        check_operands(step.where, input=x)
        images = _images(x, self.pooled_axes(step.node, x.ndim))
        y, winners = kernels.adaptive_max_pool(images, _extents(step.node, images))
        y = y.to(x.dtype).reshape(*x.shape[: x.ndim - y.ndim + 1], *y.shape[1:])
        return y, (winners, images.shape, x.shape)

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Any) -> Sequence[Any]:
        from relprop import kernels

        (winners, images, shape), below = _parts(saved)
        lower = lower_of(below[0], images) if images == shape else None
        rows = _rows(r, len(images) - 2)
        out = kernels.adaptive_max_pool_relevance(rows, winners, images, lower)
        return (_result(out, lower, shape),)


def _extents(node: Node, images: Tensor) -> list[int]:
    """Spatial extents of an adaptive pooling's output."""
    given = per_axis(node.args[1], images.ndim - 2)
    return [size if e is None else e for e, size in zip(given, images.shape[2:], strict=True)]


class _Means:
    """Averages by kernels, fixed and adaptive."""

    backend = "triton"

    def means(self, node: Node, images: Tensor) -> Tensor:
        """The averages, float32."""
        raise TypeError(type(self).__name__)

    def shares(
        self, node: Node, r: Tensor, y: Tensor, a: Tensor, epsilon: float, lower: Any
    ) -> Tensor:
        """Relevance of the images, or the quotients of the layer below."""
        raise TypeError(type(self).__name__)

    def forward(self, step: Step, values: Mapping[str, Any], engine: Any) -> tuple[Any, Any]:
        """The averages; images and averages are saved."""
        x = values[step.inputs[0]]
        check_operands(step.where, input=x)
        images = _images(x, int(step.node.op[-2]))
        y = self.means(step.node, images)
        shaped = y.to(x.dtype).reshape(*x.shape[: x.ndim - y.ndim + 1], *y.shape[1:])
        return shaped, (images, y, x.shape)

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Any) -> Sequence[Any]:
        """Epsilon on the pooling's own map."""
        (images, y, shape), below = _parts(saved)
        lower = lower_of(below[0], shape) if images.shape == shape else None
        assert isinstance(step.rule, Norm) and step.rule.epsilon is not None
        rows = _rows(r, images.ndim - 2)
        out = self.shares(step.node, rows, y, images, step.rule.epsilon, lower)
        return (_result(out, lower, shape),)


class TritonAveragePooling(_Means, Dividing, AveragePooling):
    """Average pooling by kernels."""

    def means(self, node: Node, images: Tensor) -> Tensor:
        from relprop import kernels

        return kernels.average_pool(images, *self.options(node))

    def shares(
        self, node: Node, r: Tensor, y: Tensor, a: Tensor, epsilon: float, lower: Any
    ) -> Tensor:
        from relprop import kernels

        kernel, stride, padding, _, count_padding, divisor = self.options(node)
        return kernels.average_pool_relevance(
            r, y, a, epsilon, kernel, stride, padding, count_padding, divisor, lower
        )


class TritonAdaptiveAveragePooling(_Means, Dividing, AdaptiveAveragePooling):
    """Adaptive average pooling by kernels."""

    def means(self, node: Node, images: Tensor) -> Tensor:
        from relprop import kernels

        return kernels.adaptive_average_pool(images, _extents(node, images))

    def shares(
        self, node: Node, r: Tensor, y: Tensor, a: Tensor, epsilon: float, lower: Any
    ) -> Tensor:
        from relprop import kernels

        return kernels.adaptive_average_pool_relevance(r, y, a, epsilon, lower)


class TritonResampling(_Means, Dividing, Resampling):
    """Linear interpolation by kernels."""

    def options(self, node: Node) -> tuple[bool, list[float | None]]:
        """Whether the corners coincide; the given factor of scale of each axis."""
        spatial = int(node.op[-2])
        if node.overload == "vec":
            factors = argument(node, 3, "scale_factors", None)
        else:
            factors = node.args[3 : 3 + spatial]
        return bool(node.args[2]), list(factors or [None] * spatial)

    def means(self, node: Node, images: Tensor) -> Tensor:
        from relprop import kernels

        corners, factors = self.options(node)
        extents = node.args[1]
        if extents is None:
            sizes = zip(images.shape[2:], factors, strict=True)
            extents = [int(size * factor) for size, factor in sizes if factor is not None]
        return kernels.linear_resample(images, extents, corners, factors)

    def shares(
        self, node: Node, r: Tensor, y: Tensor, a: Tensor, epsilon: float, lower: Any
    ) -> Tensor:
        from relprop import kernels

        return kernels.linear_resample_relevance(r, y, a, epsilon, *self.options(node), lower)


def _lines(shape: torch.Size, axes: Sequence[int]) -> tuple[list[int], list[int]]:
    """The order of axes with the reduced ones last, and `[images, channels, length]` in it."""
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    images = shape[kept[0]] if kept else 1
    channels = prod(shape[axis] for axis in kept[1:])
    return [*kept, *axes], [images, channels, prod(shape[axis] for axis in axes)]


def _restored(out: Tensor, order: Sequence[int], shape: torch.Size) -> Tensor:
    """Relevance `[K, images, channels, length]` as `[K, *shape]`."""
    out = out.reshape(len(out), *(shape[axis] for axis in order))
    back = sorted(range(len(order)), key=order.__getitem__)
    return out.permute(0, *(1 + axis for axis in back))


class TritonReduction(Reduction):
    """Mean or sum over axes: the relevance by the average pooling's kernel."""

    backend = "triton"

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        check_operands(step.where, input=values[step.inputs[0]])
        return super().save(step, values, out)

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Any) -> Sequence[Tensor]:
        from relprop import kernels

        a, out = saved
        assert isinstance(step.rule, Norm) and step.rule.epsilon is not None
        if a.numel() == 0:
            return (r.new_zeros(len(r), *a.shape),)
        order, (images, channels, length) = _lines(a.shape, self.axes(step.node, a.ndim))
        lines = a.permute(order).reshape(images, channels, length)
        shares = kernels.average_pool_relevance(
            r.reshape(len(r), images, channels, 1),
            out.reshape(images, channels, 1),
            lines,
            step.rule.epsilon,
            [length],
            [length],
            [0],
            divisor=None if step.node.op == "mean" else 1,
        )
        return (_restored(shares, order, a.shape),)


class TritonMaximum(Maximum):
    """Maximum over axes: the relevance by the max pooling's kernel."""

    backend = "triton"

    def forward(self, step: Step, values: Mapping[str, Any], engine: Any) -> tuple[Any, Any]:
        x = values[step.inputs[0]]
        check_operands(step.where, input=x)
        out, (indices, order, _, _) = super().forward(step, values, engine)
        return out, (indices.to(torch.int32), order, x.shape)

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Any) -> Sequence[Tensor]:
        from relprop import kernels

        indices, order, shape = saved
        _, (images, channels, length) = _lines(shape, order[indices.ndim :])
        shares = kernels.max_pool_relevance(
            r.reshape(len(r), images, channels, 1),
            indices.reshape(images, channels, 1),
            (images, channels, length),
            [length],
            [length],
            [0],
            [1],
        )
        return (_restored(shares, order, shape),)


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
}
"""Activations that a sum's kernel applies, for the sums that are the library's."""


class TritonSum(Dividing, Sum):
    """a + b: the value through its activation by one kernel, the split by one."""

    backend = "triton"
    applies = True

    def forward(self, step: Step, values: Mapping[str, Any], engine: Any) -> tuple[Any, Any]:
        from relprop import kernels

        activation = step.options.get("activation")
        pair = [values[x.name] if isinstance(x, Ref) else x for x in step.node.args[:2]]
        if _same_kind(pair):
            check_operands(step.where, summand=pair[0], other=pair[1])
            out = kernels.residual_sum(*pair, operand_factors(step.node), activation)
        else:
            out = step.node.evaluate(values)
            out = out if activation is None else _FUNCTIONS[activation](out)
        return out, self.save(step, values, out)

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        if isinstance(step.rule, Pass):
            return super().save(step, values, out)
        operands = []
        for given in step.node.args[:2]:
            operand = torch.as_tensor(values[given.name] if isinstance(given, Ref) else given)
            operand = operand.to(out.device, torch.promote_types(operand.dtype, torch.float32))
            if not isinstance(given, Ref):
                operand = operand.float()
            carries = isinstance(given, Ref) and given.name in step.inputs
            operands.append((operand, carries))
        check_operands(step.where, summand=operands[0][0], other=operands[1][0])
        return operands, out.shape

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Any) -> Sequence[Any]:
        from relprop import kernels

        if isinstance(step.rule, Pass):
            return super().relevance(step, saved, r, engine)
        assert isinstance(step.rule, Norm) and step.rule.epsilon is not None
        (operands, shape), below = _parts(saved)
        left, right = (operand.expand(shape) for operand, _ in operands)
        layers = iter(below)
        lower = [
            lower_of(next(layers), shape) if carries and operand.shape == shape else None
            for operand, carries in operands
        ]
        shares = kernels.residual_split(
            left, right, r, step.rule.epsilon, operand_factors(step.node), (lower[0], lower[1])
        )
        return [
            unbroadcast(share, operand.shape) if layer is None else Quotients(share)
            for share, (operand, carries), layer in zip(shares, operands, lower, strict=True)
            if carries
        ]


def _same_kind(pair: Sequence[Any]) -> bool:
    """Whether both are tensors of floats and of one shape, which the sum's kernel takes."""
    tensors = all(isinstance(x, Tensor) and x.is_floating_point() and x.ndim for x in pair)
    return tensors and pair[0].shape == pair[1].shape


OPERATIONS: dict[str, Operation] = {
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), TritonMaxPooling()),
    **dict.fromkeys(
        ("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
        TritonAdaptiveMaxPooling(),
    ),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), TritonAveragePooling()),
    **dict.fromkeys(
        (
            "adaptive_avg_pool1d",
            "adaptive_avg_pool2d",
            "_adaptive_avg_pool2d",
            "adaptive_avg_pool3d",
            "_adaptive_avg_pool3d",
        ),
        TritonAdaptiveAveragePooling(),
    ),
    **dict.fromkeys(
        ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), TritonResampling()
    ),
    **dict.fromkeys(("mean", "sum"), TritonReduction()),
    **dict.fromkeys(("amax", "max"), TritonMaximum()),
    **dict.fromkeys(("add", "sub", "rsub"), TritonSum()),
}
"""By canonical name."""
