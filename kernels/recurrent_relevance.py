"""Relevance back through the steps of a recurrent layer: s_t, from which R_x is one product.

With r that of the state and u that of the hidden state, both multiplied on their way to step k,

    t_k = r + u + R_k,  s_k = beta_k t_k;   r <- alpha_k t_k,  u <- h_{k-1} ((mix_k s_k) W_rec).

Directions and steps as in `recurrent.py`; rows are targets times samples, row m sample m % B.
"""

from __future__ import annotations

import triton
import triton.language as tl

from relprop.kernels.recurrent import (
    lengths_of,
    recurrent_products,
    step_times,
    tile_mask,
    weight_tile,
)

__all__ = ["relevance_scan", "relevance_step"]


@triton.jit
def hidden_before(
    h, h0, k, length, samples, units, way, mask, B, H, stride_ht, stride_hb
):  # fmt: skip
    """h before step k: h0 before the first."""
    started = (tl.zeros(length.shape, tl.int32) + k > 0)[:, None]
    _, time = step_times(k - 1, length, way)
    row = time.to(tl.int64) * stride_ht + samples.to(tl.int64) * stride_hb + way * H
    value = tl.load(h + row[:, None] + units[None, :], mask=mask & started, other=0.0)
    own = ((way * B + samples.to(tl.int64)) * H)[:, None] + units[None, :]
    return value + tl.load(h0 + own, mask=mask & (started == 0), other=0.0)


@triton.jit
def share(
    r,
    u,
    above,
    alpha,
    beta,
    mix,
    s,
    k,
    length,
    samples,
    targets,
    units,
    way,
    mask,
    T,
    B,
    H,
    stride_ak,
    stride_at,
    stride_ab,
    stride_sk,
    stride_st,
    stride_sb,
    ABOVE: tl.constexpr,
    STATE: tl.constexpr,
    MIX: tl.constexpr,
):
    """One step of a tile: writes s; returns what r becomes and the mixed s."""
    valid, time = step_times(k, length, way)
    keep = valid[:, None]
    total = r + u
    wide = samples.to(tl.int64)
    if ABOVE:
        row = targets.to(tl.int64) * stride_ak + time.to(tl.int64) * stride_at
        row += wide * stride_ab + way * H
        place = above + row[:, None] + units[None, :]
        total += tl.load(place, mask=mask, other=0.0).to(tl.float32)
    saved = (((way * T + k).to(tl.int64) * B + wide) * H)[:, None] + units[None, :]
    own = tl.load(beta + saved, mask=mask, other=0.0) * total
    own = tl.where(keep, own, 0.0)
    row = targets.to(tl.int64) * stride_sk + time.to(tl.int64) * stride_st
    row += wide * stride_sb + way * H
    tl.store(s + row[:, None] + units[None, :], own, mask=mask)
    left = tl.zeros(total.shape, tl.float32)
    if STATE:
        left = tl.load(alpha + saved, mask=mask, other=0.0) * total
    if MIX:
        own = own * tl.load(mix + saved, mask=mask, other=0.0)
    return tl.where(keep, left, r), own


@triton.jit
def relevance_scan(
    above,
    h,
    h0,
    alpha,
    beta,
    mix,
    w,
    r_last,
    r_cells,
    carry,
    lengths,
    s,
    r_h0,
    r_c0,
    T,
    B,
    H,
    ROWS,
    carry_rows,
    stride_ak,
    stride_at,
    stride_ab,
    stride_ht,
    stride_hb,
    stride_sk,
    stride_st,
    stride_sb,
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
    relevance GIVEN or 0; STATE: it is carried on (not an RNN's).
    """
    way = tl.program_id(1)
    ways = tl.num_programs(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    samples = rows % B
    targets = rows // B
    units = tl.arange(0, WIDTH)
    mask = tile_mask(rows < ROWS, units < H, EVEN)
    length = lengths_of(lengths, samples, T, B, LENGTHS)
    own = ((targets.to(tl.int64) * ways + way) * B + samples) * H
    own = own[:, None] + units[None, :]
    r = tl.zeros((BM, WIDTH), tl.float32)
    u = r
    if LAST:
        u = tl.load(r_last + own, mask=mask, other=0.0)
    if GIVEN:
        r = tl.load(r_cells + own, mask=mask, other=0.0)
    w += way * WIDTH * WIDTH
    if HELD:
        held = weight_tile(w, units, tl.arange(0, WIDTH), WIDTH)
        for j in tl.range(0, T, num_stages=STAGES):
            k = T - 1 - j
            before = hidden_before(
                h, h0, k, length, samples, units, way, mask, B, H, stride_ht, stride_hb
            )
            r, mixed = share(
                r, u, above, alpha, beta, mix, s, k, length, samples, targets, units, way, mask,
                T, B, H, stride_ak, stride_at, stride_ab, stride_sk, stride_st, stride_sb,
                ABOVE, STATE, MIX,
            )  # fmt: skip
            v = tl.dot(mixed.to(w.dtype.element_ty), held, input_precision=PRECISION)
            u = tl.where((k < length)[:, None], before * v, u)
    else:
        # one stage: a load of carry must not move ahead of the step that stores it
        for j in tl.range(0, T, num_stages=1):
            k = T - 1 - j
            before = hidden_before(
                h, h0, k, length, samples, units, way, mask, B, H, stride_ht, stride_hb
            )
            r, mixed = share(
                r, u, above, alpha, beta, mix, s, k, length, samples, targets, units, way, mask,
                T, B, H, stride_ak, stride_at, stride_ab, stride_sk, stride_st, stride_sb,
                ABOVE, STATE, MIX,
            )  # fmt: skip
            half = ((k % 2) * ways + way).to(tl.int64) * carry_rows * WIDTH
            place = carry + half + rows.to(tl.int64)[:, None] * WIDTH + units[None, :]
            tl.store(place, mixed.to(carry.dtype.element_ty), mask=mask)
            # other threads of this program read it next
            tl.debug_barrier()
            v = tl.zeros((BM, WIDTH), tl.float32)
            v, _, _, _ = recurrent_products(
                v, v, v, v, carry + half, w, rows, units, WIDTH, 1, PRECISION, BK
            )
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
    alpha,
    beta,
    mix,
    w,
    r_last,
    state,
    carry,
    lengths,
    s,
    r_h0,
    k,
    T,
    B,
    H,
    ROWS,
    carry_rows,
    stride_ak,
    stride_at,
    stride_ab,
    stride_ht,
    stride_hb,
    stride_sk,
    stride_st,
    stride_sb,
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
    ways = tl.num_programs(1)
    tiles_n = tl.cdiv(WIDTH, BN)
    rows = (tl.program_id(0) // tiles_n) * BM + tl.arange(0, BM)
    units = (tl.program_id(0) % tiles_n) * BN + tl.arange(0, BN)
    samples = rows % B
    targets = rows // B
    mask = tile_mask(rows < ROWS, units < H, EVEN)
    length = lengths_of(lengths, samples, T, B, LENGTHS)
    own = ((targets.to(tl.int64) * ways + way) * B + samples) * H
    own = own[:, None] + units[None, :]
    # what step k + 1 left: (k + 1) % 2, without a negative remainder
    source = (((k + 3) % 2) * ways + way).to(tl.int64) * carry_rows * WIDTH
    w += way.to(tl.int64) * WIDTH * WIDTH
    v = tl.zeros((BM, BN), tl.float32)
    v, _, _, _ = recurrent_products(
        v, v, v, v, carry + source, w, rows, units, WIDTH, 1, PRECISION, BK
    )
    before = hidden_before(
        h, h0, k + 1, length, samples, units, way, mask, B, H, stride_ht, stride_hb
    )
    follows = (k + 1 < length)[:, None]
    u = tl.where(follows, before * v, 0.0)
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
            r, u, above, alpha, beta, mix, s, k, length, samples, targets, units, way, mask,
            T, B, H, stride_ak, stride_at, stride_ab, stride_sk, stride_st, stride_sb,
            ABOVE, STATE, MIX,
        )  # fmt: skip
        tl.store(state + own, r, mask=mask)
        half = ((k % 2) * ways + way).to(tl.int64) * carry_rows * WIDTH
        place = carry + half + rows.to(tl.int64)[:, None] * WIDTH + units[None, :]
        tl.store(place, mixed.to(carry.dtype.element_ty), mask=mask)
