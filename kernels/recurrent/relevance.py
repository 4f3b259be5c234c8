"""Relevance back through the steps of a recurrent layer: s_t, from which R_x is one product.

With r that of the state and u that of the hidden state, both multiplied on their way to step k,

    t_k = r + u + R_k,  s_k = beta_k t_k;   r <- alpha_k t_k,  u <- h_{k-1} ((mix_k s_k) W_rec).

Rows are targets times samples, row m sample m % B.  In `saved` are alpha, beta, mix.
"""

from __future__ import annotations

import triton
import triton.language as tl

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

__all__ = ["relevance_scan", "relevance_step"]


@triton.jit
def hidden_before(h, h0, k, length, samples, units, way, mask, sizes, strides):
    """h before step k: h0 before the first."""
    started = (tl.zeros(length.shape, tl.int32) + k > 0)[:, None]
    _, time = step_times(k - 1, length, way)
    place = h + step_offsets(time, samples, units, way * sizes[2], strides)
    value = tl.load(place, mask=mask & started, other=0.0)
    own = h0 + state_offsets(samples, units, way, sizes)
    return value + tl.load(own, mask=mask & (started == 0), other=0.0)


@triton.jit
def target_offsets(targets, time, samples, units, first, strides):
    """`step_offsets` in a tensor with a leading axis of targets, whose stride comes first."""
    offsets = step_offsets(time, samples, units, first, strides[1:])
    return (targets.to(tl.int64) * strides[0])[:, None] + offsets


@triton.jit
def share(
    r,
    u,
    above,
    saved,
    s,
    k,
    length,
    samples,
    targets,
    units,
    way,
    mask,
    sizes,
    strides_a,
    strides_s,
    ABOVE: tl.constexpr,
    STATE: tl.constexpr,
    MIX: tl.constexpr,
):
    """One step of a tile: writes s; returns what r becomes and the mixed s."""
    valid, time = step_times(k, length, way)
    keep = valid[:, None]
    total = r + u
    if ABOVE:
        place = above + target_offsets(targets, time, samples, units, way * sizes[2], strides_a)
        total += tl.load(place, mask=mask, other=0.0).to(tl.float32)
    offsets = saved_offsets(k, samples, units, way, sizes)
    own = tl.load(saved[1] + offsets, mask=mask, other=0.0) * total
    own = tl.where(keep, own, 0.0)
    place = s + target_offsets(targets, time, samples, units, way * sizes[2], strides_s)
    tl.store(place, own, mask=mask)
    left = tl.zeros(total.shape, tl.float32)
    if STATE:
        left = tl.load(saved[0] + offsets, mask=mask, other=0.0) * total
    if MIX:
        own = own * tl.load(saved[2] + offsets, mask=mask, other=0.0)
    return tl.where(keep, left, r), own


@triton.jit
def product(carry, w, rows, units, WIDTH: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr):
    """[rows, units] of carry [rows, WIDTH] times w [WIDTH, WIDTH]."""
    v = tl.zeros((rows.shape[0], units.shape[0]), tl.float32)
    v, _, _, _ = recurrent_products((v, v, v, v), carry, w, rows, units, WIDTH, 1, PRECISION, BK)
    return v


@triton.jit
def initial_offsets(targets, samples, units, way, sizes):
    """[rows, units] in relevance of states, [K, ways, B, H]."""
    row = ((targets.to(tl.int64) * tl.num_programs(1) + way) * sizes[1] + samples) * sizes[2]
    return row[:, None] + units[None, :]


@triton.jit
def relevance_scan(
    above,
    h,
    h0,
    saved,
    w,
    r_last,
    r_cells,
    carry,
    lengths,
    s,
    r_h0,
    r_c0,
    sizes,
    ROWS,
    carry_rows,
    strides_a,
    strides_h,
    strides_s,
    ABOVE: tl.constexpr,
    LAST: tl.constexpr,
    CELLS: tl.constexpr,
    GIVEN: tl.constexpr,
    STATE: tl.constexpr,
    MIX: tl.constexpr,
    LENGTHS: tl.constexpr,
    EVEN: tl.constexpr,
    HELD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDTH: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Every step of BM rows, last to first, all units in one tile.

    above [K, T, B, ways * H], h [T, B, ways * H] and s, like above, by strides; w [ways, WIDTH,
    WIDTH], the transposed recurrent weight, and carry [2, ways, carry_rows, WIDTH] padded with 0;
    h0 [ways, B, H]; r_last, r_cells, r_h0, r_c0 [K, ways, B, H].  CELLS: the state is a cell, its
    relevance GIVEN or 0; STATE: it is carried on (not an RNN's).  STAGES: see `Form.loop_stages`.
    """
    T = sizes[0]
    way = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    samples = rows % sizes[1]
    targets = rows // sizes[1]
    units = tl.arange(0, WIDTH)
    mask = tile_mask(rows < ROWS, units < sizes[2], EVEN)
    length = lengths_of(lengths, samples, sizes, LENGTHS)
    own = initial_offsets(targets, samples, units, way, sizes)
    r = tl.zeros((BM, WIDTH), tl.float32)
    u = r
    if LAST:
        u = tl.load(r_last + own, mask=mask, other=0.0)
    if GIVEN:
        r = tl.load(r_cells + own, mask=mask, other=0.0)
    w += way.to(tl.int64) * WIDTH * WIDTH
    if HELD:
        held = weight_tile(w, 0, units, tl.arange(0, WIDTH), WIDTH)
    for j in tl.range(0, T, num_stages=STAGES):
        k = T - 1 - j
        before = hidden_before(h, h0, k, length, samples, units, way, mask, sizes, strides_h)
        r, mixed = share(
            r, u, above, saved, s, k, length, samples, targets, units, way, mask, sizes,
            strides_a, strides_s, ABOVE, STATE, MIX,
        )  # fmt: skip
        if HELD:
            v = tl.dot(mixed.to(w.dtype.element_ty), held, input_precision=PRECISION)
        else:
            half = carry + carry_start(k, way, carry_rows, WIDTH)
            place = half + carry_offsets(rows, units, WIDTH)
            tl.store(place, mixed.to(carry.dtype.element_ty), mask=mask)
            # other threads of this program read it next
            tl.debug_barrier()
            v = product(half, w, rows, units, WIDTH, PRECISION, BK)
        u = tl.where((k < length)[:, None], before * v, u)
    if CELLS:
        tl.store(r_h0 + own, u, mask=mask)
        tl.store(r_c0 + own, r, mask=mask)
    else:
        tl.store(r_h0 + own, u + r, mask=mask)


@triton.jit(do_not_specialize=["k"])
def relevance_step(
    above,
    h,
    h0,
    saved,
    w,
    r_last,
    state,
    carry,
    lengths,
    s,
    r_h0,
    k,
    sizes,
    ROWS,
    carry_rows,
    strides_a,
    strides_h,
    strides_s,
    ABOVE: tl.constexpr,
    LAST: tl.constexpr,
    CELLS: tl.constexpr,
    STATE: tl.constexpr,
    MIX: tl.constexpr,
    LENGTHS: tl.constexpr,
    EVEN: tl.constexpr,
    FINAL: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDTH: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Step k of BM rows and BN units, k = -1 (FINAL) writing what reaches the initial states.

    `state` [K, ways, B, H] is r, that of the last cells before the first launch, that of the
    initial ones after the last; other operands as in `relevance_scan`.
    """
    way = tl.program_id(1)
    tiles_n = tl.cdiv(WIDTH, BN)
    rows = (tl.program_id(0) // tiles_n) * BM + tl.arange(0, BM)
    units = (tl.program_id(0) % tiles_n) * BN + tl.arange(0, BN)
    samples = rows % sizes[1]
    targets = rows // sizes[1]
    mask = tile_mask(rows < ROWS, units < sizes[2], EVEN)
    length = lengths_of(lengths, samples, sizes, LENGTHS)
    own = initial_offsets(targets, samples, units, way, sizes)
    # what step k + 1 left, without a negative remainder
    source = carry + carry_start(k + 3, way, carry_rows, WIDTH)
    w += way.to(tl.int64) * WIDTH * WIDTH
    v = product(source, w, rows, units, WIDTH, PRECISION, BK)
    before = hidden_before(h, h0, k + 1, length, samples, units, way, mask, sizes, strides_h)
    u = tl.where((k + 1 < length)[:, None], before * v, 0.0)
    if LAST:
        u += tl.load(r_last + own, mask=mask & (k + 1 >= length)[:, None], other=0.0)
    r = tl.load(state + own, mask=mask, other=0.0)
    if FINAL:
        if CELLS:
            tl.store(r_h0 + own, u, mask=mask)
        else:
            tl.store(r_h0 + own, u + r, mask=mask)
    else:
        r, mixed = share(
            r, u, above, saved, s, k, length, samples, targets, units, way, mask, sizes,
            strides_a, strides_s, ABOVE, STATE, MIX,
        )  # fmt: skip
        tl.store(state + own, r, mask=mask)
        half = carry + carry_start(k, way, carry_rows, WIDTH)
        place = half + carry_offsets(rows, units, WIDTH)
        tl.store(place, mixed.to(carry.dtype.element_ty), mask=mask)
