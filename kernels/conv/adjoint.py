"""Relevance of a convolution's input: gathered from the outputs that it reaches."""

from __future__ import annotations

import triton
import triton.language as tl

from relprop.kernels.axes import place
from relprop.kernels.conv.index import pixels
from relprop.kernels.conv.products import conv_products, conv_tile
from relprop.kernels.epilogues import box_bounds, finish_adjoint

__all__ = ["conv_adjoint"]


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
    source,
    target,
    stride_sp,
    strides_s,
    stride_wp,
    stride_wg,
    strides_w,
    strides_a,
    stride_bp,
    strides_b,
    start,
    stop,
    stride_lp,
    strides_l,
    stride_op,
    strides_o,
    gamma,
    numbers,
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
    """out [parts, images, groups * N, *target] of s [parts, images, groups * C, *source].

    N, target are the channels and extents of the layer's input, C, source those of its output.
    Image i belongs to image i % a_images of the input `a` and of the lower layer's z: K targets
    share what the forward pass saved.  `numbers`: see `finish_relevance`.
    """
    rows, columns, column_mask, channels, group, phase = conv_tile(
        images, groups, N, target, AXES, PHASED, DOT, BM, BN, GROUP
    )
    image, at, origin, first, counts, valid = pixels(rows, phase, images, target, AXES, PHASED)
    acc0, acc1 = conv_products(
        s, w, s, image, origin, first, counts, valid, columns, group, N, C, source,
        stride_sp, strides_s, stride_wp, stride_wg, strides_w, 0, strides_s, 0, 0, gamma,
        LEFTS, WEIGHTS, TERMS, STACKED, False, False, OPERAND, PRECISION, EVEN, AXES, PHASED, DOT,
        BM, BN, BK,
    )  # fmt: skip
    mask = valid[:, None] & column_mask[None, :]
    saved = image % a_images
    value = acc0
    if READ:
        value = tl.load(a + place(saved, at, channels, strides_a), mask=mask, other=0.0)
        value = value.to(tl.float32)
    low = value
    high = value
    pixel = mask
    if BOXED:
        bounds = box + place(saved, at, channels, strides_b)
        low, high, pixel = box_bounds(bounds, stride_bp, mask, channels, start, stop)
    finish_adjoint(
        acc0, acc1, value, low, high, pixel, gamma, out, stride_op,
        place(image, at, channels, strides_o), lower, stride_lp,
        place(saved, at, channels, strides_l), numbers, mask, FACTORS, BOXED, ADD, LOWER,
    )  # fmt: skip
