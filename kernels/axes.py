"""One to three spatial axes as three, on the host and in kernels: those missing have size 1.

A tensor `[images, channels, *spatial]` enters a kernel with its three extents and its five strides,
a tuple each; strides of images and channels come first, those of missing axes are 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["Strides", "coordinates", "lift", "lifted_strides", "part_strides", "place", "spot"]

Strides = tuple[int, tuple[int, ...]]
"""Of the parts of a tensor, and of its images, channels and three axes."""


def lift(values: Sequence[int], unit: int) -> tuple[int, ...]:
    """Three values for three axes, `unit` for those a layer lacks."""
    return (*(unit,) * (3 - len(values)), *values)


def lifted_strides(tensor: Tensor, spatial: int) -> tuple[int, ...]:
    """Strides with three spatial axes; unit axes get 0."""
    lead = tensor.stride()[: tensor.dim() - spatial]
    return (*lead, *lift(tensor.stride()[tensor.dim() - spatial :], 0))


def part_strides(tensor: Tensor, spatial: int) -> Strides:
    """Of `[parts, images, channels, *spatial]`."""
    part, *rest = lifted_strides(tensor, spatial)
    return part, tuple(rest)


@triton.jit
def coordinates(index, height, width):
    """The three coordinates of flat positions, the last axis fastest.

    The first is what is left: it needs no size, and holds the image where positions do.
    """
    return index // (width * height), (index // width) % height, index % width


@triton.jit
def spot(at, strides):
    """Offsets of the positions `at` within an image."""
    place = at[0].to(tl.int64) * strides[2] + at[1].to(tl.int64) * strides[3]
    return place + at[2].to(tl.int64) * strides[4]


@triton.jit
def place(image, at, channels, strides):
    """Offsets [rows, columns] of images, positions and channels in a strided tensor."""
    row = image.to(tl.int64) * strides[0] + spot(at, strides)
    return row[:, None] + channels.to(tl.int64)[None, :] * strides[1]
