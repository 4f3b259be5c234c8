"""One direction of a convolution, lifted to three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod

import triton
from torch import Tensor

from relprop.graph.maps import Conv
from relprop.kernels.axes import lift
from relprop.kernels.tiling import Tile

__all__ = ["Geometry", "axes", "geometry_of"]

DIRECT_CHANNELS = 8
"""Up to this many contracted channels a group, grouped layers take the depthwise form."""


@dataclass(frozen=True)
class Geometry:
    """One direction of a convolution, lifted to three dimensions.

    Attributes:
        phased: whether the source coordinate divides by the stride (see `index.py`).
        columns, channels: result and contracted channels of a group.
        weight_strides: of part, of group, and (result channel, contracted channel, three taps).
        source, target: the three extents of the left operand and of the result.
    """

    conv: Conv
    phased: bool
    columns: int
    channels: int
    weight_strides: tuple[int, int, tuple[int, ...]]
    taps: tuple[int, ...]
    source: tuple[int, ...]
    target: tuple[int, ...]

    @property
    def direct(self) -> bool:
        """Whether the depthwise form is used: no matrix product."""
        return self.channels == 1 or (self.conv.groups > 1 and 0 < self.channels <= DIRECT_CHANNELS)

    def even(self, tile: Tile) -> bool:
        """Whether whole blocks of channels are contracted, so that none needs a mask."""
        return not self.direct and self.channels % tile.k == 0 and self.channels > 0

    def rows(self, images: int) -> int:
        """Rows of the tiles of one phase."""
        if not self.phased:
            return images * prod(self.target)
        strides = lift(self.conv.stride, 1)
        return images * prod(
            triton.cdiv(size, step) for size, step in zip(self.target, strides, strict=True)
        )

    def programs(self, images: int, tile: Tile) -> int:
        """Programs of a launch."""
        phases = prod(self.conv.stride) if self.phased else 1
        groups = 1 if self.direct else self.conv.groups
        width = self.columns * (self.conv.groups if self.direct else 1)
        tiles = triton.cdiv(self.rows(images), tile.m) * triton.cdiv(width, tile.n)
        return phases * groups * tiles


def axes(conv: Conv, taps: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The constexpr description of the three axes (see `index.phase_taps`)."""
    result = []
    before = lift([pads[0] for pads in conv.padding], 0)
    after = lift([pads[1] for pads in conv.padding], 0)
    extents = zip(before, after, strict=True)
    for stride, pads, dilation, count in zip(
        lift(conv.stride, 1), extents, lift(conv.dilation, 1), lift(taps, 1), strict=True
    ):
        common = gcd(stride, dilation)
        step = stride // common
        inverse = pow(dilation // common, -1, step) if step > 1 else 0
        unit = stride == count == 1 and pads == (0, 0)
        result.append((stride, pads[0], dilation, count, common, step, inverse, unit))
    return tuple(result)


def geometry_of(
    conv: Conv, weight: Tensor, source: Tensor, target: Tensor, adjoint: bool
) -> Geometry:
    """Of one direction, from left operand `[..., channels, *spatial]` to result.

    The weight is `[parts, out, in / groups, *taps]`, transposed `[parts, in, out / groups, *taps]`:
    its first channel axis belongs to the contraction's result unless the layer is transposed.
    """
    spatial = conv.spatial
    groups = conv.groups
    first, second = weight.shape[1] // groups, weight.shape[2]
    part, s0, s1, *tap_strides = weight.stride()
    result_first = adjoint == conv.transposed
    columns, channels = (first, second) if result_first else (second, first)
    strides = (s0, s1) if result_first else (s1, s0)
    return Geometry(
        conv=conv,
        phased=adjoint != conv.transposed,
        columns=columns,
        channels=channels,
        weight_strides=(part, first * s0, (*strides, *lift(tap_strides, 0))),
        taps=tuple(weight.shape[3:]),
        source=lift(source.shape[-spatial:], 1),
        target=lift(target.shape[-spatial:], 1),
    )
