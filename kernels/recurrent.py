"""Recurrent layers forward: hidden states, and alpha, beta of the relevance recurrence as they go.

All directions of a layer are one launch, program axis 1; direction 1 runs backwards in time.  Step
k is the k-th that a direction takes, its time the place in memory.  `forward_scan` has the loop
over steps inside, `forward_step` is one of them; README.md says when which.
"""

from __future__ import annotations

import triton
import triton.language as tl

from relprop.kernels.modifiers import relu

__all__ = ["forward_scan", "forward_step"]


@triton.jit
def tanh(u):
    """To 2 units in the last place, near 0 too, where 1 - 2 / (1 + exp(2 u)) is not."""
    square = u * u
    near = -0.005883633624762297
    near = near * square + 0.020785512402653694
    near = near * square - 0.05378051474690437
    near = near * square + 0.13331881165504456
    near = near * square - 0.33333295583724976
    near = u + u * square * near
    far = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * tl.abs(u)))
    return tl.where(tl.abs(u) < 0.6, near, tl.where(u < 0, -far, far))


@triton.jit
def stabilized(z, epsilon):
    """z + epsilon sgn(z), sgn(0) = sgn(-0.0) = 1."""
    return tl.where(z < 0, z - epsilon, z + epsilon)


@triton.jit
def cell(p0, p1, p2, p3, own, state, epsilon, CELL: tl.constexpr):
    """New state, h, alpha, beta, mix of a step.

    p are pre-activations in the order of PyTorch's weights: i, f, g, o of an LSTM (CELL "lstm", or
    "r_lstm": ReLU candidate, h = o c), r, z and the input's part of n of a GRU, whose other part of
    n is `own`, one of an RNN.  `state` is c, otherwise h.
    """
    if CELL == "lstm" or CELL == "r_lstm":
        if CELL == "lstm":
            g = tanh(p2)
        else:
            g = relu(p2)
        kept = tl.sigmoid(p1) * state
        made = tl.sigmoid(p0) * g
        new = kept + made
        if CELL == "lstm":
            h = tl.sigmoid(p3) * tanh(new)
        else:
            h = tl.sigmoid(p3) * new
        divisor = stabilized(new, epsilon)
        return new, h, kept / divisor, made / (divisor * stabilized(p2, epsilon)), kept
    elif CELL == "gru":
        mix = tl.sigmoid(p0)
        z = tl.sigmoid(p1)
        candidate = p2 + mix * own
        kept = z * state
        made = (1.0 - z) * tanh(candidate)
        new = kept + made
        divisor = stabilized(new, epsilon)
        return new, new, kept / divisor, made / (divisor * stabilized(candidate, epsilon)), mix
    else:
        if CELL == "rnn_tanh":
            new = tanh(p0)
        else:
            new = relu(p0)
        return new, new, new, 1.0 / stabilized(p0, epsilon), new


@triton.jit
def step_times(k, length, way):
    """Which rows a step belongs to, and its time in each: direction 1 starts at a row's end."""
    valid = k < length
    return valid, tl.where(valid & (way == 1), length - 1 - k, k)


@triton.jit
def tile_mask(rows, units, EVEN: tl.constexpr):
    """Which entries of a tile exist; EVEN: all units do."""
    if EVEN:
        return rows[:, None]
    else:
        return rows[:, None] & units[None, :]


@triton.jit
def lengths_of(lengths, rows, T, B, LENGTHS: tl.constexpr):
    """Steps of each row: T, or its own number."""
    if LENGTHS:
        return tl.load(lengths + rows, mask=rows < B, other=0)
    else:
        return tl.zeros(rows.shape, tl.int32) + T


@triton.jit
def input_products(pre, time, rows, units, way, H, stride_pt, stride_pb, mask, GATES: tl.constexpr):
    """The gates' input products at one step, [BM, BN] each."""
    row = time.to(tl.int64) * stride_pt + rows.to(tl.int64) * stride_pb + way * GATES * H
    place = pre + row[:, None] + units[None, :]
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
def weight_tile(w, units, inner, WIDTH: tl.constexpr):
    """[inner, units] of one gate's weight [units, WIDTH], padded with 0."""
    return tl.load(w + units[None, :] * WIDTH + inner[:, None])


@triton.jit
def recurrent_products(
    a0,
    a1,
    a2,
    a3,
    carry,
    w,
    rows,
    units,
    WIDTH: tl.constexpr,
    GATES: tl.constexpr,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
):
    """Adds to [BM, BN] a gate that of carry [rows, WIDTH] and w [GATES, WIDTH, WIDTH], padded."""
    carry_rows = carry + rows.to(tl.int64)[:, None] * WIDTH
    for first in range(0, WIDTH, BK):
        inner = first + tl.arange(0, BK)
        x = tl.load(carry_rows + inner[None, :])
        a0 = tl.dot(x, weight_tile(w, units, inner, WIDTH), a0, input_precision=PRECISION)
        if GATES > 1:
            own = weight_tile(w + WIDTH * WIDTH, units, inner, WIDTH)
            a1 = tl.dot(x, own, a1, input_precision=PRECISION)
            own = weight_tile(w + 2 * WIDTH * WIDTH, units, inner, WIDTH)
            a2 = tl.dot(x, own, a2, input_precision=PRECISION)
        if GATES > 3:
            own = weight_tile(w + 3 * WIDTH * WIDTH, units, inner, WIDTH)
            a3 = tl.dot(x, own, a3, input_precision=PRECISION)
    return a0, a1, a2, a3


@triton.jit
def advance(
    p0,
    p1,
    p2,
    p3,
    own,
    state,
    h,
    h_last,
    alpha,
    beta,
    mix,
    k,
    length,
    rows,
    units,
    way,
    mask,
    T,
    B,
    H,
    stride_ht,
    stride_hb,
    epsilon,
    CELL: tl.constexpr,
):
    """One step of a tile: writes h, alpha, beta, mix; returns the state and h, for valid rows."""
    valid, time = step_times(k, length, way)
    new, hidden, kept, share, reset = cell(p0, p1, p2, p3, own, state, epsilon, CELL)
    keep = valid[:, None]
    hidden = tl.where(keep, hidden, 0.0)
    row = time.to(tl.int64) * stride_ht + rows.to(tl.int64) * stride_hb + way * H
    tl.store(h + row[:, None] + units[None, :], hidden, mask=mask)
    saved = ((way * T + k).to(tl.int64) * B + rows) * H
    saved = saved[:, None] + units[None, :]
    tl.store(beta + saved, tl.where(keep, share, 0.0), mask=mask)
    if CELL == "lstm" or CELL == "r_lstm" or CELL == "gru":
        tl.store(alpha + saved, tl.where(keep, kept, 0.0), mask=mask)
    if CELL == "gru":
        tl.store(mix + saved, tl.where(keep, reset, 0.0), mask=mask)
    if CELL == "lstm" or CELL == "r_lstm":
        last = ((way * B + rows.to(tl.int64)) * H)[:, None] + units[None, :]
        tl.store(h_last + last, hidden, mask=mask & (k == length - 1)[:, None])
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
    alpha,
    beta,
    mix,
    T,
    B,
    H,
    carry_rows,
    stride_pt,
    stride_pb,
    stride_ht,
    stride_hb,
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
    [T, B, ways * H] by strides, state and h0, h_last [ways, B, H], alpha, beta, mix
    [ways, T, B, H] in the order of steps.  HELD keeps the weights on the chip and h in registers;
    otherwise both are read step by step, h from `carry`.
    """
    way = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    units = tl.arange(0, WIDTH)
    mask = tile_mask(rows < B, units < H, EVEN)
    length = lengths_of(lengths, rows, T, B, LENGTHS)
    own = ((way * B + rows.to(tl.int64)) * H)[:, None] + units[None, :]
    now = tl.load(state + own, mask=mask, other=0.0)
    bias_row = tl.zeros((1, WIDTH), tl.float32)
    if BIASED:
        bias_row = tl.load(bias + way * H + units, mask=units < H, other=0.0)[None, :]
    w += way.to(tl.int64) * GATES * WIDTH * WIDTH
    if HELD:
        hidden = tl.load(h0 + own, mask=mask, other=0.0)
        inner = tl.arange(0, WIDTH)
        w0 = weight_tile(w, units, inner, WIDTH)
        w1 = w0
        w2 = w0
        w3 = w0
        if GATES > 1:
            w1 = weight_tile(w + WIDTH * WIDTH, units, inner, WIDTH)
            w2 = weight_tile(w + 2 * WIDTH * WIDTH, units, inner, WIDTH)
        if GATES > 3:
            w3 = weight_tile(w + 3 * WIDTH * WIDTH, units, inner, WIDTH)
        for k in tl.range(0, T, num_stages=STAGES):
            _, time = step_times(k, length, way)
            p0, p1, p2, p3 = input_products(
                pre, time, rows, units, way, H, stride_pt, stride_pb, mask, GATES
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
                p0, p1, p2, p3, n, now, h, h_last, alpha, beta, mix, k, length, rows, units, way,
                mask, T, B, H, stride_ht, stride_hb, epsilon, CELL,
            )  # fmt: skip
    else:
        ways = tl.num_programs(1)
        _, time = step_times(0, length, way)
        p0, p1, p2, p3 = input_products(
            pre, time, rows, units, way, H, stride_pt, stride_pb, mask, GATES
        )
        # one stage: a load of carry must not move ahead of the step that stores it
        for k in tl.range(0, T, num_stages=1):
            before = ((k % 2) * ways + way).to(tl.int64) * carry_rows * WIDTH
            after = (((k + 1) % 2) * ways + way).to(tl.int64) * carry_rows * WIDTH
            n = p2
            if GATES == 3:
                n = tl.zeros((BM, WIDTH), tl.float32) + bias_row
            p0, p1, n, p3 = recurrent_products(
                p0, p1, n, p3, carry + before, w, rows, units, WIDTH, GATES, PRECISION, BK
            )
            if GATES > 3:
                p2 = n
            now, hidden = advance(
                p0, p1, p2, p3, n, now, h, h_last, alpha, beta, mix, k, length, rows, units, way,
                mask, T, B, H, stride_ht, stride_hb, epsilon, CELL,
            )  # fmt: skip
            place = carry + after + rows.to(tl.int64)[:, None] * WIDTH + units[None, :]
            tl.store(place, hidden.to(carry.dtype.element_ty), mask=mask)
            # the next step's input products arrive while this one ends
            _, time = step_times(k + 1, length, way)
            more = mask & (tl.zeros(rows.shape, tl.int32) + k + 1 < T)[:, None]
            p0, p1, p2, p3 = input_products(
                pre, time, rows, units, way, H, stride_pt, stride_pb, more, GATES
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
    alpha,
    beta,
    mix,
    k,
    T,
    B,
    H,
    carry_rows,
    stride_pt,
    stride_pb,
    stride_ht,
    stride_hb,
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
    way = tl.program_id(1)
    tiles_n = tl.cdiv(WIDTH, BN)
    rows = (tl.program_id(0) // tiles_n) * BM + tl.arange(0, BM)
    units = (tl.program_id(0) % tiles_n) * BN + tl.arange(0, BN)
    mask = tile_mask(rows < B, units < H, EVEN)
    length = lengths_of(lengths, rows, T, B, LENGTHS)
    _, time = step_times(k, length, way)
    ways = tl.num_programs(1)
    before = ((k % 2) * ways + way).to(tl.int64) * carry_rows * WIDTH
    after = (((k + 1) % 2) * ways + way).to(tl.int64) * carry_rows * WIDTH
    w += way.to(tl.int64) * GATES * WIDTH * WIDTH
    x0, x1, x2, x3 = input_products(
        pre, time, rows, units, way, H, stride_pt, stride_pb, mask, GATES
    )
    zeros = tl.zeros((BM, BN), tl.float32)
    p0, p1, n, p3 = recurrent_products(
        zeros, zeros, zeros, zeros, carry + before, w, rows, units, WIDTH, GATES, PRECISION, BK
    )
    p2 = x2 + n
    if BIASED:
        n += tl.load(bias + way * H + units, mask=units < H, other=0.0)[None, :]
    if GATES == 3:
        p2 = x2
    own = ((way * B + rows.to(tl.int64)) * H)[:, None] + units[None, :]
    now = tl.load(state + own, mask=mask, other=0.0)
    now, hidden = advance(
        x0 + p0, x1 + p1, p2, x3 + p3, n, now, h, h_last, alpha, beta, mix, k, length, rows,
        units, way, mask, T, B, H, stride_ht, stride_hb, epsilon, CELL,
    )  # fmt: skip
    tl.store(state + own, now, mask=mask)
    place = carry + after + rows.to(tl.int64)[:, None] * WIDTH + units[None, :]
    tl.store(place, hidden.to(carry.dtype.element_ty), mask=mask)
