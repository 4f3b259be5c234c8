"""Means of windows, and their relevance: epsilon on the pooling's own map."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from relprop.kernels.axes import lift, lifted_strides, place
from relprop.kernels.epilogues import finish_relevance, ratio
from relprop.kernels.layouts import ordered_empty
from relprop.kernels.operands import Lower
from relprop.kernels.pool.positions import launch, launch_adjoint, positions
from relprop.kernels.pool.windows import (
    Axes,
    adaptive_axes,
    candidates,
    fixed_axes,
    pooled_extents,
    tap_of,
    windows,
)

__all__ = [
    "adaptive_average_pool",
    "adaptive_average_pool_relevance",
    "average_pool",
    "average_pool_relevance",
]


@triton.jit
def window_sizes(starts, stops, lengths, divisor, PADDED: tl.constexpr):
    """What the sums of windows are divided by: the divisor, or if that is 0 their size."""
    count = lengths[0] * lengths[1] * lengths[2]
    if not PADDED:
        count = (stops[0] - starts[0]) * (stops[1] - starts[1]) * (stops[2] - starts[2])
    return tl.where(count * 0 + divisor > 0, count * 0 + divisor, count)


@triton.jit
def average_pool_kernel(
    x,
    y,
    images,
    C,
    source,
    target,
    strides_x,
    strides_y,
    divisor,
    AXES: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    PADDED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """y [images, C, *target]: mean of each window of x [images, C, *source]."""
    image, at, channels, mask = positions(C, target, images, BM, BN)
    starts, stops, lengths = windows(at, source, target, AXES, ADAPTIVE)
    total = tl.zeros((BM, BN), tl.float32)
    for index in range(0, AXES[0][0] * AXES[1][0] * AXES[2][0]):
        tap = tap_of(index, AXES)
        d = starts[0] + tap[0]
        h = starts[1] + tap[1]
        w = starts[2] + tap[2]
        seen = mask & ((d < stops[0]) & (h < stops[1]) & (w < stops[2]))[:, None]
        value = tl.load(x + place(image, (d, h, w), channels, strides_x), mask=seen, other=0.0)
        total += value.to(tl.float32)
    count = window_sizes(starts, stops, lengths, divisor, PADDED).to(tl.float32)
    tl.store(y + place(image, at, channels, strides_y), total / count[:, None], mask=mask)


@triton.jit
def average_pool_adjoint(
    r,
    y,
    a,
    lower,
    out,
    images,
    saved_images,
    C,
    source,
    target,
    strides_r,
    strides_y,
    strides_a,
    stride_lp,
    strides_l,
    stride_op,
    strides_o,
    epsilon,
    divisor,
    numbers,
    AXES: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    PADDED: tl.constexpr,
    LOWER: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """out [images, C, *source] = a * sum over windows of r / (st(y) * window size)."""
    image, at, channels, mask = positions(C, source, images, BM, BN)
    saved = image % saved_images
    total = tl.zeros((BM, BN), tl.float32)
    for j in range(0, AXES[0][4] * AXES[1][4] * AXES[2][4]):
        above, held = candidates(at, j, source, target, AXES, ADAPTIVE)
        starts, stops, lengths = windows(above, source, target, AXES, ADAPTIVE)
        held = held & (at[0] >= starts[0]) & (at[0] < stops[0])
        held = held & (at[1] >= starts[1]) & (at[1] < stops[1])
        held = held & (at[2] >= starts[2]) & (at[2] < stops[2])
        # where no window is the sum is 0, and any size does
        count = tl.maximum(window_sizes(starts, stops, lengths, divisor, PADDED), 1)
        seen = mask & held[:, None]
        mean = tl.load(y + place(saved, above, channels, strides_y), mask=seen, other=1.0)
        value = tl.load(r + place(image, above, channels, strides_r), mask=seen, other=0.0)
        total += ratio(value.to(tl.float32), mean, epsilon) / count.to(tl.float32)[:, None]
    offsets = place(saved, at, channels, strides_a)
    total *= tl.load(a + offsets, mask=mask, other=0.0).to(tl.float32)
    finish_relevance(
        total, lower, stride_lp, place(saved, at, channels, strides_l), out, stride_op,
        place(image, at, channels, strides_o), numbers, mask, LOWER,
    )  # fmt: skip


def average_pool(
    a: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Tensor:
    """Means of windows, float32; with `divisor` 1 sums."""
    unit = [1] * len(kernel)
    extents = pooled_extents(a.shape[2:], kernel, stride, padding, unit, ceil_mode)
    axes = fixed_axes(kernel, stride, padding, unit)
    return _mean(a, extents, axes, False, count_include_pad, divisor)


def adaptive_average_pool(a: Tensor, extents: Sequence[int]) -> Tensor:
    """Means of the windows that divide the input into `extents`, float32."""
    return _mean(a, extents, adaptive_axes(a.shape[2:], extents), True, True, None)


def _mean(
    a: Tensor,
    extents: Sequence[int],
    axes: Axes,
    adaptive: bool,
    padded: bool,
    divisor: int | None,
) -> Tensor:
    y = ordered_empty((), (*a.shape[:2], *extents), a)
    spatial = len(extents)
    launch(
        average_pool_kernel, y.shape, a, y, *y.shape[:2], lift(a.shape[2:], 1), lift(extents, 1),
        lifted_strides(a, spatial), lifted_strides(y, spatial), divisor or 0, AXES=axes,
        ADAPTIVE=adaptive, PADDED=padded,
    )  # fmt: skip
    return y


def average_pool_relevance(
    r: Tensor,
    y: Tensor,
    a: Tensor,
    epsilon: float,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    count_include_pad: bool = True,
    divisor: int | None = None,
    lower: Lower | None = None,
) -> Tensor:
    """Epsilon on the pooling's own map.

    Args:
        r: relevance of the means, `[targets, batch, channels, *spatial]`.
        y: the means.
        a: the input.
        epsilon: the stabilizer, on the mean.
        kernel, stride, padding, count_include_pad, divisor: as in `average_pool`.
        lower: as in `max_pool_relevance`.

    Returns:
        `[targets, *a.shape]`, float32; with `lower` its quotients, `[1 or 2, targets, *a.shape]`.
    """
    axes = fixed_axes(kernel, stride, padding, [1] * len(kernel))
    return _mean_relevance(r, y, a, epsilon, axes, False, count_include_pad, divisor, lower)


def adaptive_average_pool_relevance(
    r: Tensor, y: Tensor, a: Tensor, epsilon: float, lower: Lower | None = None
) -> Tensor:
    """Epsilon on adaptive average pooling; arguments as in `average_pool_relevance`."""
    axes = adaptive_axes(a.shape[2:], y.shape[2:])
    return _mean_relevance(r, y, a, epsilon, axes, True, True, None, lower)


def _mean_relevance(
    r: Tensor,
    y: Tensor,
    a: Tensor,
    epsilon: float,
    axes: Axes,
    adaptive: bool,
    padded: bool,
    divisor: int | None,
    lower: Lower | None,
) -> Tensor:
    return launch_adjoint(
        average_pool_adjoint, r, [y, a], a.shape, a, lower, epsilon, divisor or 0, AXES=axes,
        ADAPTIVE=adaptive, PADDED=padded,
    )  # fmt: skip
