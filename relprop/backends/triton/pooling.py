"""Pooling and resampling by kernels, value and relevance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.backends.triton.fusion import Dividing, lower_of
from relprop.backends.triton.operands import (
    check_operands,
    images_of,
    parts_of,
    result_of,
    rows_of,
    shaped,
)
from relprop.graph import Node
from relprop.graph.maps import per_axis
from relprop.operations import Step
from relprop.operations.base import Engine
from relprop.operations.pool import (
    AdaptiveAveragePooling,
    AdaptiveMaxPooling,
    AveragePooling,
    MaxPooling,
)
from relprop.operations.resample import Resampling
from relprop.rules import Norm

__all__ = [
    "TritonAdaptiveAveragePooling",
    "TritonAdaptiveMaxPooling",
    "TritonAveragePooling",
    "TritonMaxPooling",
    "TritonResampling",
]


def _extents(node: Node, images: Tensor) -> list[int]:
    """Spatial extents of an adaptive pooling's output."""
    given = per_axis(node.args[1], images.ndim - 2)
    return [size if e is None else e for e, size in zip(given, images.shape[2:], strict=True)]


class _Maxima:
    """Maxima by kernels, fixed and adaptive."""

    backend = "triton"

    def maxima(self, node: Node, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maxima and winners."""
        raise TypeError(type(self).__name__)

    def shares(
        self, node: Node, r: Tensor, winners: Tensor, shape: torch.Size, lower: Any
    ) -> Tensor:
        """Relevance of the images, or the quotients of the layer below."""
        raise TypeError(type(self).__name__)

    def forward(self, step: Step, values: Mapping[str, Any], engine: Engine) -> tuple[Any, Any]:
        """The maxima; the winners are saved."""
        x = values[step.inputs[0]]
        check_operands(step.where, input=x)
        images = images_of(x, int(step.node.op[-2]))
        y, winners = self.maxima(step.node, images)
        return shaped(y, x), (winners, images.shape, x.shape)

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Any]:
        """To the winners."""
        (winners, images, shape), below = parts_of(saved)
        lower = lower_of(below[0], images) if images == shape else None
        out = self.shares(step.node, rows_of(r, len(images) - 2), winners, images, lower)
        return (result_of(out, lower, shape),)


class TritonMaxPooling(_Maxima, Dividing, MaxPooling):
    """Max pooling by kernels."""

    def maxima(self, node: Node, images: Tensor) -> tuple[Tensor, Tensor]:
        from relprop import kernels

        ceil_mode = node.argument(5, "ceil_mode", False)
        return kernels.max_pool(images, *self.options(node), ceil_mode)

    def shares(
        self, node: Node, r: Tensor, winners: Tensor, shape: torch.Size, lower: Any
    ) -> Tensor:
        from relprop import kernels

        return kernels.max_pool_relevance(r, winners, shape, *self.options(node), lower=lower)


class TritonAdaptiveMaxPooling(_Maxima, Dividing, AdaptiveMaxPooling):
    """Adaptive max pooling by kernels."""

    def maxima(self, node: Node, images: Tensor) -> tuple[Tensor, Tensor]:
        from relprop import kernels

        return kernels.adaptive_max_pool(images, _extents(node, images))

    def shares(
        self, node: Node, r: Tensor, winners: Tensor, shape: torch.Size, lower: Any
    ) -> Tensor:
        from relprop import kernels

        return kernels.adaptive_max_pool_relevance(r, winners, shape, lower)


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

    def forward(self, step: Step, values: Mapping[str, Any], engine: Engine) -> tuple[Any, Any]:
        """The averages; images and averages are saved."""
        x = values[step.inputs[0]]
        check_operands(step.where, input=x)
        images = images_of(x, int(step.node.op[-2]))
        y = self.means(step.node, images)
        return shaped(y, x), (images, y, x.shape)

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Any]:
        """Epsilon on the pooling's own map."""
        (images, y, shape), below = parts_of(saved)
        lower = lower_of(below[0], shape) if images.shape == shape else None
        assert isinstance(step.rule, Norm) and step.rule.epsilon is not None
        rows = rows_of(r, images.ndim - 2)
        out = self.shares(step.node, rows, y, images, step.rule.epsilon, lower)
        return (result_of(out, lower, shape),)


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
            factors = node.argument(3, "scale_factors", None)
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
