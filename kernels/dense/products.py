"""Dense layers: `dense_contraction` gives z = f(a).g(W)^T, `dense_adjoint` f(a) * (s.g(W)).

Both run the same loop, over strided operands, so that a layer's weight serves both directions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from relprop.kernels.epilogues import box_bounds, finish_adjoint, finish_contraction
from relprop.kernels.tiles import accumulate, load_operand, tile_index

__all__ = ["dense_adjoint", "dense_contraction"]


@triton.jit
def dense_products(
    x,
    w,
    box,
    rows,
    columns,
    M,
    N,
    K,
    strides_x,
    strides_w,
    strides_b,
    box_rows,
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
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """The accumulators of one tile.  STACKED walks the operands' parts as one long contraction.

    Strides are of parts, of rows (of result features, for `w`) and of contracted features.
    """
    acc0 = tl.zeros((BM, BN), tl.float32)
    acc1 = acc0
    inner = tl.arange(0, BK)
    row_mask = (rows < M)[:, None]
    column_mask = (columns < N)[None, :]
    x_rows = x + rows.to(tl.int64)[:, None] * strides_x[1]
    w_columns = w + columns.to(tl.int64)[None, :] * strides_w[1]
    box_row = box + (rows % box_rows).to(tl.int64)[:, None] * strides_b[1]
    steps = tl.cdiv(K, BK)
    n_iter = steps
    if STACKED:
        n_iter = 2 * steps
    n_iter = tl.maximum(n_iter, 1)
    tl.assume(n_iter > 0)
    for step in range(0, n_iter):
        block = step
        x_part = x_rows
        w_part = w_columns
        if STACKED:
            part = step // steps
            block = step % steps
            x_part = x_rows + part.to(tl.int64) * strides_x[0]
            w_part = w_columns + part.to(tl.int64) * strides_w[0]
        k = block * BK + inner
        x_mask = row_mask
        w_mask = column_mask
        if not EVEN:
            x_mask = row_mask & (k < K)[None, :]
            w_mask = column_mask & (k < K)[:, None]
        wide = k.to(tl.int64)
        x0 = load_operand(x_part + wide[None, :] * strides_x[2], x_mask, OPERAND)
        w0 = load_operand(w_part + wide[:, None] * strides_w[2], w_mask, OPERAND)
        x1 = x0
        w1 = w0
        if LEFTS == 2 and not STACKED:
            x_part = x_rows + strides_x[0]
            x1 = load_operand(x_part + wide[None, :] * strides_x[2], x_mask, OPERAND)
        if WEIGHTS == 2 and not STACKED:
            w_part = w_columns + strides_w[0]
            w1 = load_operand(w_part + wide[:, None] * strides_w[2], w_mask, OPERAND)
        low = x0
        high = x0
        pixel = x_mask
        if BOXED:
            bounds = box_row + wide[None, :] * strides_b[2]
            low, high, pixel = box_bounds(bounds, strides_b[0], x_mask, k, start, stop)
        acc0, acc1 = accumulate(
            acc0, acc1, x0, x1, w0, w1, low, high, pixel, x_mask, gamma,
            TERMS, BOXED, REMASK, OPERAND, PRECISION, True,
        )  # fmt: skip
    return acc0, acc1


@triton.jit
def dense_contraction(
    x,
    w,
    bias,
    box,
    z,
    y,
    M,
    N,
    K,
    strides_x,
    strides_w,
    strides_b,
    box_rows,
    start,
    stop,
    stride_zp,
    stride_zm,
    stride_ym,
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
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """z [parts, M, N] and y [M, N] of x [M, K], w [parts, N, K], bias [N], box [2, rows, K]."""
    tile_m, tile_n = tile_index(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), GROUP)
    rows = tile_m * BM + tl.arange(0, BM)
    columns = tile_n * BN + tl.arange(0, BN)
    acc0, acc1 = dense_products(
        x, w, box, rows, columns, M, N, K, strides_x, strides_w, strides_b, box_rows, start, stop,
        gamma, 1, WEIGHTS, TERMS, False, BOXED, REMASK, OPERAND, PRECISION, EVEN, BM, BN, BK,
    )  # fmt: skip
    bias_row = tl.zeros((1, BN), tl.float32)
    if BIASED:
        bias_row = tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    # two strides, equal as they are: one tile of offsets for both would not fit in registers
    wide_rows = rows.to(tl.int64)[:, None]
    mask = (rows < M)[:, None] & (columns < N)[None, :]
    finish_contraction(
        acc0, acc1, bias_row, gamma, z, stride_zp, wide_rows * stride_zm + columns[None, :],
        y, wide_rows * stride_ym + columns[None, :], mask, BIAS, GATED, OUTPUT, ACTIVATION, SAVE,
    )  # fmt: skip


@triton.jit
def dense_adjoint(
    s,
    w,
    a,
    box,
    lower,
    out,
    M,
    N,
    K,
    a_rows,
    strides_s,
    strides_w,
    strides_a,
    strides_b,
    box_rows,
    start,
    stop,
    stride_lp,
    stride_lm,
    stride_op,
    stride_om,
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
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out [M, N], or [parts, M, N] below a fused quotient, of s [parts, M, K] and w [parts, K, N].

    Row m belongs to row m % a_rows of the input `a` and of the lower layer's z: K targets share
    what the forward pass saved.  `numbers`: see `finish_relevance`.
    """
    tile_m, tile_n = tile_index(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), GROUP)
    rows = tile_m * BM + tl.arange(0, BM)
    columns = tile_n * BN + tl.arange(0, BN)
    acc0, acc1 = dense_products(
        s, w, s, rows, columns, M, N, K, strides_s, strides_w, strides_s, 1, 0, 0, gamma,
        LEFTS, WEIGHTS, TERMS, STACKED, False, False, OPERAND, PRECISION, EVEN, BM, BN, BK,
    )  # fmt: skip
    mask = (rows < M)[:, None] & (columns < N)[None, :]
    saved_rows = (rows % a_rows).to(tl.int64)[:, None]
    wide = columns.to(tl.int64)[None, :]
    value = acc0
    if READ:
        value = tl.load(a + saved_rows * strides_a[0] + wide * strides_a[1], mask=mask, other=0.0)
        value = value.to(tl.float32)
    low = value
    high = value
    pixel = mask
    if BOXED:
        box_row = box + (rows % box_rows).to(tl.int64)[:, None] * strides_b[1]
        bounds = box_row + wide * strides_b[2]
        low, high, pixel = box_bounds(bounds, strides_b[0], mask, columns, start, stop)
    out_offsets = rows.to(tl.int64)[:, None] * stride_om + wide
    finish_adjoint(
        acc0, acc1, value, low, high, pixel, gamma, out, stride_op, out_offsets,
        lower, stride_lp, saved_rows * stride_lm + wide, numbers, mask,
        FACTORS, BOXED, ADD, LOWER,
    )  # fmt: skip
