"""Linear resampling: interpolation, with anti-aliasing too, and at the points of a grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.graph import Node
from relprop.operations.base import Engine, Step, quotient, register, wide
from relprop.operations.pool import LinearPooling
from relprop.rules import Norm

__all__ = ["Antialiased", "GridSampling", "Resampling"]

aten = torch.ops.aten


@register("upsample_bilinear2d", "upsample_linear1d", "upsample_trilinear3d")
class Resampling(LinearPooling):
    """Linear resampling."""

    def adjoint(self, node: Node, s: Tensor, a: Tensor) -> Tensor:
        backward = getattr(aten, f"{node.op}_backward")
        corners = node.args[2]
        scales = node.argument(3, "scale_factors", None)
        spatial = a.ndim - 2
        if node.overload != "vec":
            scales = node.args[3 : 3 + spatial] or None
        given = list(scales) if scales else [None] * spatial
        out: Tensor = backward(s, list(s.shape[2:]), list(a.shape), corners, *given)
        return out

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        return known(node.args[0]) and "bicubic" not in node.op


@register("upsample_bicubic2d")
class Bicubic(Resampling):
    """Interpolation by cubic polynomials, some of whose weights are negative."""


@register("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
class Antialiased(Resampling):
    """Interpolation that averages over what it leaves out."""


@register("grid_sampler")
class GridSampling(LinearPooling):
    """grid_sample: linear in the image; the grid must not depend on the input."""

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        return values[step.inputs[0]], values[step.node.args[1].name], out

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        a, grid, out = saved
        assert isinstance(step.rule, Norm) and step.rule.epsilon is not None
        a = wide(a)
        backward = aten.grid_sampler_3d_backward if a.ndim == 5 else aten.grid_sampler_2d_backward
        rows = [
            backward(row, a, wide(grid), *step.node.args[2:], [True, False])[0]
            for row in quotient(r, out, step.rule.epsilon)
        ]
        return (torch.stack(rows).mul_(a),)

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        bicubic = 2
        return known(node.args[0]) and node.args[2] != bicubic
