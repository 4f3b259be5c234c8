"""z and y of a convolution of one to three dimensions."""

from __future__ import annotations

import triton
import triton.language as tl

from relprop.kernels.axes import place
from relprop.kernels.conv.index import pixels
from relprop.kernels.conv.products import conv_products, conv_tile
from relprop.kernels.epilogues import finish_contraction

__all__ = ["conv_contraction"]


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
    source,
    target,
    strides_x,
    stride_wp,
    stride_wg,
    strides_w,
    stride_bp,
    strides_b,
    start,
    stop,
    stride_zp,
    strides_z,
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
    """z [parts, images, groups * N, *target] and y of x [images, groups * C, *source].

    y has one part and z's strides.
    w is [parts, ...] with a stride for its group, output channel N, input channel C and three taps;
    bias [groups * N]; box [2, groups * C, *source].
    """
    rows, columns, column_mask, channels, group, phase = conv_tile(
        images, groups, N, target, AXES, PHASED, DOT, BM, BN, GROUP
    )
    image, at, origin, first, counts, valid = pixels(rows, phase, images, target, AXES, PHASED)
    acc0, acc1 = conv_products(
        x, w, box, image, origin, first, counts, valid, columns, group, N, C, source,
        0, strides_x, stride_wp, stride_wg, strides_w, stride_bp, strides_b, start, stop, gamma,
        1, WEIGHTS, TERMS, False, BOXED, REMASK, OPERAND, PRECISION, EVEN, AXES, PHASED, DOT,
        BM, BN, BK,
    )  # fmt: skip
    bias_row = tl.zeros((1, BN), tl.float32)
    if BIASED:
        bias_row = tl.load(bias + channels, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    offsets = place(image, at, channels, strides_z)
    finish_contraction(
        acc0, acc1, bias_row, gamma, z, stride_zp, offsets, y, offsets,
        valid[:, None] & column_mask[None, :], BIAS, GATED, OUTPUT, ACTIVATION, SAVE,
    )  # fmt: skip
