"""Pooling over one to three axes: forward, and relevance by gathering from the windows.

Rows are positions, columns channels, as in the convolutions; fewer axes are unit axes.  An input
position visits the few windows that may hold it, so nothing is scattered and no atomics are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from relprop.kernels.conv_launch import lift, lifted_strides
from relprop.kernels.operands import Lower
from relprop.kernels.pointwise import ordered_empty, quotient_empty
from relprop.kernels.tiles import FUSION, ratio, shares
from relprop.kernels.tiling import direct_tile

__all__ = [
    "adaptive_average_pool",
    "adaptive_average_pool_relevance",
    "adaptive_max_pool",
    "adaptive_max_pool_relevance",
    "average_pool",
    "average_pool_relevance",
    "max_pool",
    "max_pool_relevance",
]


@triton.jit
def positions(C, D, H, W, images, BM: tl.constexpr, BN: tl.constexpr):
    """Image, coordinates and channels of a tile, and which of its entries exist."""
    tiles_n = tl.cdiv(C, BN)
    pid = tl.program_id(0)
    rows = (pid // tiles_n).to(tl.int64) * BM + tl.arange(0, BM)
    columns = (pid % tiles_n) * BN + tl.arange(0, BN)
    mask = (rows < images * D * H * W)[:, None] & (columns < C)[None, :]
    w = (rows % W).to(tl.int32)
    h = ((rows // W) % H).to(tl.int32)
    d = ((rows // (W * H)) % D).to(tl.int32)
    return rows // (W * H * D), d, h, w, columns.to(tl.int64)[None, :], mask


@triton.jit
def place(image, d, h, w, channel, stride_b, stride_c, stride_d, stride_h, stride_w):
    """Offsets [rows, columns] of positions in a strided tensor."""
    row = image * stride_b + d.to(tl.int64) * stride_d
    row += h.to(tl.int64) * stride_h + w.to(tl.int64) * stride_w
    return row[:, None] + channel * stride_c


@triton.jit
def window(y, size, out, AXES: tl.constexpr, A: tl.constexpr, ADAPTIVE: tl.constexpr):
    """Start and stop of a window within the input, and its length with padding.

    AXES[A] is (taps, stride, padding, dilation, windows that one position may be in).
    """
    if ADAPTIVE:
        start = (y * size) // out
        stop = ((y + 1) * size + out - 1) // out
        return start, stop, stop - start
    else:
        start = y * AXES[A][1] - AXES[A][2]
        stop = tl.minimum(start + AXES[A][0], size + AXES[A][2])
        return tl.maximum(start, 0), tl.minimum(stop, size), stop - start


@triton.jit
def reach(y, size, out, AXES: tl.constexpr, A: tl.constexpr, ADAPTIVE: tl.constexpr):
    """First tap of a window, which may lie in the padding, and where its taps end."""
    if ADAPTIVE:
        start, stop, _ = window(y, size, out, AXES, A, True)
        return start, stop
    else:
        return y * AXES[A][1] - AXES[A][2], y * 0 + size


@triton.jit
def candidate(x, j, size, out, AXES: tl.constexpr, A: tl.constexpr, ADAPTIVE: tl.constexpr):
    """The j-th window that may hold position x, and whether it exists."""
    if ADAPTIVE:
        y = (x * out) // size + j
    else:
        y = (x + AXES[A][2]) // AXES[A][1] - j
    return y, (y >= 0) & (y < out)


@triton.jit
def max_pool_kernel(
    x,
    y,
    winners,
    images,
    C,
    XD,
    XH,
    XW,
    OD,
    OH,
    OW,
    stride_xb,
    stride_xc,
    stride_xd,
    stride_xh,
    stride_xw,
    stride_yb,
    stride_yc,
    stride_yd,
    stride_yh,
    stride_yw,
    AXES: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """y and the first winner's flat position [images, C, *O] of x [images, C, *X]."""
    image, d, h, w, channel, mask = positions(C, OD, OH, OW, images, BM, BN)
    best = tl.full((BM, BN), float("-inf"), tl.float32)
    winner = tl.full((BM, BN), -1, tl.int32)
    first_d, stop_d = reach(d, XD, OD, AXES, 0, ADAPTIVE)
    first_h, stop_h = reach(h, XH, OH, AXES, 1, ADAPTIVE)
    first_w, stop_w = reach(w, XW, OW, AXES, 2, ADAPTIVE)
    for tap in range(0, AXES[0][0] * AXES[1][0] * AXES[2][0]):
        xd = first_d + (tap // (AXES[1][0] * AXES[2][0])) * AXES[0][3]
        xh = first_h + ((tap // AXES[2][0]) % AXES[1][0]) * AXES[1][3]
        xw = first_w + (tap % AXES[2][0]) * AXES[2][3]
        inside = (xd >= 0) & (xd < stop_d) & (xh >= 0) & (xh < stop_h)
        inside = inside & (xw >= 0) & (xw < stop_w)
        seen = mask & inside[:, None]
        offsets = place(
            image, xd, xh, xw, channel, stride_xb, stride_xc, stride_xd, stride_xh, stride_xw
        )
        value = tl.load(x + offsets, mask=seen, other=0.0).to(tl.float32)
        better = seen & ((winner < 0) | (value > best) | (value != value))
        best = tl.where(better, value, best)
        winner = tl.where(better, ((xd * XH + xh) * XW + xw)[:, None], winner)
    offsets = place(image, d, h, w, channel, stride_yb, stride_yc, stride_yd, stride_yh, stride_yw)
    tl.store(y + offsets, best, mask=mask)
    tl.store(winners + offsets, winner, mask=mask)


@triton.jit
def finish_pool(
    total,
    lower,
    stride_lp,
    lower_offsets,
    out,
    stride_op,
    offsets,
    epsilon,
    scale0,
    scale1,
    mask,
    LOWER: tl.constexpr,
):
    """Write relevance, or the quotients of the layer below that the pooled values come from."""
    if LOWER is None:
        tl.store(out + offsets, total, mask=mask)
    else:
        z0 = tl.load(lower + lower_offsets, mask=mask, other=1.0)
        z1 = z0
        if LOWER != "one":
            z1 = tl.load(lower + stride_lp + lower_offsets, mask=mask, other=1.0)
        s0, s1 = shares(total, z0, z1, epsilon, scale0, scale1, LOWER)
        tl.store(out + offsets, s0, mask=mask)
        if LOWER != "one":
            tl.store(out + stride_op + offsets, s1, mask=mask)


@triton.jit
def max_pool_adjoint(
    r,
    winners,
    lower,
    out,
    images,
    saved_images,
    C,
    XD,
    XH,
    XW,
    OD,
    OH,
    OW,
    stride_rb,
    stride_rc,
    stride_rd,
    stride_rh,
    stride_rw,
    stride_wb,
    stride_wc,
    stride_wd,
    stride_wh,
    stride_ww,
    stride_lp,
    stride_lb,
    stride_lc,
    stride_ld,
    stride_lh,
    stride_lw,
    stride_op,
    stride_xb,
    stride_xc,
    stride_xd,
    stride_xh,
    stride_xw,
    lower_epsilon,
    scale0,
    scale1,
    AXES: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    LOWER: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """out [images, C, *X]: to each position the relevance of the windows that it won."""
    image, d, h, w, channel, mask = positions(C, XD, XH, XW, images, BM, BN)
    here = ((d * XH + h) * XW + w)[:, None]
    total = tl.zeros((BM, BN), tl.float32)
    for j in range(0, AXES[0][4] * AXES[1][4] * AXES[2][4]):
        yd, in_d = candidate(d, j // (AXES[1][4] * AXES[2][4]), XD, OD, AXES, 0, ADAPTIVE)
        yh, in_h = candidate(h, (j // AXES[2][4]) % AXES[1][4], XH, OH, AXES, 1, ADAPTIVE)
        yw, in_w = candidate(w, j % AXES[2][4], XW, OW, AXES, 2, ADAPTIVE)
        seen = mask & (in_d & in_h & in_w)[:, None]
        offsets = place(
            image % saved_images, yd, yh, yw, channel,
            stride_wb, stride_wc, stride_wd, stride_wh, stride_ww,
        )  # fmt: skip
        won = tl.load(winners + offsets, mask=seen, other=-1) == here
        offsets = place(
            image, yd, yh, yw, channel, stride_rb, stride_rc, stride_rd, stride_rh, stride_rw
        )
        total += tl.load(r + offsets, mask=seen & won, other=0.0).to(tl.float32)
    below = place(
        image % saved_images,
        d,
        h,
        w,
        channel,
        stride_lb,
        stride_lc,
        stride_ld,
        stride_lh,
        stride_lw,
    )
    offsets = place(image, d, h, w, channel, stride_xb, stride_xc, stride_xd, stride_xh, stride_xw)
    finish_pool(
        total, lower, stride_lp, below, out, stride_op, offsets, lower_epsilon, scale0, scale1,
        mask, LOWER,
    )  # fmt: skip


@triton.jit
def average_pool_kernel(
    x,
    y,
    images,
    C,
    XD,
    XH,
    XW,
    OD,
    OH,
    OW,
    stride_xb,
    stride_xc,
    stride_xd,
    stride_xh,
    stride_xw,
    stride_yb,
    stride_yc,
    stride_yd,
    stride_yh,
    stride_yw,
    divisor,
    AXES: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    PADDED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """y [images, C, *O]: mean of each window of x [images, C, *X]; divisor 0 means its size."""
    image, d, h, w, channel, mask = positions(C, OD, OH, OW, images, BM, BN)
    start_d, stop_d, size_d = window(d, XD, OD, AXES, 0, ADAPTIVE)
    start_h, stop_h, size_h = window(h, XH, OH, AXES, 1, ADAPTIVE)
    start_w, stop_w, size_w = window(w, XW, OW, AXES, 2, ADAPTIVE)
    total = tl.zeros((BM, BN), tl.float32)
    for tap in range(0, AXES[0][0] * AXES[1][0] * AXES[2][0]):
        xd = start_d + tap // (AXES[1][0] * AXES[2][0])
        xh = start_h + (tap // AXES[2][0]) % AXES[1][0]
        xw = start_w + tap % AXES[2][0]
        seen = mask & ((xd < stop_d) & (xh < stop_h) & (xw < stop_w))[:, None]
        offsets = place(
            image, xd, xh, xw, channel, stride_xb, stride_xc, stride_xd, stride_xh, stride_xw
        )
        total += tl.load(x + offsets, mask=seen, other=0.0).to(tl.float32)
    count = size_d * size_h * size_w
    if not PADDED:
        count = (stop_d - start_d) * (stop_h - start_h) * (stop_w - start_w)
    count = tl.where(count * 0 + divisor > 0, count * 0 + divisor, count)
    offsets = place(image, d, h, w, channel, stride_yb, stride_yc, stride_yd, stride_yh, stride_yw)
    tl.store(y + offsets, total / count.to(tl.float32)[:, None], mask=mask)


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
    XD,
    XH,
    XW,
    OD,
    OH,
    OW,
    stride_rb,
    stride_rc,
    stride_rd,
    stride_rh,
    stride_rw,
    stride_yb,
    stride_yc,
    stride_yd,
    stride_yh,
    stride_yw,
    stride_ab,
    stride_ac,
    stride_ad,
    stride_ah,
    stride_aw,
    stride_lp,
    stride_lb,
    stride_lc,
    stride_ld,
    stride_lh,
    stride_lw,
    stride_op,
    stride_xb,
    stride_xc,
    stride_xd,
    stride_xh,
    stride_xw,
    divisor,
    epsilon,
    lower_epsilon,
    scale0,
    scale1,
    AXES: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    PADDED: tl.constexpr,
    LOWER: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """out [images, C, *X] = a * sum over windows of r / (st(y) * window size)."""
    image, d, h, w, channel, mask = positions(C, XD, XH, XW, images, BM, BN)
    saved = image % saved_images
    total = tl.zeros((BM, BN), tl.float32)
    for j in range(0, AXES[0][4] * AXES[1][4] * AXES[2][4]):
        yd, in_d = candidate(d, j // (AXES[1][4] * AXES[2][4]), XD, OD, AXES, 0, ADAPTIVE)
        yh, in_h = candidate(h, (j // AXES[2][4]) % AXES[1][4], XH, OH, AXES, 1, ADAPTIVE)
        yw, in_w = candidate(w, j % AXES[2][4], XW, OW, AXES, 2, ADAPTIVE)
        start_d, stop_d, size_d = window(yd, XD, OD, AXES, 0, ADAPTIVE)
        start_h, stop_h, size_h = window(yh, XH, OH, AXES, 1, ADAPTIVE)
        start_w, stop_w, size_w = window(yw, XW, OW, AXES, 2, ADAPTIVE)
        held = in_d & in_h & in_w & (d >= start_d) & (d < stop_d)
        held = held & (h >= start_h) & (h < stop_h) & (w >= start_w) & (w < stop_w)
        count = size_d * size_h * size_w
        if not PADDED:
            count = (stop_d - start_d) * (stop_h - start_h) * (stop_w - start_w)
        count = tl.where(count * 0 + divisor > 0, count * 0 + divisor, count)
        count = tl.where(held, count, 1).to(tl.float32)
        seen = mask & held[:, None]
        offsets = place(
            saved, yd, yh, yw, channel, stride_yb, stride_yc, stride_yd, stride_yh, stride_yw
        )
        mean = tl.load(y + offsets, mask=seen, other=1.0)
        offsets = place(
            image, yd, yh, yw, channel, stride_rb, stride_rc, stride_rd, stride_rh, stride_rw
        )
        value = tl.load(r + offsets, mask=seen, other=0.0).to(tl.float32)
        total += ratio(value, mean, epsilon) / count[:, None]
    offsets = place(saved, d, h, w, channel, stride_ab, stride_ac, stride_ad, stride_ah, stride_aw)
    total *= tl.load(a + offsets, mask=mask, other=0.0).to(tl.float32)
    below = place(saved, d, h, w, channel, stride_lb, stride_lc, stride_ld, stride_lh, stride_lw)
    offsets = place(image, d, h, w, channel, stride_xb, stride_xc, stride_xd, stride_xh, stride_xw)
    finish_pool(
        total, lower, stride_lp, below, out, stride_op, offsets, lower_epsilon, scale0, scale1,
        mask, LOWER,
    )  # fmt: skip


def _axes(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    return tuple(
        (k, s, p, d, triton.cdiv(d * (k - 1) + 1, s))
        for k, s, p, d in zip(lift(kernel, 1), lift(stride, 1), lift(padding, 0), lift(dilation, 1))
    )


def _adaptive_axes(source: Sequence[int], target: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Taps and windows bound how far a window, and a position's windows, can reach."""
    return tuple(
        (triton.cdiv(x, max(y, 1)) + 1, 1, 0, 1, triton.cdiv(y, max(x, 1)) + 1)
        for x, y in zip(lift(source, 1), lift(target, 1))
    )


def pooled_extents(
    source: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> list[int]:
    """Extents of a pooling's output; with `ceil_mode` the last window starts inside the input."""
    result = []
    for size, k, s, p, d in zip(source, kernel, stride, padding, dilation):
        room = size + 2 * p - d * (k - 1) - 1
        count = room // s + 1
        if ceil_mode:
            count = -(-room // s) + 1
            count -= (count - 1) * s >= size + p
        result.append(count)
    return result


def launch(
    kernel: Any, rows: tuple[int, ...], channels: int, *arguments: Any, **options: Any
) -> None:
    """Launch a kernel whose rows are positions and whose columns are channels."""
    if prod(rows) * channels == 0:
        return
    tile = direct_tile(prod(rows), channels)
    grid = (triton.cdiv(prod(rows), tile.m) * triton.cdiv(channels, tile.n),)
    kernel[grid](
        *arguments, BM=tile.m, BN=tile.n, num_warps=tile.warps, enable_fp_fusion=FUSION, **options
    )


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
    return _maxima(a, extents, _axes(kernel, stride, padding, dilation), False)


def adaptive_max_pool(a: Tensor, extents: Sequence[int]) -> tuple[Tensor, Tensor]:
    """As `max_pool`, over the windows that divide the input into `extents`."""
    return _maxima(a, extents, _adaptive_axes(a.shape[2:], extents), True)


def _maxima(
    a: Tensor, extents: Sequence[int], axes: tuple[tuple[int, ...], ...], adaptive: bool
) -> tuple[Tensor, Tensor]:
    spatial = len(extents)
    y = ordered_empty((), (*a.shape[:2], *extents), a)
    winners = torch.empty_like(y, dtype=torch.int32)
    launch(
        max_pool_kernel, (a.shape[0], *extents), a.shape[1],
        a, y, winners, a.shape[0], a.shape[1], *lift(a.shape[2:], 1), *lift(extents, 1),
        *lifted_strides(a, spatial), *lifted_strides(y, spatial), AXES=axes, ADAPTIVE=adaptive,
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
    axes = _axes(kernel, stride, padding, dilation)
    return _winner_relevance(r, winners, shape, axes, False, lower)


def adaptive_max_pool_relevance(
    r: Tensor, winners: Tensor, shape: Sequence[int], lower: Lower | None = None
) -> Tensor:
    """Winner takes all in adaptive max pooling; arguments as in `max_pool_relevance`."""
    axes = _adaptive_axes(shape[2:], winners.shape[2:])
    return _winner_relevance(r, winners, shape, axes, True, lower)


def _winner_relevance(
    r: Tensor,
    winners: Tensor,
    shape: Sequence[int],
    axes: tuple[tuple[int, ...], ...],
    adaptive: bool,
    lower: Lower | None,
) -> Tensor:
    spatial, targets = len(shape) - 2, r.shape[0]
    out = relevance_empty(lower, targets, shape, winners)
    r, rows = r.flatten(0, 1), out.flatten(1, 2)
    launch(
        max_pool_adjoint, (rows.shape[1], *shape[2:]), shape[1],
        r, winners, out if lower is None else lower.z, out, rows.shape[1], shape[0], shape[1],
        *lift(shape[2:], 1), *lift(r.shape[2:], 1), *lifted_strides(r, spatial),
        *lifted_strides(winners, spatial), *lower_strides(lower, spatial),
        *lifted_strides(rows, spatial), *lower_numbers(lower), AXES=axes, ADAPTIVE=adaptive,
        LOWER=lower and lower.program.mode,
    )  # fmt: skip
    return out if lower is not None else out[0]


def relevance_empty(
    lower: Lower | None, targets: int, shape: Sequence[int], like: Tensor
) -> Tensor:
    """`[parts, targets, *shape]`: relevance, or the one or two quotients of the layer below."""
    if lower is None:
        return ordered_empty((1, targets), shape, like)
    return quotient_empty(lower.program.parts, targets, shape, like, lower.feature_axis)


def lower_strides(lower: Lower | None, spatial: int) -> tuple[int, ...]:
    return (0,) * 6 if lower is None else lifted_strides(lower.z, spatial)


def lower_numbers(lower: Lower | None) -> tuple[float, float, float]:
    return (0.0, 1.0, 1.0) if lower is None else lower.numbers


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
    axes = _axes(kernel, stride, padding, unit)
    return _mean(a, extents, axes, False, count_include_pad, divisor)


def adaptive_average_pool(a: Tensor, extents: Sequence[int]) -> Tensor:
    """Means of the windows that divide the input into `extents`, float32."""
    return _mean(a, extents, _adaptive_axes(a.shape[2:], extents), True, True, None)


def _mean(
    a: Tensor,
    extents: Sequence[int],
    axes: tuple[tuple[int, ...], ...],
    adaptive: bool,
    padded: bool,
    divisor: int | None,
) -> Tensor:
    y = ordered_empty((), (*a.shape[:2], *extents), a)
    spatial = len(extents)
    launch(
        average_pool_kernel, (a.shape[0], *extents), a.shape[1],
        a, y, a.shape[0], a.shape[1], *lift(a.shape[2:], 1), *lift(extents, 1),
        *lifted_strides(a, spatial), *lifted_strides(y, spatial), divisor or 0,
        AXES=axes, ADAPTIVE=adaptive, PADDED=padded,
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
    axes = _axes(kernel, stride, padding, [1] * len(kernel))
    return _mean_relevance(r, y, a, epsilon, axes, False, count_include_pad, divisor, lower)


def adaptive_average_pool_relevance(
    r: Tensor, y: Tensor, a: Tensor, epsilon: float, lower: Lower | None = None
) -> Tensor:
    """Epsilon on adaptive average pooling; arguments as in `average_pool_relevance`."""
    axes = _adaptive_axes(a.shape[2:], y.shape[2:])
    return _mean_relevance(r, y, a, epsilon, axes, True, True, None, lower)


def _mean_relevance(
    r: Tensor,
    y: Tensor,
    a: Tensor,
    epsilon: float,
    axes: tuple[tuple[int, ...], ...],
    adaptive: bool,
    padded: bool,
    divisor: int | None,
    lower: Lower | None,
) -> Tensor:
    spatial, targets = a.dim() - 2, r.shape[0]
    out = relevance_empty(lower, targets, a.shape, a)
    r, rows = r.flatten(0, 1), out.flatten(1, 2)
    launch(
        average_pool_adjoint, (rows.shape[1], *a.shape[2:]), a.shape[1],
        r, y, a, out if lower is None else lower.z, out, rows.shape[1], a.shape[0], a.shape[1],
        *lift(a.shape[2:], 1), *lift(y.shape[2:], 1), *lifted_strides(r, spatial),
        *lifted_strides(y, spatial), *lifted_strides(a, spatial), *lower_strides(lower, spatial),
        *lifted_strides(rows, spatial), divisor or 0, epsilon, *lower_numbers(lower), AXES=axes,
        ADAPTIVE=adaptive, PADDED=padded, LOWER=lower and lower.program.mode,
    )  # fmt: skip
    return out if lower is not None else out[0]
