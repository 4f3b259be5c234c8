"""Maxima of windows, and relevance to their winners."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from relprop.kernels.axes import lift, lifted_strides, place
from relprop.kernels.epilogues import finish_relevance
from relprop.kernels.layouts import ordered_empty
from relprop.kernels.operands import Lower
from relprop.kernels.pool.positions import launch, launch_adjoint, positions
from relprop.kernels.pool.windows import (
    Axes,
    adaptive_axes,
    candidates,
    fixed_axes,
    pooled_extents,
    reach,
    tap_of,
)

__all__ = [
    "adaptive_max_pool",
    "adaptive_max_pool_relevance",
    "max_pool",
    "max_pool_relevance",
]


@triton.jit
def max_pool_kernel(
    x,
    y,
    winners,
    images,
    C,
    source,
    target,
    strides_x,
    strides_y,
    AXES: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """y and the first winner's flat position [images, C, *target] of x [images, C, *source]."""
    image, at, channels, mask = positions(C, target, images, BM, BN)
    best = tl.full((BM, BN), float("-inf"), tl.float32)
    winner = tl.full((BM, BN), -1, tl.int32)
    first_d, stop_d = reach(at[0], source[0], target[0], AXES, 0, ADAPTIVE)
    first_h, stop_h = reach(at[1], source[1], target[1], AXES, 1, ADAPTIVE)
    first_w, stop_w = reach(at[2], source[2], target[2], AXES, 2, ADAPTIVE)
    for index in range(0, AXES[0][0] * AXES[1][0] * AXES[2][0]):
        tap = tap_of(index, AXES)
        d = first_d + tap[0] * AXES[0][3]
        h = first_h + tap[1] * AXES[1][3]
        w = first_w + tap[2] * AXES[2][3]
        inside = (d >= 0) & (d < stop_d) & (h >= 0) & (h < stop_h) & (w >= 0) & (w < stop_w)
        seen = mask & inside[:, None]
        value = tl.load(x + place(image, (d, h, w), channels, strides_x), mask=seen, other=0.0)
        value = value.to(tl.float32)
        better = seen & ((winner < 0) | (value > best) | (value != value))
        best = tl.where(better, value, best)
        winner = tl.where(better, ((d * source[1] + h) * source[2] + w)[:, None], winner)
    offsets = place(image, at, channels, strides_y)
    tl.store(y + offsets, best, mask=mask)
    tl.store(winners + offsets, winner, mask=mask)


@triton.jit
def max_pool_adjoint(
    r,
    winners,
    lower,
    out,
    images,
    saved_images,
    C,
    source,
    target,
    strides_r,
    strides_w,
    stride_lp,
    strides_l,
    stride_op,
    strides_o,
    numbers,
    AXES: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    LOWER: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """out [images, C, *source]: to each position the relevance of the windows that it won."""
    image, at, channels, mask = positions(C, source, images, BM, BN)
    saved = image % saved_images
    here = ((at[0] * source[1] + at[1]) * source[2] + at[2])[:, None]
    total = tl.zeros((BM, BN), tl.float32)
    for j in range(0, AXES[0][4] * AXES[1][4] * AXES[2][4]):
        above, exists = candidates(at, j, source, target, AXES, ADAPTIVE)
        seen = mask & exists[:, None]
        offsets = place(saved, above, channels, strides_w)
        won = tl.load(winners + offsets, mask=seen, other=-1) == here
        offsets = place(image, above, channels, strides_r)
        total += tl.load(r + offsets, mask=seen & won, other=0.0).to(tl.float32)
    finish_relevance(
        total, lower, stride_lp, place(saved, at, channels, strides_l), out, stride_op,
        place(image, at, channels, strides_o), numbers, mask, LOWER,
    )  # fmt: skip


def max_pool(
    a: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """Maxima and the flat spatial positions (int32) of the first winner of each window.

    Args:
        a: `[batch, channels, *spatial]`.
        kernel, stride, padding, dilation: one number for each spatial axis.
        ceil_mode: whether windows may reach beyond the padding.
    """
    extents = pooled_extents(a.shape[2:], kernel, stride, padding, dilation, ceil_mode)
    return _maxima(a, extents, fixed_axes(kernel, stride, padding, dilation), False)


def adaptive_max_pool(a: Tensor, extents: Sequence[int]) -> tuple[Tensor, Tensor]:
    """As `max_pool`, over the windows that divide the input into `extents`."""
    return _maxima(a, extents, adaptive_axes(a.shape[2:], extents), True)


def _maxima(a: Tensor, extents: Sequence[int], axes: Axes, adaptive: bool) -> tuple[Tensor, Tensor]:
    y = ordered_empty((), (*a.shape[:2], *extents), a)
    winners = torch.empty_like(y, dtype=torch.int32)
    spatial = len(extents)
    launch(
        max_pool_kernel, y.shape, a, y, winners, *y.shape[:2], lift(a.shape[2:], 1),
        lift(extents, 1), lifted_strides(a, spatial), lifted_strides(y, spatial), AXES=axes,
        ADAPTIVE=adaptive,
    )  # fmt: skip
    return y, winners


def max_pool_relevance(
    r: Tensor,
    winners: Tensor,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    lower: Lower | None = None,
) -> Tensor:
    """Winner takes all.

    Args:
        r: relevance of the maxima, `[targets, batch, channels, *spatial]`.
        winners: of `max_pool`.
        shape: of the input of the pooling.
        kernel, stride, padding, dilation: as in `max_pool`.
        lower: the layer (`relprop.kernels.below`) that the pooled values come from, if its quotient
            is to be taken at once.

    Returns:
        `[targets, *shape]`, float32, laid out as the winners; with `lower` its quotients,
        `[1 or 2, targets, *shape]`.
    """
    axes = fixed_axes(kernel, stride, padding, dilation)
    return _winner_relevance(r, winners, shape, axes, False, lower)


def adaptive_max_pool_relevance(
    r: Tensor, winners: Tensor, shape: Sequence[int], lower: Lower | None = None
) -> Tensor:
    """Winner takes all in adaptive max pooling; arguments as in `max_pool_relevance`."""
    axes = adaptive_axes(shape[2:], winners.shape[2:])
    return _winner_relevance(r, winners, shape, axes, True, lower)


def _winner_relevance(
    r: Tensor,
    winners: Tensor,
    shape: Sequence[int],
    axes: Axes,
    adaptive: bool,
    lower: Lower | None,
) -> Tensor:
    return launch_adjoint(
        max_pool_adjoint, r, [winners], shape, winners, lower, AXES=axes, ADAPTIVE=adaptive
    )
