"""Convolutions of one to three dimensions as implicit products; their adjoints gather.

Two index maps serve everything (README.md, "Convolution"): a *forward* map, source = i * stride -
padding + tap * dilation, is the contraction of a convolution and the adjoint of a transposed one;
a *phased* map, its transpose, is the adjoint of a convolution and the contraction of a transposed
one.  A phase is a residue of the output coordinate modulo the stride: one launch covers them all
and each visits just the taps that reach it.  Fewer dimensions are unit axes of size 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from relprop.kernels.tiles import (
    accumulate,
    finish_adjoint,
    finish_contraction,
    load_operand,
    tile_index,
)

__all__ = ["conv_adjoint", "conv_contraction"]


@triton.jit
def phase_taps(phase, AXES: tl.constexpr, A: tl.constexpr, PHASED: tl.constexpr):
    """First tap and number of taps of a phase of one axis.

    AXES[A] is (stride, padding, dilation, taps, common, step, inverse): common = gcd(stride,
    dilation), step = stride / common, inverse = (dilation / common)^-1 modulo step.
    """
    if PHASED:
        residue = (phase + AXES[A][1]) % AXES[A][0]
        first = ((residue // AXES[A][4]) * AXES[A][6]) % AXES[A][5]
        count = tl.maximum((AXES[A][3] - first + AXES[A][5] - 1) // AXES[A][5], 0)
        return first, tl.where(residue % AXES[A][4] == 0, count, 0)
    else:
        return phase * 0, phase * 0 + AXES[A][3]


@triton.jit
def axis_source(i, phase, first, AXES: tl.constexpr, A: tl.constexpr, PHASED: tl.constexpr):
    """Output coordinate of index i, and the source coordinate of its first tap."""
    if PHASED:
        target = phase + i * AXES[A][0]
        return target, (target + AXES[A][1] - first * AXES[A][2]) // AXES[A][0]
    else:
        return i, i * AXES[A][0] - AXES[A][1]


@triton.jit
def axis_extent(size, phase, AXES: tl.constexpr, A: tl.constexpr, PHASED: tl.constexpr):
    """How many output coordinates of an axis belong to a phase."""
    if PHASED:
        return tl.maximum((size - phase + AXES[A][0] - 1) // AXES[A][0], 0)
    else:
        return size + phase * 0


@triton.jit
def axis_step(AXES: tl.constexpr, A: tl.constexpr, PHASED: tl.constexpr):
    """What one further tap adds to the source coordinate and to the weight's tap index."""
    if PHASED:
        return -(AXES[A][2] // AXES[A][4]), AXES[A][5]
    else:
        return AXES[A][2], 1


@triton.jit
def inside(source, size, AXES: tl.constexpr, A: tl.constexpr, PHASED: tl.constexpr):
    """Whether a source coordinate exists; always, on a unit axis."""
    if not PHASED and AXES[A][3] == 1 and AXES[A][0] == 1 and AXES[A][1] == 0:
        return source >= 0
    else:
        return (source >= 0) & (source < size)


@triton.jit
def split_phase(phase, AXES: tl.constexpr, PHASED: tl.constexpr):
    """Phase of each axis from the flat phase."""
    if PHASED:
        return (
            phase // (AXES[1][0] * AXES[2][0]),
            (phase // AXES[2][0]) % AXES[1][0],
            phase % AXES[2][0],
        )
    else:
        return phase * 0, phase * 0, phase * 0


@triton.jit
def pixels(rows, phase, images, OD, OH, OW, AXES: tl.constexpr, PHASED: tl.constexpr):
    """Image, output coordinates, source coordinates and validity of the rows of a tile."""
    qd, qh, qw = split_phase(phase, AXES, PHASED)
    fd, nd = phase_taps(qd, AXES, 0, PHASED)
    fh, nh = phase_taps(qh, AXES, 1, PHASED)
    fw, nw = phase_taps(qw, AXES, 2, PHASED)
    ed = axis_extent(OD, qd, AXES, 0, PHASED)
    eh = axis_extent(OH, qh, AXES, 1, PHASED)
    ew = axis_extent(OW, qw, AXES, 2, PHASED)
    valid = rows < images * ed * eh * ew
    eh = tl.maximum(eh, 1)
    ew = tl.maximum(ew, 1)
    od, sd = axis_source((rows // (ew * eh)) % tl.maximum(ed, 1), qd, fd, AXES, 0, PHASED)
    oh, sh = axis_source((rows // ew) % eh, qh, fh, AXES, 1, PHASED)
    ow, sw = axis_source(rows % ew, qw, fw, AXES, 2, PHASED)
    image = rows // (ew * eh * tl.maximum(ed, 1))
    return image, od, oh, ow, sd, sh, sw, fd, fh, fw, nd, nh, nw, valid


@triton.jit
def conv_products(
    x,
    w,
    box,
    image,
    sd,
    sh,
    sw,
    fd,
    fh,
    fw,
    nd,
    nh,
    nw,
    valid,
    columns,
    group,
    N,
    C,
    XD,
    XH,
    XW,
    stride_xp,
    stride_xb,
    stride_xc,
    stride_xd,
    stride_xh,
    stride_xw,
    stride_wp,
    stride_wg,
    stride_wn,
    stride_wc,
    stride_wd,
    stride_wh,
    stride_ww,
    stride_bp,
    stride_bc,
    stride_bd,
    stride_bh,
    stride_bw,
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

    With DOT the columns are those of `group` and the channels go in blocks of BK.  Without (the
    depthwise form) the columns run over all groups, `group` is their number, and the channels of a
    group go one by one (BK is 1).
    """
    acc0 = tl.zeros((BM, BN), tl.float32)
    acc1 = acc0
    blocks = tl.maximum(tl.cdiv(C, BK), 1)
    count = nd * nh * nw
    valid = valid & (image * 0 + count > 0)
    nh = tl.maximum(nh, 1)
    nw = tl.maximum(nw, 1)
    steps = tl.maximum(nd, 1) * nh * nw * blocks
    n_iter = steps
    if STACKED:
        n_iter = 2 * steps
    n_iter = tl.maximum(n_iter, 1)
    tl.assume(n_iter > 0)
    step_d, tap_d = axis_step(AXES, 0, PHASED)
    step_h, tap_h = axis_step(AXES, 1, PHASED)
    step_w, tap_w = axis_step(AXES, 2, PHASED)
    x_image = x + image.to(tl.int64) * stride_xb
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
    w_columns = w + wide_group * stride_wg + in_group.to(tl.int64) * stride_wn
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
        tap = index // blocks
        iw = tap % nw
        ih = (tap // nw) % nh
        id = tap // (nw * nh)
        xd = sd + id * step_d
        xh = sh + ih * step_h
        xw = sw + iw * step_w
        seen = valid & inside(xd, XD, AXES, 0, PHASED)
        seen = seen & inside(xh, XH, AXES, 1, PHASED) & inside(xw, XW, AXES, 2, PHASED)
        position = (
            xd.to(tl.int64) * stride_xd + xh.to(tl.int64) * stride_xh + xw.to(tl.int64) * stride_xw
        )
        w_tap = (
            (fd + id * tap_d).to(tl.int64) * stride_wd
            + (fh + ih * tap_h).to(tl.int64) * stride_wh
            + (fw + iw * tap_w).to(tl.int64) * stride_ww
        )
        if DOT:
            c = block * BK + inner
            channel = own_group * C + c
            wide = c.to(tl.int64)
            x_mask = seen[:, None]
            w_mask = column_mask[None, :]
            if not EVEN:
                x_mask = x_mask & (c < C)[None, :]
                w_mask = w_mask & (c < C)[:, None]
            w_offsets = w_tap + wide[:, None] * stride_wc
        else:
            channel = own_group * C + block
            x_mask = seen[:, None] & column_mask[None, :]
            w_mask = column_mask[None, :]
            w_offsets = w_tap + block.to(tl.int64) * stride_wc
        wide_channel = channel.to(tl.int64)[None, :]
        x_pointers = (x_part + position)[:, None] + wide_channel * stride_xc
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
            spot = (
                xd.to(tl.int64) * stride_bd
                + xh.to(tl.int64) * stride_bh
                + xw.to(tl.int64) * stride_bw
            )
            bounds = (box + spot)[:, None] + wide_channel * stride_bc
            low = tl.load(bounds, mask=x_mask, other=0.0)
            high = tl.load(bounds + stride_bp, mask=x_mask, other=0.0)
            pixel = ((channel >= start) & (channel < stop))[None, :]
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
    OD,
    OH,
    OW,
    AXES: tl.constexpr,
    PHASED: tl.constexpr,
    DOT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Rows, columns, group and phase of a program."""
    per_phase = images * OD * OH * OW
    if PHASED:
        per_phase = (
            images * tl.cdiv(OD, AXES[0][0]) * tl.cdiv(OH, AXES[1][0]) * tl.cdiv(OW, AXES[2][0])
        )
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


@triton.jit
def conv_contraction(
    x,
    w,
    bias,
    box,
    z,
    y,
    images,
    groups,
    N,
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
    stride_wp,
    stride_wg,
    stride_wn,
    stride_wc,
    stride_wd,
    stride_wh,
    stride_ww,
    stride_bp,
    stride_bc,
    stride_bd,
    stride_bh,
    stride_bw,
    start,
    stop,
    stride_zp,
    stride_zb,
    stride_zc,
    stride_zd,
    stride_zh,
    stride_zw,
    gamma,
    WEIGHTS: tl.constexpr,
    TERMS: tl.constexpr,
    BOXED: tl.constexpr,
    REMASK: tl.constexpr,
    BIASED: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    OUTPUT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SAVE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    AXES: tl.constexpr,
    PHASED: tl.constexpr,
    DOT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """z [parts, images, groups * N, *O] and y of x [images, groups * C, *X].

    y has one part and z's strides.
    w is [parts, ...] with a stride for its group, output channel N, input channel C and three taps;
    bias [groups * N]; box [2, groups * C, *X].
    """
    rows, columns, column_mask, channels, group, phase = conv_tile(
        images, groups, N, OD, OH, OW, AXES, PHASED, DOT, BM, BN, GROUP
    )
    image, od, oh, ow, sd, sh, sw, fd, fh, fw, nd, nh, nw, valid = pixels(
        rows, phase, images, OD, OH, OW, AXES, PHASED
    )
    acc0, acc1 = conv_products(
        x, w, box, image, sd, sh, sw, fd, fh, fw, nd, nh, nw, valid, columns, group, N, C,
        XD, XH, XW, 0, stride_xb, stride_xc, stride_xd, stride_xh, stride_xw,
        stride_wp, stride_wg, stride_wn, stride_wc, stride_wd, stride_wh, stride_ww,
        stride_bp, stride_bc, stride_bd, stride_bh, stride_bw, start, stop, gamma,
        1, WEIGHTS, TERMS, False, BOXED, REMASK, OPERAND, PRECISION, EVEN, AXES, PHASED, DOT,
        BM, BN, BK,
    )  # fmt: skip
    bias_row = tl.zeros((1, BN), tl.float32)
    if BIASED:
        bias_row = tl.load(bias + channels, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    place = (
        image.to(tl.int64) * stride_zb
        + od.to(tl.int64) * stride_zd
        + oh.to(tl.int64) * stride_zh
        + ow.to(tl.int64) * stride_zw
    )
    offsets = place[:, None] + channels.to(tl.int64)[None, :] * stride_zc
    finish_contraction(
        acc0, acc1, bias_row, gamma, z, stride_zp, offsets, y, offsets,
        valid[:, None] & column_mask[None, :], BIAS, GATED, OUTPUT, ACTIVATION, SAVE,
    )  # fmt: skip


@triton.jit
def conv_adjoint(
    s,
    w,
    a,
    box,
    lower,
    out,
    images,
    a_images,
    groups,
    N,
    C,
    XD,
    XH,
    XW,
    OD,
    OH,
    OW,
    stride_sp,
    stride_sb,
    stride_sc,
    stride_sd,
    stride_sh,
    stride_sw,
    stride_wp,
    stride_wg,
    stride_wn,
    stride_wc,
    stride_wd,
    stride_wh,
    stride_ww,
    stride_ab,
    stride_ac,
    stride_ad,
    stride_ah,
    stride_aw,
    stride_bp,
    stride_bc,
    stride_bd,
    stride_bh,
    stride_bw,
    start,
    stop,
    stride_lp,
    stride_lb,
    stride_lc,
    stride_ld,
    stride_lh,
    stride_lw,
    stride_op,
    stride_ob,
    stride_oc,
    stride_od,
    stride_oh,
    stride_ow,
    gamma,
    epsilon,
    scale0,
    scale1,
    LEFTS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    TERMS: tl.constexpr,
    STACKED: tl.constexpr,
    FACTORS: tl.constexpr,
    READ: tl.constexpr,
    BOXED: tl.constexpr,
    ADD: tl.constexpr,
    LOWER: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    AXES: tl.constexpr,
    PHASED: tl.constexpr,
    DOT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out [parts, images, groups * N, *O] of s [parts, images, groups * C, *X].

    N, O are the channels and extents of the layer's input, C, X those of its output.  Image i
    belongs to image i % a_images of the input `a` and of the lower layer's z: K targets share what
    the forward pass saved.
    """
    rows, columns, column_mask, channels, group, phase = conv_tile(
        images, groups, N, OD, OH, OW, AXES, PHASED, DOT, BM, BN, GROUP
    )
    image, od, oh, ow, sd, sh, sw, fd, fh, fw, nd, nh, nw, valid = pixels(
        rows, phase, images, OD, OH, OW, AXES, PHASED
    )
    acc0, acc1 = conv_products(
        s, w, s, image, sd, sh, sw, fd, fh, fw, nd, nh, nw, valid, columns, group, N, C,
        XD, XH, XW, stride_sp, stride_sb, stride_sc, stride_sd, stride_sh, stride_sw,
        stride_wp, stride_wg, stride_wn, stride_wc, stride_wd, stride_wh, stride_ww,
        0, 0, 0, 0, 0, 0, 0, gamma, LEFTS, WEIGHTS, TERMS, STACKED, False, False,
        OPERAND, PRECISION, EVEN, AXES, PHASED, DOT, BM, BN, BK,
    )  # fmt: skip
    mask = valid[:, None] & column_mask[None, :]
    saved = (image % a_images).to(tl.int64)
    d = od.to(tl.int64)
    h = oh.to(tl.int64)
    v = ow.to(tl.int64)
    channel = channels.to(tl.int64)[None, :]
    value = acc0
    if READ:
        place = saved * stride_ab + d * stride_ad + h * stride_ah + v * stride_aw
        value = tl.load(a + place[:, None] + channel * stride_ac, mask=mask, other=0.0)
        value = value.to(tl.float32)
    low = value
    high = value
    pixel = mask
    if BOXED:
        place = d * stride_bd + h * stride_bh + v * stride_bw
        bounds = box + place[:, None] + channel * stride_bc
        low = tl.load(bounds, mask=mask, other=0.0)
        high = tl.load(bounds + stride_bp, mask=mask, other=0.0)
        pixel = ((channels >= start) & (channels < stop))[None, :]
    place = saved * stride_lb + d * stride_ld + h * stride_lh + v * stride_lw
    lower_offsets = place[:, None] + channel * stride_lc
    place = image.to(tl.int64) * stride_ob + d * stride_od + h * stride_oh + v * stride_ow
    finish_adjoint(
        acc0, acc1, value, low, high, pixel, gamma, out, stride_op,
        place[:, None] + channel * stride_oc, lower, stride_lp, lower_offsets,
        epsilon, scale0, scale1, mask, FACTORS, BOXED, ADD, LOWER,
    )  # fmt: skip
