"""The sum of two tensors of one shape, and its split."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from relprop.kernels.epilogues import ratio
from relprop.kernels.layouts import flat, inner_of, ordered_empty, quotient_empty
from relprop.kernels.modifiers import ACTIVATIONS
from relprop.kernels.operands import Lower, lower_numbers
from relprop.kernels.pointwise import grid_of, store_shares
from relprop.kernels.runtime import FUSION

__all__ = ["residual_split", "residual_sum"]


@triton.jit
def sum_values(a, b, y, n, alpha, beta, ACTIVATION: tl.constexpr, B: tl.constexpr):
    """y [n], the activation of alpha a + beta b."""
    offsets = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    mask = offsets < n
    left = tl.load(a + offsets, mask=mask, other=0.0).to(tl.float32)
    right = tl.load(b + offsets, mask=mask, other=0.0).to(tl.float32)
    value = ACTIVATION(alpha * left + beta * right)
    tl.store(y + offsets, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def sum_shares(
    a,
    b,
    r,
    out0,
    out1,
    lower0,
    lower1,
    rows,
    n,
    stride_l0,
    stride_l1,
    inner0,
    inner1,
    alpha,
    beta,
    epsilon,
    numbers0,
    numbers1,
    LOWER0: tl.constexpr,
    LOWER1: tl.constexpr,
    B: tl.constexpr,
):
    """The shares of alpha a [n] and beta b [n] in r [rows, n], by st(alpha a + beta b).

    Where a summand is the output of a layer (LOWER0, LOWER1), what that layer's quotient makes of
    its share.
    """
    offsets = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    mask = offsets < n
    left = alpha * tl.load(a + offsets, mask=mask, other=0.0).to(tl.float32)
    right = beta * tl.load(b + offsets, mask=mask, other=0.0).to(tl.float32)
    for row in range(tl.program_id(1), rows, tl.num_programs(1)):
        place = row * tl.cast(n, tl.int64) + offsets
        value = tl.load(r + place, mask=mask, other=0.0).to(tl.float32)
        s = ratio(value, left + right, epsilon)
        store_shares(
            left * s, lower0, stride_l0, out0, row, n, inner0, offsets, numbers0, mask, LOWER0
        )
        store_shares(
            right * s, lower1, stride_l1, out1, row, n, inner1, offsets, numbers1, mask, LOWER1
        )


def residual_sum(
    a: Tensor,
    b: Tensor,
    factors: tuple[float, float] = (1.0, 1.0),
    activation: str | None = None,
) -> Tensor:
    """The activation of a sum of two tensors of one shape, `factors[0] * a + factors[1] * b`.

    Returns:
        Of the wider of their types, laid out as `a`.
    """
    y = ordered_empty((), a.shape, a, torch.promote_types(a.dtype, b.dtype))
    if y.numel():
        (blocks, _), block = grid_of(a.numel(), 1)
        sum_values[(blocks,)](
            flat(a, 0, a), flat(b, 0, a), y, a.numel(), *map(float, factors),
            ACTIVATION=ACTIVATIONS[activation], B=block, enable_fp_fusion=FUSION,
        )  # fmt: skip
    return y


def residual_split(
    a: Tensor,
    b: Tensor,
    r: Tensor,
    epsilon: float,
    factors: tuple[float, float] = (1.0, 1.0),
    lower: tuple[Lower | None, Lower | None] = (None, None),
) -> tuple[Tensor, Tensor]:
    """The shares of two summands of one shape.

    Args:
        a, b: the summands, `[batch, ...]` (expand a broadcast one, and sum its share afterwards).
        r: relevance of the sum, `[targets, batch, ...]`.
        epsilon: the stabilizer.
        factors: with which the summands enter the sum.
        lower: for a summand that is the output of a layer, that layer, whose quotient is taken.

    Returns:
        Relevance of `a` and of `b`, shaped like `r`, float32; with `lower` the quotients
        `[1 or 2, *r.shape]`.
    """
    axes = [-1 if below is None else below.feature_axis for below in lower]
    outs = [
        ordered_empty((r.shape[0],), a.shape, a)
        if below is None
        else quotient_empty(below.program.parts, r.shape[0], a.shape, a, below.feature_axis)
        for below in lower
    ]
    if r.numel():
        n = a.numel()
        grid, block = grid_of(n, r.shape[0])
        zs = [outs[0] if below is None else flat(below.z, 1, a) for below in lower]
        sum_shares[grid](
            flat(a, 0, a), flat(b, 0, a), flat(r, 1, a), *outs, *zs, r.shape[0], n, n, n,
            *(inner_of(a, axis) for axis in axes), *map(float, factors), epsilon,
            *map(lower_numbers, lower),
            LOWER0=lower[0] and lower[0].program.mode, LOWER1=lower[1] and lower[1].program.mode,
            B=block, enable_fp_fusion=FUSION,
        )  # fmt: skip
    return outs[0], outs[1]
