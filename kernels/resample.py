"""Linear resampling over one to three axes: forward, and relevance by gathering.

Along each axis an output is a mean of two neighbouring inputs, weighted by how near they are, so
that an input position visits the outputs around its own place; nothing is scattered.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from relprop.kernels.conv_launch import lift, lifted_strides
from relprop.kernels.operands import Lower
from relprop.kernels.pointwise import ordered_empty
from relprop.kernels.pool import (
    finish_pool,
    launch,
    lower_numbers,
    lower_strides,
    place,
    positions,
    relevance_empty,
)
from relprop.kernels.tiles import ratio

__all__ = ["linear_resample", "linear_resample_relevance"]


@triton.jit
def neighbours(y, size, scale, CORNERS: tl.constexpr):
    """The two inputs of output y, and the weight of the second."""
    source = y.to(tl.float32) * scale
    if not CORNERS:
        source = tl.maximum((y.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    first = tl.minimum(source.to(tl.int32), size - 1)
    return first, tl.minimum(first + 1, size - 1), source - first.to(tl.float32)


@triton.jit
def share_of(x, j, size, out, scale, CORNERS: tl.constexpr):
    """The j-th output around input x, and x's weight in it, 0 if it has none."""
    left = x.to(tl.float32) - 1.0
    if not CORNERS:
        left += 0.5
    start = left / tl.maximum(scale, 1e-6)
    if not CORNERS:
        start -= 0.5
    y = tl.maximum(tl.minimum(start, out.to(tl.float32)), 0.0).to(tl.int32) + j
    first, second, weight = neighbours(y, size, scale, CORNERS)
    share = tl.where(first == x, 1.0 - weight, 0.0) + tl.where(second == x, weight, 0.0)
    return tl.minimum(y, out - 1), tl.where(y < out, share, 0.0)


@triton.jit
def linear_resample_kernel(
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
    scale_d,
    scale_h,
    scale_w,
    CORNERS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """y [images, C, *O] of x [images, C, *X]: at most eight neighbours, by their weights."""
    image, d, h, w, channel, mask = positions(C, OD, OH, OW, images, BM, BN)
    d0, d1, part_d = neighbours(d, XD, scale_d, CORNERS)
    h0, h1, part_h = neighbours(h, XH, scale_h, CORNERS)
    w0, w1, part_w = neighbours(w, XW, scale_w, CORNERS)
    total = tl.zeros((BM, BN), tl.float32)
    for corner in range(0, 8):
        far_d = corner // 4 == 1
        far_h = (corner // 2) % 2 == 1
        far_w = corner % 2 == 1
        weight = tl.where(far_d, part_d, 1.0 - part_d) * tl.where(far_h, part_h, 1.0 - part_h)
        weight *= tl.where(far_w, part_w, 1.0 - part_w)
        offsets = place(
            image, tl.where(far_d, d1, d0), tl.where(far_h, h1, h0), tl.where(far_w, w1, w0),
            channel, stride_xb, stride_xc, stride_xd, stride_xh, stride_xw,
        )  # fmt: skip
        seen = mask & (weight != 0)[:, None]
        total += weight[:, None] * tl.load(x + offsets, mask=seen, other=0.0).to(tl.float32)
    offsets = place(image, d, h, w, channel, stride_yb, stride_yc, stride_yd, stride_yh, stride_yw)
    tl.store(y + offsets, total, mask=mask)


@triton.jit
def linear_resample_adjoint(
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
    scale_d,
    scale_h,
    scale_w,
    epsilon,
    lower_epsilon,
    scale0,
    scale1,
    REACH: tl.constexpr,
    CORNERS: tl.constexpr,
    LOWER: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """out [images, C, *X] = a * sum over outputs of r / st(y), by a's weight in them.

    REACH: how many outputs of each axis one input may have a part in.
    """
    image, d, h, w, channel, mask = positions(C, XD, XH, XW, images, BM, BN)
    saved = image % saved_images
    total = tl.zeros((BM, BN), tl.float32)
    for j in range(0, REACH[0] * REACH[1] * REACH[2]):
        yd, part_d = share_of(d, j // (REACH[1] * REACH[2]), XD, OD, scale_d, CORNERS)
        yh, part_h = share_of(h, (j // REACH[2]) % REACH[1], XH, OH, scale_h, CORNERS)
        yw, part_w = share_of(w, j % REACH[2], XW, OW, scale_w, CORNERS)
        weight = part_d * part_h * part_w
        seen = mask & (weight != 0)[:, None]
        offsets = place(
            saved, yd, yh, yw, channel, stride_yb, stride_yc, stride_yd, stride_yh, stride_yw
        )
        value = tl.load(y + offsets, mask=seen, other=1.0)
        offsets = place(
            image, yd, yh, yw, channel, stride_rb, stride_rc, stride_rd, stride_rh, stride_rw
        )
        relevance = tl.load(r + offsets, mask=seen, other=0.0).to(tl.float32)
        total += ratio(relevance, value, epsilon) * weight[:, None]
    offsets = place(saved, d, h, w, channel, stride_ab, stride_ac, stride_ad, stride_ah, stride_aw)
    total *= tl.load(a + offsets, mask=mask, other=0.0).to(tl.float32)
    below = place(saved, d, h, w, channel, stride_lb, stride_lc, stride_ld, stride_lh, stride_lw)
    offsets = place(image, d, h, w, channel, stride_xb, stride_xc, stride_xd, stride_xh, stride_xw)
    finish_pool(
        total, lower, stride_lp, below, out, stride_op, offsets, lower_epsilon, scale0, scale1,
        mask, LOWER,
    )  # fmt: skip


def _scales(
    source: Sequence[int],
    target: Sequence[int],
    align_corners: bool,
    factors: Sequence[float | None],
) -> tuple[Any, ...]:
    """For each of three axes, the step on the input that one step on the output makes."""
    steps = []
    for size, out, factor in zip(source, target, factors, strict=True):
        if align_corners:
            steps.append((size - 1) / (out - 1) if out > 1 else 0.0)
        else:
            steps.append(1 / factor if factor else size / max(out, 1))
    return (*(1.0,) * (3 - len(steps)), *map(float, steps))


def linear_resample(
    a: Tensor,
    extents: Sequence[int],
    align_corners: bool = False,
    factors: Sequence[float | None] | None = None,
) -> Tensor:
    """Linear, bilinear or trilinear interpolation, float32.

    Args:
        a: `[batch, channels, *spatial]`.
        extents: of the output.
        align_corners: whether the outermost positions of both coincide.
        factors: for each axis the factor of scale where it is given, else None; then it follows
            from the extents.
    """
    y = ordered_empty((), (*a.shape[:2], *extents), a)
    spatial = len(extents)
    scales = _scales(a.shape[2:], extents, align_corners, factors or [None] * spatial)
    launch(
        linear_resample_kernel, (a.shape[0], *extents), a.shape[1],
        a, y, a.shape[0], a.shape[1], *lift(a.shape[2:], 1), *lift(extents, 1),
        *lifted_strides(a, spatial), *lifted_strides(y, spatial), *scales, CORNERS=align_corners,
    )  # fmt: skip
    return y


def linear_resample_relevance(
    r: Tensor,
    y: Tensor,
    a: Tensor,
    epsilon: float,
    align_corners: bool = False,
    factors: Sequence[float | None] | None = None,
    lower: Lower | None = None,
) -> Tensor:
    """Epsilon on the resampling's own map.

    Args:
        r: relevance of the output, `[targets, batch, channels, *spatial]`.
        y: the output, float32.
        a: the input.
        epsilon: the stabilizer.
        align_corners, factors: as in `linear_resample`.
        lower: as in `max_pool_relevance`.

    Returns:
        `[targets, *a.shape]`, float32; with `lower` its quotients, `[1 or 2, targets, *a.shape]`.
    """
    spatial, targets = a.dim() - 2, r.shape[0]
    out = relevance_empty(lower, targets, a.shape, a)
    r, rows = r.flatten(0, 1), out.flatten(1, 2)
    extents = y.shape[2:]
    scales = _scales(a.shape[2:], extents, align_corners, factors or [None] * spatial)
    reach = tuple(
        min(size, ceil(2 / step) + 2) if step else size
        for size, step in zip(lift(extents, 1), scales, strict=True)
    )
    launch(
        linear_resample_adjoint, (rows.shape[1], *a.shape[2:]), a.shape[1],
        r, y, a, out if lower is None else lower.z, out, rows.shape[1], a.shape[0], a.shape[1],
        *lift(a.shape[2:], 1), *lift(extents, 1), *lifted_strides(r, spatial),
        *lifted_strides(y, spatial), *lifted_strides(a, spatial), *lower_strides(lower, spatial),
        *lifted_strides(rows, spatial), *scales, epsilon, *lower_numbers(lower), REACH=reach,
        CORNERS=align_corners, LOWER=lower and lower.program.mode,
    )  # fmt: skip
    return out if lower is not None else out[0]
