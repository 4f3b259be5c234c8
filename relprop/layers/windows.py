"""Windows of poolings: their axes and sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from relprop.graph import Node
from relprop.maps import per_axis

__all__ = ["flat_shape", "per_axis", "stacked", "window"]


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
