"""The accumulators of a convolution's tile: implicit products, or the depthwise form."""

from __future__ import annotations

import triton
import triton.language as tl

from relprop.kernels.axes import coordinates, spot
from relprop.kernels.conv.index import axis_step, inside
from relprop.kernels.epilogues import box_bounds
from relprop.kernels.tiles import accumulate, load_operand, tile_index

__all__ = ["conv_products", "conv_tile"]


@triton.jit
def conv_products(
    x,
    w,
    box,
    image,
    origin,
    first,
    counts,
    valid,
    columns,
    group,
    N,
    C,
    source,
    stride_xp,
    strides_x,
    stride_wp,
    stride_wg,
    strides_w,
    stride_bp,
    strides_b,
    start,
    stop,
    gamma,
    LEFTS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    TERMS: tl.constexpr,
    STACKED: tl.constexpr,
    BOXED: tl.constexpr,
    REMASK: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    AXES: tl.constexpr,
    PHASED: tl.constexpr,
    DOT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """The accumulators of a tile: one flat loop over parts, taps and blocks of channels.

    The rows start at the source coordinates `origin` and the taps `first` and take `counts` taps
    along the three axes of extents `source`; strides_w are of result and contracted channels and
    taps.  With DOT the columns are those of `group` and the channels go in blocks of BK.  Without
    (the depthwise form) the columns run over all groups, `group` is their number, and the channels
    of a group go one by one (BK is 1).
    """
    acc0 = tl.zeros((BM, BN), tl.float32)
    acc1 = acc0
    blocks = tl.maximum(tl.cdiv(C, BK), 1)
    count = counts[0] * counts[1] * counts[2]
    valid = valid & (image * 0 + count > 0)
    high_taps = tl.maximum(counts[1], 1)
    wide_taps = tl.maximum(counts[2], 1)
    steps = tl.maximum(counts[0], 1) * high_taps * wide_taps * blocks
    n_iter = steps
    if STACKED:
        n_iter = 2 * steps
    n_iter = tl.maximum(n_iter, 1)
    tl.assume(n_iter > 0)
    step_d, tap_d = axis_step(AXES, 0, PHASED)
    step_h, tap_h = axis_step(AXES, 1, PHASED)
    step_w, tap_w = axis_step(AXES, 2, PHASED)
    x_image = x + image.to(tl.int64) * strides_x[0]
    if DOT:
        in_group = columns
        own_group = group
        column_mask = columns < N
    else:
        in_group = columns % N
        own_group = columns // N
        column_mask = own_group < group
    column_mask = column_mask & (columns * 0 + count > 0)
    wide_group = own_group.to(tl.int64)
    w_columns = w + wide_group * stride_wg + in_group.to(tl.int64) * strides_w[0]
    inner = tl.arange(0, BK)
    for step in range(0, n_iter):
        index = step
        x_part = x_image
        w_part = w_columns
        if STACKED:
            part = step // steps
            index = step % steps
            x_part = x_image + part.to(tl.int64) * stride_xp
            w_part = w_columns + part.to(tl.int64) * stride_wp
        block = index % blocks
        i = coordinates(index // blocks, high_taps, wide_taps)
        at = (origin[0] + i[0] * step_d, origin[1] + i[1] * step_h, origin[2] + i[2] * step_w)
        tap = (first[0] + i[0] * tap_d, first[1] + i[1] * tap_h, first[2] + i[2] * tap_w)
        seen = valid & inside(at[0], source[0], AXES, 0, PHASED)
        seen = seen & inside(at[1], source[1], AXES, 1, PHASED)
        seen = seen & inside(at[2], source[2], AXES, 2, PHASED)
        w_tap = spot(tap, strides_w)
        if DOT:
            c = block * BK + inner
            channel = own_group * C + c
            x_mask = seen[:, None]
            w_mask = column_mask[None, :]
            if not EVEN:
                x_mask = x_mask & (c < C)[None, :]
                w_mask = w_mask & (c < C)[:, None]
            w_offsets = w_tap + c.to(tl.int64)[:, None] * strides_w[1]
        else:
            channel = own_group * C + block
            x_mask = seen[:, None] & column_mask[None, :]
            w_mask = column_mask[None, :]
            w_offsets = w_tap + block.to(tl.int64) * strides_w[1]
        wide_channel = channel.to(tl.int64)[None, :]
        x_pointers = (x_part + spot(at, strides_x))[:, None] + wide_channel * strides_x[1]
        w_pointers = w_part[None, :] + w_offsets
        x0 = load_operand(x_pointers, x_mask, OPERAND)
        w0 = load_operand(w_pointers, w_mask, OPERAND)
        x1 = x0
        w1 = w0
        if LEFTS == 2 and not STACKED:
            x1 = load_operand(x_pointers + stride_xp, x_mask, OPERAND)
        if WEIGHTS == 2 and not STACKED:
            w1 = load_operand(w_pointers + stride_wp, w_mask, OPERAND)
        low = x0
        high = x0
        pixel = x_mask
        if BOXED:
            bounds = (box + spot(at, strides_b))[:, None] + wide_channel * strides_b[1]
            low, high, pixel = box_bounds(bounds, stride_bp, x_mask, channel, start, stop)
        acc0, acc1 = accumulate(
            acc0, acc1, x0, x1, w0, w1, low, high, pixel, x_mask, gamma,
            TERMS, BOXED, REMASK, OPERAND, PRECISION, DOT,
        )  # fmt: skip
    return acc0, acc1


@triton.jit
def conv_tile(
    images,
    groups,
    N,
    target,
    AXES: tl.constexpr,
    PHASED: tl.constexpr,
    DOT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Rows, columns, group and phase of a program, for an output of extents `target`."""
    per_phase = images * target[0] * target[1] * target[2]
    if PHASED:
        per_phase = images * tl.cdiv(target[0], AXES[0][0])
        per_phase = per_phase * tl.cdiv(target[1], AXES[1][0]) * tl.cdiv(target[2], AXES[2][0])
    width = N
    slots = groups
    if not DOT:
        width = N * groups
        slots = 1
    tiles_m = tl.cdiv(per_phase, BM)
    tiles_n = tl.cdiv(width, BN)
    pid = tl.program_id(0)
    slot = pid // (tiles_m * tiles_n)
    tile_m, tile_n = tile_index(pid % (tiles_m * tiles_n), tiles_m, tiles_n, GROUP)
    group = slot % slots
    columns = tile_n * BN + tl.arange(0, BN)
    if DOT:
        channels = group * N + columns
    else:
        channels = columns
        group = groups
    return tile_m * BM + tl.arange(0, BM), columns, columns < width, channels, group, slot // slots
