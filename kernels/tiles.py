"""The products of a tile, for every layer kind."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["accumulate", "load_operand", "tile_index"]


@triton.jit
def tile_index(pid, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Row and column of a program's tile; GROUP rows of tiles share the columns they load."""
    span = GROUP * tiles_n
    first = (pid // span) * GROUP
    rows = tl.minimum(tiles_m - first, GROUP)
    inner = pid % span
    return first + inner % rows, inner // rows


@triton.jit
def load_operand(pointers, mask, OPERAND: tl.constexpr):
    """A tile, widened before any arithmetic where the operands are float32."""
    tile = tl.load(pointers, mask=mask, other=0.0)
    if tl.float32 == OPERAND:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def accumulate(
    acc0,
    acc1,
    x0,
    x1,
    w0,
    w1,
    low,
    high,
    pixel,
    mask,
    gamma,
    TERMS: tl.constexpr,
    BOXED: tl.constexpr,
    REMASK: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    DOT: tl.constexpr,
):
    """Add every product of TERMS to its accumulator: a matrix product, or elementwise."""
    for t in tl.static_range(len(TERMS)):
        if TERMS[t][1] == 0:
            x = x0
        else:
            x = x1
        if BOXED:
            x = TERMS[t][2](x, low, high, pixel)
        else:
            x = TERMS[t][2](x, gamma)
        if REMASK:
            x = tl.where(mask, x, 0.0)
        if TERMS[t][3] == 0:
            w = TERMS[t][4](w0, gamma)
        else:
            w = TERMS[t][4](w1, gamma)
        x = x.to(OPERAND)
        w = w.to(OPERAND)
        if DOT:
            if TERMS[t][0] == 0:
                acc0 = tl.dot(x, w, acc0, input_precision=PRECISION)
            else:
                acc1 = tl.dot(x, w, acc1, input_precision=PRECISION)
        else:
            product = x.to(tl.float32) * w.to(tl.float32)
            if TERMS[t][0] == 0:
                acc0 += product
            else:
                acc1 += product
    return acc0, acc1
