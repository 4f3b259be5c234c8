"""Dense layers: `dense_contraction` gives z = f(a).g(W)^T, `dense_adjoint` f(a) * (s.g(W)).

Both run the same loop, over strided operands, so that a layer's weight serves both directions.
"""

from __future__ import annotations

from math import prod

import triton
import triton.language as tl
from torch import Tensor

from relprop.kernels import library
from relprop.kernels.modifiers import ACTIVATIONS, ATOMS, BOX_ATOMS
from relprop.kernels.operands import AdjointCall, ContractionCall, LeftBox, Pass
from relprop.kernels.tiles import (
    FUSION,
    accumulate,
    finish_adjoint,
    finish_contraction,
    load_operand,
    operand_type,
    remask,
    terms,
    tile_index,
)
from relprop.kernels.tiling import Demand, Tile
from relprop.kernels.tuning import launch

__all__ = ["contract", "dense_adjoint", "dense_contraction", "propagate"]


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
    stride_xp,
    stride_xm,
    stride_xk,
    stride_wp,
    stride_wn,
    stride_wk,
    stride_bp,
    stride_bm,
    stride_bk,
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
    """The accumulators of one tile.  STACKED walks the operands' parts as one long contraction."""
    acc0 = tl.zeros((BM, BN), tl.float32)
    acc1 = acc0
    inner = tl.arange(0, BK)
    row_mask = (rows < M)[:, None]
    column_mask = (columns < N)[None, :]
    x_rows = x + rows.to(tl.int64)[:, None] * stride_xm
    w_columns = w + columns.to(tl.int64)[None, :] * stride_wn
    box_row = box + (rows % box_rows).to(tl.int64)[:, None] * stride_bm
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
            x_part = x_rows + part.to(tl.int64) * stride_xp
            w_part = w_columns + part.to(tl.int64) * stride_wp
        k = block * BK + inner
        x_mask = row_mask
        w_mask = column_mask
        if not EVEN:
            x_mask = row_mask & (k < K)[None, :]
            w_mask = column_mask & (k < K)[:, None]
        wide = k.to(tl.int64)
        x0 = load_operand(x_part + wide[None, :] * stride_xk, x_mask, OPERAND)
        w0 = load_operand(w_part + wide[:, None] * stride_wk, w_mask, OPERAND)
        x1 = x0
        w1 = w0
        if LEFTS == 2 and not STACKED:
            x1 = load_operand(x_rows + stride_xp + wide[None, :] * stride_xk, x_mask, OPERAND)
        if WEIGHTS == 2 and not STACKED:
            w1 = load_operand(w_columns + stride_wp + wide[:, None] * stride_wk, w_mask, OPERAND)
        low = x0
        high = x0
        pixel = x_mask
        if BOXED:
            low = tl.load(box_row + wide[None, :] * stride_bk, mask=x_mask, other=0.0)
            high = tl.load(box_row + stride_bp + wide[None, :] * stride_bk, mask=x_mask, other=0.0)
            pixel = ((k >= start) & (k < stop))[None, :]
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
    stride_xm,
    stride_xk,
    stride_wp,
    stride_wn,
    stride_wk,
    stride_bp,
    stride_bm,
    stride_bk,
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
        x, w, box, rows, columns, M, N, K, 0, stride_xm, stride_xk, stride_wp, stride_wn,
        stride_wk, stride_bp, stride_bm, stride_bk, box_rows, start, stop, gamma,
        1, WEIGHTS, TERMS, False, BOXED, REMASK, OPERAND, PRECISION, EVEN, BM, BN, BK,
    )  # fmt: skip
    bias_row = tl.zeros((1, BN), tl.float32)
    if BIASED:
        bias_row = tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
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
    stride_sp,
    stride_sm,
    stride_wp,
    stride_wn,
    stride_wk,
    stride_am,
    stride_an,
    stride_bp,
    stride_bm,
    stride_bn,
    box_rows,
    start,
    stop,
    stride_lp,
    stride_lm,
    stride_op,
    stride_om,
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
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out [M, N], or [parts, M, N] below a fused quotient, of s [parts, M, K] and w [parts, K, N].

    Row m belongs to row m % a_rows of the input `a` and of the lower layer's z: K targets share
    what the forward pass saved.
    """
    tile_m, tile_n = tile_index(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), GROUP)
    rows = tile_m * BM + tl.arange(0, BM)
    columns = tile_n * BN + tl.arange(0, BN)
    acc0, acc1 = dense_products(
        s, w, s, rows, columns, M, N, K, stride_sp, stride_sm, 1, stride_wp, stride_wn,
        stride_wk, 0, 0, 0, 1, 0, 0, gamma, LEFTS, WEIGHTS, TERMS, STACKED, False, False,
        OPERAND, PRECISION, EVEN, BM, BN, BK,
    )  # fmt: skip
    mask = (rows < M)[:, None] & (columns < N)[None, :]
    saved_rows = (rows % a_rows).to(tl.int64)[:, None]
    wide = columns.to(tl.int64)[None, :]
    value = acc0
    if READ:
        value = tl.load(a + saved_rows * stride_am + wide * stride_an, mask=mask, other=0.0)
        value = value.to(tl.float32)
    low = value
    high = value
    pixel = mask
    if BOXED:
        box_row = box + (rows % box_rows).to(tl.int64)[:, None] * stride_bm
        low = tl.load(box_row + wide * stride_bn, mask=mask, other=0.0)
        high = tl.load(box_row + stride_bp + wide * stride_bn, mask=mask, other=0.0)
        pixel = ((columns >= start) & (columns < stop))[None, :]
    out_offsets = rows.to(tl.int64)[:, None] * stride_om + wide
    finish_adjoint(
        acc0, acc1, value, low, high, pixel, gamma, out, stride_op, out_offsets,
        lower, stride_lp, saved_rows * stride_lm + wide, epsilon, scale0, scale1, mask,
        FACTORS, BOXED, ADD, LOWER,
    )  # fmt: skip


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with all axes but the last flattened (a view wherever strides allow it)."""
    return tensor.reshape(prod(tensor.shape[:-1]), tensor.shape[-1])


def contract(call: ContractionCall) -> None:
    """Launch `dense_contraction`; `call.z` and `call.y` are contiguous and receive the result."""
    program, x = call.program, _rows(call.a)
    weight = call.weight
    (m, k), n = x.shape, weight.tensor.shape[1]
    if m * n == 0:
        return
    products = program.products + (program.completion if call.output else ())
    operand, precision = operand_type(weight.source, call.precision)
    boxed = program.box is not None
    box = LeftBox.of(program, call.a, feature_axis=-1)
    box_rows = box.tensor.reshape(2, prod(box.tensor.shape[1:-1]), k) if boxed else x[None]
    accumulators = 1 + max(p.accumulator for p in products)
    demand = Demand(
        m, n, k, operand, precision, accumulators, weight.parts, 1, x.element_size(),
        registers=32 if boxed else 64 if program.mode == "gamma" else 128,
        kernel="dense_contraction",
    )  # fmt: skip

    def run(tile: Tile) -> None:
        dense_contraction[(_programs(m, n, tile),)](
            x, weight.tensor, call.bias if call.bias is not None else x, box_rows,
            call.z if call.z is not None else x, call.y if call.y is not None else x,
            m, n, k, *x.stride(), *weight.tensor.stride(), *box_rows.stride(), box_rows.shape[1],
            box.start, box.stop,
            call.z.stride(0) if call.z is not None else 0, n, n, program.gamma,
            WEIGHTS=weight.parts, TERMS=terms(products, weight.atoms, boxed), BOXED=boxed,
            REMASK=remask(products), BIASED=call.bias is not None,
            BIAS=tuple(ATOMS[b.kind] for b in program.bias), GATED=program.mode == "gamma",
            OUTPUT=call.output, ACTIVATION=ACTIVATIONS[call.activation], SAVE=call.z is not None,
            OPERAND=operand, PRECISION=precision, EVEN=k % tile.k == 0 and k > 0,
            BM=tile.m, BN=tile.n, BK=tile.k, GROUP=tile.group,
            num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=FUSION,
        )  # fmt: skip

    details = f"products={len(products)} columns={x.stride(1)}"
    launch(demand, call.tile, x, run, library.contraction(call), details=details)


def propagate(call: AdjointCall) -> None:
    """Launch `dense_adjoint`, once for every two input factors of the rule."""
    a, s, out = _rows(call.a), _part_rows(call.s), _part_rows(call.out)
    weight, program = call.weight, call.program
    (_, m, k), n = s.shape, a.shape[1]
    if m * n == 0:
        return
    box = LeftBox.of(program, call.a, feature_axis=-1)
    box_rows = box.tensor.reshape(2, prod(box.tensor.shape[1:-1]), n) if box.boxed else a[None]
    lower = a[None]
    if call.lower is not None:
        lower = call.lower.z
        if not call.lower.program.own_input:
            lower = lower[(slice(None), *(slice(0, 1),) * (lower.dim() - 2))]
        lower = lower.reshape(len(lower), -1, n)
    for step in call.passes():
        operand, precision = operand_type(weight.source, call.precision, adjoint=True)
        lefts, parts = (1, 1) if step.stacked else (s.shape[0], weight.parts)
        registers = (32 if step.quotients == 2 else 128) // lefts
        demand = Demand(
            m, n, k, operand, precision, len(step.factors), parts, lefts, registers=registers,
            kernel="dense_adjoint", quotients=step.quotients,
        )  # fmt: skip

        def run(
            tile: Tile, step: Pass = step, operand: object = operand, precision: str = precision
        ) -> None:
            _, w_n, w_k = weight.tensor.stride()
            dense_adjoint[(_programs(m, n, tile),)](
                s, weight.tensor, a, box_rows, lower, out, m, n, k, max(a.shape[0], 1),
                s.stride(0), s.stride(1), weight.tensor.stride(0), w_k, w_n, *a.stride(),
                *box_rows.stride(), box_rows.shape[1], box.start, box.stop,
                lower.stride(0), n if lower.shape[1] > 1 else 0, out.stride(0), out.stride(1),
                program.gamma, *call.lower_numbers(),
                LEFTS=s.shape[0], WEIGHTS=weight.parts,
                TERMS=terms(step.products, weight.atoms, False), STACKED=step.stacked,
                FACTORS=tuple((BOX_ATOMS if box.boxed else ATOMS)[f] for f in step.factors),
                READ=step.reads, BOXED=box.boxed, ADD=step.add, LOWER=step.lower,
                OPERAND=operand, PRECISION=precision, EVEN=k % tile.k == 0 and k > 0,
                BM=tile.m, BN=tile.n, BK=tile.k, GROUP=tile.group,
                num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=FUSION,
            )  # fmt: skip

        details = f"products={len(step.products)} lower={step.lower}"
        launch(demand, call.tile, s, run, library.adjoint(call, step), not step.add, details)


def _part_rows(tensor: Tensor) -> Tensor:
    """Parts `[parts, ..., features]` with the axes between flattened, features side by side."""
    rows = tensor.reshape(tensor.shape[0], prod(tensor.shape[1:-1]), tensor.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def _programs(m: int, n: int, tile: Tile) -> int:
    return triton.cdiv(m, tile.m) * triton.cdiv(n, tile.n)
