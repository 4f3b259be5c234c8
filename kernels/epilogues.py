"""Quotients, and the epilogues of every contraction and adjoint."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "box_bounds",
    "finish_adjoint",
    "finish_contraction",
    "finish_relevance",
    "ratio",
    "stabilized",
]


@triton.jit
def stabilized(z, epsilon):
    """z + epsilon sgn(z), sgn(0) = sgn(-0.0) = 1."""
    return tl.where(z < 0, z - epsilon, z + epsilon)


@triton.jit
def ratio(r, z, epsilon):
    """r / st(z), and 0 where st(z) is 0."""
    denominator = stabilized(z, epsilon)
    empty = denominator == 0
    return tl.where(empty, 0.0, r / tl.where(empty, 1.0, denominator))


@triton.jit
def shares(r, z0, z1, numbers, MODE: tl.constexpr):
    """The quotients of a rule's groups by its stabilizer and two scales, `numbers`.

    The second is unused in mode "one".
    """
    epsilon = numbers[0]
    scale0 = numbers[1]
    scale1 = numbers[2]
    if MODE == "gamma":
        s = tl.where(z1 == 0, 0.0, ratio(r, z0, epsilon))
        return scale0 * s, scale1 * tl.where(z1 < 0, -s, s)
    else:
        s0 = ratio(r, z0, epsilon)
        if MODE == "one":
            return scale0 * s0, s0
        else:
            s1 = ratio(r, z1, epsilon)
            if MODE == "two":
                return scale0 * s0, scale1 * s1
            else:
                s0 = tl.where(z1 == 0, 1.0, scale0) * s0
                if MODE == "conserve":
                    return s0, tl.where(z0 == 0, 1.0, scale1) * s1
                else:
                    return s0, scale1 * s1


@triton.jit
def finish_contraction(
    acc0,
    acc1,
    bias_row,
    gamma,
    z,
    stride_zp,
    z_offsets,
    y,
    y_offsets,
    mask,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    OUTPUT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SAVE: tl.constexpr,
):
    """Add the bias; write the output through its activation, and the rule's z (one or two).

    A gated rule writes D = (1 + gamma/2) z + (gamma/2) sgn(z) A and the layer's own z.
    """
    if OUTPUT is not None:
        own = acc0
        if OUTPUT == "second":
            own = acc1
        if OUTPUT == "sum":
            own = acc0 + acc1
        own = ACTIVATION(own + bias_row)
        tl.store(y + y_offsets, own.to(y.dtype.element_ty), mask=mask)
    if SAVE:
        if GATED:
            own = acc0 + bias_row
            z0 = acc0 + BIAS[0](bias_row, gamma)
            z1 = acc1 + BIAS[1](bias_row, gamma)
            half = 0.5 * gamma
            d = (1.0 + half) * z0 + tl.where(own < 0, -half, half) * z1
            tl.store(z + z_offsets, d, mask=mask)
            tl.store(z + stride_zp + z_offsets, own, mask=mask)
        else:
            tl.store(z + z_offsets, acc0 + BIAS[0](bias_row, gamma), mask=mask)
            if len(BIAS) == 2:
                z1 = acc1 + BIAS[1](bias_row, gamma)
                tl.store(z + stride_zp + z_offsets, z1, mask=mask)


@triton.jit
def box_bounds(pointers, stride_bp, mask, features, start, stop):
    """Lower and upper bounds of a tile, and which of its features are bounded."""
    low = tl.load(pointers, mask=mask, other=0.0)
    high = tl.load(pointers + stride_bp, mask=mask, other=0.0)
    return low, high, ((features >= start) & (features < stop))[None, :]


@triton.jit
def finish_relevance(
    r, lower, stride_lp, lower_offsets, out, stride_op, offsets, numbers, mask, LOWER: tl.constexpr
):
    """Write relevance, or what the layer below makes of it: its one or two quotients.

    `numbers` are the layer's stabilizer and two scales, `lower` its one or two denominators.
    """
    if LOWER is None:
        tl.store(out + offsets, r.to(out.dtype.element_ty), mask=mask)
    else:
        z0 = tl.load(lower + lower_offsets, mask=mask, other=1.0)
        z1 = z0
        if LOWER != "one":
            z1 = tl.load(lower + stride_lp + lower_offsets, mask=mask, other=1.0)
        s0, s1 = shares(r, z0, z1, numbers, LOWER)
        tl.store(out + offsets, s0, mask=mask)
        if LOWER != "one":
            tl.store(out + stride_op + offsets, s1, mask=mask)


@triton.jit
def finish_adjoint(
    acc0,
    acc1,
    a,
    low,
    high,
    pixel,
    gamma,
    out,
    stride_op,
    out_offsets,
    lower,
    stride_lp,
    lower_offsets,
    numbers,
    mask,
    FACTORS: tl.constexpr,
    BOXED: tl.constexpr,
    ADD: tl.constexpr,
    LOWER: tl.constexpr,
):
    """Multiply by the input, then `finish_relevance`.

    LOWER "input" is mode "one" with the input itself for denominator.
    """
    if BOXED:
        r = FACTORS[0](a, low, high, pixel) * acc0
        if len(FACTORS) == 2:
            r += FACTORS[1](a, low, high, pixel) * acc1
    else:
        r = FACTORS[0](a, gamma) * acc0
        if len(FACTORS) == 2:
            r += FACTORS[1](a, gamma) * acc1
    if ADD:
        r += tl.load(out + out_offsets, mask=mask, other=0.0)
    if LOWER == "input":
        s, _ = shares(r, a, a, numbers, "one")
        tl.store(out + out_offsets, s, mask=mask)
    else:
        finish_relevance(
            r, lower, stride_lp, lower_offsets, out, stride_op, out_offsets, numbers, mask, LOWER
        )
