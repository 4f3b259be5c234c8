"""What both directions of a recurrent layer share: times, places in memory, products of a step.

All directions of a layer are one launch, program axis 1; direction 1 runs backwards in time.  Step
k is the k-th that a direction takes, its time the place in memory.  `sizes` are T, B, H: steps,
samples, units.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "carry_offsets",
    "carry_start",
    "lengths_of",
    "recurrent_products",
    "saved_offsets",
    "state_offsets",
    "step_offsets",
    "step_times",
    "tile_mask",
    "weight_tile",
]


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
def lengths_of(lengths, samples, sizes, LENGTHS: tl.constexpr):
    """Steps of each row: T, or its own number."""
    if LENGTHS:
        return tl.load(lengths + samples, mask=samples < sizes[1], other=0)
    else:
        return tl.zeros(samples.shape, tl.int32) + sizes[0]


@triton.jit
def step_offsets(time, samples, units, first, strides):
    """[rows, units] in a tensor over times and samples, of the unit `first` and those after it."""
    row = time.to(tl.int64) * strides[0] + samples.to(tl.int64) * strides[1] + first
    return row[:, None] + units[None, :]


@triton.jit
def saved_offsets(k, samples, units, way, sizes):
    """[rows, units] in a tensor [ways, T, B, H] in the order of steps."""
    row = ((way * sizes[0] + k).to(tl.int64) * sizes[1] + samples) * sizes[2]
    return row[:, None] + units[None, :]


@triton.jit
def state_offsets(samples, units, way, sizes):
    """[rows, units] in a tensor of states [ways, B, H]."""
    return ((way * sizes[1] + samples.to(tl.int64)) * sizes[2])[:, None] + units[None, :]


@triton.jit
def carry_start(k, way, carry_rows, WIDTH: tl.constexpr):
    """Where step k finds what the step before it left; the two halves take turns."""
    return ((k % 2) * tl.num_programs(1) + way).to(tl.int64) * carry_rows * WIDTH


@triton.jit
def carry_offsets(rows, units, WIDTH: tl.constexpr):
    """[rows, units] within a half of the carried values."""
    return rows.to(tl.int64)[:, None] * WIDTH + units[None, :]


@triton.jit
def weight_tile(w, gate: tl.constexpr, units, inner, WIDTH: tl.constexpr):
    """[inner, units] of one gate's weight [units, WIDTH], padded with 0."""
    return tl.load(w + gate * WIDTH * WIDTH + units[None, :] * WIDTH + inner[:, None])


@triton.jit
def recurrent_products(
    p,
    carry,
    w,
    rows,
    units,
    WIDTH: tl.constexpr,
    GATES: tl.constexpr,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
):
    """Adds to [BM, BN] a gate, four of them, carry [rows, WIDTH] times w [GATES, WIDTH, WIDTH]."""
    a0 = p[0]
    a1 = p[1]
    a2 = p[2]
    a3 = p[3]
    for first in range(0, WIDTH, BK):
        inner = first + tl.arange(0, BK)
        x = tl.load(carry + carry_offsets(rows, inner, WIDTH))
        a0 = tl.dot(x, weight_tile(w, 0, units, inner, WIDTH), a0, input_precision=PRECISION)
        if GATES > 1:
            a1 = tl.dot(x, weight_tile(w, 1, units, inner, WIDTH), a1, input_precision=PRECISION)
            a2 = tl.dot(x, weight_tile(w, 2, units, inner, WIDTH), a2, input_precision=PRECISION)
        if GATES > 3:
            a3 = tl.dot(x, weight_tile(w, 3, units, inner, WIDTH), a3, input_precision=PRECISION)
    return a0, a1, a2, a3
