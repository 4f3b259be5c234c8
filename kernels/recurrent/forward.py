"""Recurrent layers forward: hidden states, and alpha, beta of the relevance recurrence as they go.

`forward_scan` has the loop over steps inside, `forward_step` is one of them; README.md says when
which.
"""

from __future__ import annotations

import triton
import triton.language as tl

from relprop.kernels.recurrent.cells import cell
from relprop.kernels.recurrent.steps import (
    carry_offsets,
    carry_start,
    lengths_of,
    recurrent_products,
    saved_offsets,
    state_offsets,
    step_offsets,
    step_times,
    tile_mask,
    weight_tile,
)

__all__ = ["forward_scan", "forward_step"]


@triton.jit
def input_products(pre, k, length, rows, units, way, sizes, strides, mask, GATES: tl.constexpr):
    """The gates' input products at step k, [BM, BN] each."""
    H = sizes[2]
    _, time = step_times(k, length, way)
    place = pre + step_offsets(time, rows, units, way * GATES * H, strides)
    x0 = tl.load(place, mask=mask, other=0.0)
    x1 = x0
    x2 = x0
    x3 = x0
    if GATES > 1:
        x1 = tl.load(place + H, mask=mask, other=0.0)
        x2 = tl.load(place + 2 * H, mask=mask, other=0.0)
    if GATES > 3:
        x3 = tl.load(place + 3 * H, mask=mask, other=0.0)
    return x0, x1, x2, x3


@triton.jit
def advance(
    p,
    own,
    state,
    h,
    h_last,
    saved,
    k,
    length,
    rows,
    units,
    way,
    mask,
    sizes,
    strides_h,
    epsilon,
    CELL: tl.constexpr,
):
    """One step of a tile: writes h, alpha, beta, mix; returns the state and h, for valid rows."""
    valid, time = step_times(k, length, way)
    new, hidden, kept, share, reset = cell(p, own, state, epsilon, CELL)
    keep = valid[:, None]
    hidden = tl.where(keep, hidden, 0.0)
    tl.store(h + step_offsets(time, rows, units, way * sizes[2], strides_h), hidden, mask=mask)
    offsets = saved_offsets(k, rows, units, way, sizes)
    tl.store(saved[1] + offsets, tl.where(keep, share, 0.0), mask=mask)
    if CELL == "lstm" or CELL == "r_lstm" or CELL == "gru":
        tl.store(saved[0] + offsets, tl.where(keep, kept, 0.0), mask=mask)
    if CELL == "gru":
        tl.store(saved[2] + offsets, tl.where(keep, reset, 0.0), mask=mask)
    if CELL == "lstm" or CELL == "r_lstm":
        last = mask & (k == length - 1)[:, None]
        tl.store(h_last + state_offsets(rows, units, way, sizes), hidden, mask=last)
    return tl.where(keep, new, state), hidden


@triton.jit
def forward_scan(
    pre,
    w,
    bias,
    state,
    h0,
    carry,
    lengths,
    h,
    h_last,
    saved,
    sizes,
    carry_rows,
    strides_p,
    strides_h,
    epsilon,
    CELL: tl.constexpr,
    GATES: tl.constexpr,
    BIASED: tl.constexpr,
    LENGTHS: tl.constexpr,
    EVEN: tl.constexpr,
    HELD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDTH: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Every step of BM samples, all units in one tile.

    pre [T, B, ways * GATES * H] by strides, w [ways, GATES, WIDTH, WIDTH] and carry
    [2, ways, carry_rows, WIDTH] (h before the first step in its first half) padded with 0, h
    [T, B, ways * H] by strides, state and h0, h_last [ways, B, H], `saved` alpha, beta, mix, each
    [ways, T, B, H] in the order of steps.  HELD keeps the weights on the chip and h in registers;
    otherwise both are read step by step, h from `carry`.  STAGES: see `Form.loop_stages`.
    """
    T = sizes[0]
    H = sizes[2]
    way = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    units = tl.arange(0, WIDTH)
    mask = tile_mask(rows < sizes[1], units < H, EVEN)
    length = lengths_of(lengths, rows, sizes, LENGTHS)
    own = state_offsets(rows, units, way, sizes)
    now = tl.load(state + own, mask=mask, other=0.0)
    bias_row = tl.zeros((1, WIDTH), tl.float32)
    if BIASED:
        bias_row = tl.load(bias + way * H + units, mask=units < H, other=0.0)[None, :]
    w += way.to(tl.int64) * GATES * WIDTH * WIDTH
    if HELD:
        hidden = tl.load(h0 + own, mask=mask, other=0.0)
        inner = tl.arange(0, WIDTH)
        w0 = weight_tile(w, 0, units, inner, WIDTH)
        w1 = w0
        w2 = w0
        w3 = w0
        if GATES > 1:
            w1 = weight_tile(w, 1, units, inner, WIDTH)
            w2 = weight_tile(w, 2, units, inner, WIDTH)
        if GATES > 3:
            w3 = weight_tile(w, 3, units, inner, WIDTH)
        for k in tl.range(0, T, num_stages=STAGES):
            p0, p1, p2, p3 = input_products(
                pre, k, length, rows, units, way, sizes, strides_p, mask, GATES
            )
            x = hidden.to(w.dtype.element_ty)
            p0 = tl.dot(x, w0, p0, input_precision=PRECISION)
            n = p0
            if GATES > 1:
                p1 = tl.dot(x, w1, p1, input_precision=PRECISION)
            if GATES == 3:
                n = tl.dot(x, w2, input_precision=PRECISION) + bias_row
            if GATES > 3:
                p2 = tl.dot(x, w2, p2, input_precision=PRECISION)
                p3 = tl.dot(x, w3, p3, input_precision=PRECISION)
            now, hidden = advance(
                (p0, p1, p2, p3), n, now, h, h_last, saved, k, length, rows, units, way, mask,
                sizes, strides_h, epsilon, CELL,
            )  # fmt: skip
    else:
        p0, p1, p2, p3 = input_products(
            pre, 0, length, rows, units, way, sizes, strides_p, mask, GATES
        )
        for k in tl.range(0, T, num_stages=STAGES):
            before = carry + carry_start(k, way, carry_rows, WIDTH)
            after = carry + carry_start(k + 1, way, carry_rows, WIDTH)
            n = p2
            if GATES == 3:
                n = tl.zeros((BM, WIDTH), tl.float32) + bias_row
            p0, p1, n, p3 = recurrent_products(
                (p0, p1, n, p3), before, w, rows, units, WIDTH, GATES, PRECISION, BK
            )
            if GATES > 3:
                p2 = n
            now, hidden = advance(
                (p0, p1, p2, p3), n, now, h, h_last, saved, k, length, rows, units, way, mask,
                sizes, strides_h, epsilon, CELL,
            )  # fmt: skip
            place = after + carry_offsets(rows, units, WIDTH)
            tl.store(place, hidden.to(carry.dtype.element_ty), mask=mask)
            # the next step's input products arrive while this one ends
            more = mask & (tl.zeros(rows.shape, tl.int32) + k + 1 < T)[:, None]
            p0, p1, p2, p3 = input_products(
                pre, k + 1, length, rows, units, way, sizes, strides_p, more, GATES
            )
            # other threads of this program read h in the next step
            tl.debug_barrier()
    tl.store(state + own, now, mask=mask)


@triton.jit(do_not_specialize=["k"])
def forward_step(
    pre,
    w,
    bias,
    state,
    carry,
    lengths,
    h,
    h_last,
    saved,
    k,
    sizes,
    carry_rows,
    strides_p,
    strides_h,
    epsilon,
    CELL: tl.constexpr,
    GATES: tl.constexpr,
    BIASED: tl.constexpr,
    LENGTHS: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDTH: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Step k of BM samples and BN units; operands as in `forward_scan`."""
    H = sizes[2]
    way = tl.program_id(1)
    tiles_n = tl.cdiv(WIDTH, BN)
    rows = (tl.program_id(0) // tiles_n) * BM + tl.arange(0, BM)
    units = (tl.program_id(0) % tiles_n) * BN + tl.arange(0, BN)
    mask = tile_mask(rows < sizes[1], units < H, EVEN)
    length = lengths_of(lengths, rows, sizes, LENGTHS)
    w += way.to(tl.int64) * GATES * WIDTH * WIDTH
    x0, x1, x2, x3 = input_products(pre, k, length, rows, units, way, sizes, strides_p, mask, GATES)
    zeros = tl.zeros((BM, BN), tl.float32)
    before = carry + carry_start(k, way, carry_rows, WIDTH)
    p0, p1, n, p3 = recurrent_products(
        (zeros, zeros, zeros, zeros), before, w, rows, units, WIDTH, GATES, PRECISION, BK
    )
    p2 = x2 + n
    if BIASED:
        n += tl.load(bias + way * H + units, mask=units < H, other=0.0)[None, :]
    if GATES == 3:
        p2 = x2
    own = state_offsets(rows, units, way, sizes)
    now = tl.load(state + own, mask=mask, other=0.0)
    now, hidden = advance(
        (x0 + p0, x1 + p1, p2, x3 + p3), n, now, h, h_last, saved, k, length, rows, units, way,
        mask, sizes, strides_h, epsilon, CELL,
    )  # fmt: skip
    tl.store(state + own, now, mask=mask)
    after = carry + carry_start(k + 1, way, carry_rows, WIDTH)
    place = after + carry_offsets(rows, units, WIDTH)
    tl.store(place, hidden.to(carry.dtype.element_ty), mask=mask)
