"""Linear resampling over one to three axes: forward, and relevance by gathering.

Along each axis an output is a mean of two neighbouring inputs, weighted by how near they are, so
that an input position visits the outputs around its own place; nothing is scattered.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import triton
import triton.language as tl
from torch import Tensor

from relprop.kernels.axes import coordinates, lift, lifted_strides, place
from relprop.kernels.epilogues import finish_relevance, ratio
from relprop.kernels.layouts import ordered_empty
from relprop.kernels.operands import Lower
from relprop.kernels.pool.positions import launch, launch_adjoint, positions

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
    # of a unit axis the compiler has the extent as a plain number
    last = (x * 0 + out).to(tl.float32)
    y = tl.maximum(tl.minimum(start, last), 0.0).to(tl.int32) + j
    first, second, weight = neighbours(y, size, scale, CORNERS)
    share = tl.where(first == x, 1.0 - weight, 0.0) + tl.where(second == x, weight, 0.0)
    return tl.minimum(y, out - 1), tl.where(y < out, share, 0.0)


@triton.jit
def linear_resample_kernel(
    x,
    y,
    images,
    C,
    source,
    target,
    strides_x,
    strides_y,
    scales,
    CORNERS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """y [images, C, *target] of x [images, C, *source]: eight neighbours, by their weights."""
    image, at, channels, mask = positions(C, target, images, BM, BN)
    d0, d1, part_d = neighbours(at[0], source[0], scales[0], CORNERS)
    h0, h1, part_h = neighbours(at[1], source[1], scales[1], CORNERS)
    w0, w1, part_w = neighbours(at[2], source[2], scales[2], CORNERS)
    total = tl.zeros((BM, BN), tl.float32)
    for corner in range(0, 8):
        far = coordinates(corner, 2, 2)
        weight = tl.where(far[0] == 1, part_d, 1.0 - part_d)
        weight *= tl.where(far[1] == 1, part_h, 1.0 - part_h)
        weight *= tl.where(far[2] == 1, part_w, 1.0 - part_w)
        near = (
            tl.where(far[0] == 1, d1, d0),
            tl.where(far[1] == 1, h1, h0),
            tl.where(far[2] == 1, w1, w0),
        )
        seen = mask & (weight != 0)[:, None]
        value = tl.load(x + place(image, near, channels, strides_x), mask=seen, other=0.0)
        total += weight[:, None] * value.to(tl.float32)
    tl.store(y + place(image, at, channels, strides_y), total, mask=mask)


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
    scales,
    numbers,
    REACH: tl.constexpr,
    CORNERS: tl.constexpr,
    LOWER: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """out [images, C, *source] = a * sum over outputs of r / st(y), by a's weight in them.

    REACH: how many outputs of each axis one input may have a part in.
    """
    image, at, channels, mask = positions(C, source, images, BM, BN)
    saved = image % saved_images
    total = tl.zeros((BM, BN), tl.float32)
    for index in range(0, REACH[0] * REACH[1] * REACH[2]):
        j = coordinates(index, REACH[1], REACH[2])
        d, part_d = share_of(at[0], j[0], source[0], target[0], scales[0], CORNERS)
        h, part_h = share_of(at[1], j[1], source[1], target[1], scales[1], CORNERS)
        w, part_w = share_of(at[2], j[2], source[2], target[2], scales[2], CORNERS)
        weight = part_d * part_h * part_w
        seen = mask & (weight != 0)[:, None]
        value = tl.load(y + place(saved, (d, h, w), channels, strides_y), mask=seen, other=1.0)
        relevance = tl.load(r + place(image, (d, h, w), channels, strides_r), mask=seen, other=0.0)
        total += ratio(relevance.to(tl.float32), value, epsilon) * weight[:, None]
    offsets = place(saved, at, channels, strides_a)
    total *= tl.load(a + offsets, mask=mask, other=0.0).to(tl.float32)
    finish_relevance(
        total, lower, stride_lp, place(saved, at, channels, strides_l), out, stride_op,
        place(image, at, channels, strides_o), numbers, mask, LOWER,
    )  # fmt: skip


def _scales(
    source: Sequence[int],
    target: Sequence[int],
    align_corners: bool,
    factors: Sequence[float | None] | None,
) -> tuple[float, ...]:
    """For each of three axes, the step on the input that one step on the output makes."""
    steps = []
    factors = factors or [None] * len(source)
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
    scales = _scales(a.shape[2:], extents, align_corners, factors)
    launch(
        linear_resample_kernel, y.shape, a, y, *y.shape[:2], lift(a.shape[2:], 1),
        lift(extents, 1), lifted_strides(a, spatial), lifted_strides(y, spatial), scales,
        CORNERS=align_corners,
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
    scales = _scales(a.shape[2:], y.shape[2:], align_corners, factors)
    reach = tuple(
        min(size, ceil(2 / step) + 2) if step else size
        for size, step in zip(lift(y.shape[2:], 1), scales, strict=True)
    )
    return launch_adjoint(
        linear_resample_adjoint, r, [y, a], a.shape, a, lower, epsilon, scales, REACH=reach,
        CORNERS=align_corners,
    )  # fmt: skip
