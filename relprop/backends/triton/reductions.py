"""Reductions over whole axes: the library's value, relevance as a pooling with one window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from relprop.backends.triton.operands import check_operands
from relprop.operations import Step
from relprop.operations.base import Engine
from relprop.operations.pool import Maximum, Reduction
from relprop.rules import Norm

__all__ = ["TritonMaximum", "TritonReduction"]


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

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
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

    def forward(self, step: Step, values: Mapping[str, Any], engine: Engine) -> tuple[Any, Any]:
        x = values[step.inputs[0]]
        check_operands(step.where, input=x)
        out, (indices, order, _, _) = super().forward(step, values, engine)
        return out, (indices.to(torch.int32), order, x.shape)

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
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
