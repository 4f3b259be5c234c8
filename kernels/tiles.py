"""What the kernels of every layer kind share: products of a tile, quotients, the two epilogues."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from relprop.errors import InputError
from relprop.kernels.modifiers import ATOMS, BOX_ATOMS, ZERO_PRESERVING
from relprop.kernels.program import Product

__all__ = ["FUSION", "interpreted", "operand_type", "remask", "terms"]

FUSION = True
"""`enable_fp_fusion` of every launch: multiply-add contraction, never the order of a sum."""


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return not isinstance(accumulate, triton.JITFunction)


def operand_type(dtype: torch.dtype, precision: str, adjoint: bool = False) -> tuple[Any, str]:
    """The type in which operands enter a product, and `input_precision` for it.

    Args:
        dtype: of the weight.
        precision: "highest", "high" or "medium".
        adjoint: whether the left operand is s, which overflows float16.

    Raises:
        InputError: the type or precision has no kernel.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise InputError(
            f"Triton kernels take float32, bfloat16 or float16 operands, got {dtype}; "
            "use backend='aten' for float64"
        )
    modes = {"highest": "ieee", "high": "tf32x3", "medium": "ieee"}
    if precision not in modes:
        raise InputError(f"precision is {precision!r}; expected one of {sorted(modes)}")
    if interpreted():
        return tl.float32, "ieee"
    if triton.runtime.driver.active.get_current_target().backend != "cuda":
        modes["high"] = "ieee"  # AMD's matrix cores take float32
    if dtype == torch.float16:
        return (tl.float32, modes["high"]) if adjoint else (tl.float16, "ieee")
    if dtype == torch.bfloat16 or precision == "medium":
        return tl.bfloat16, "ieee"
    return tl.float32, modes[precision]


def terms(products: tuple[Product, ...], atoms: list[str] | None, boxed: bool) -> tuple[Any, ...]:
    """The constexpr form of a program's products.

    Args:
        products: which operands meet in which accumulator.
        atoms: of each weight, applied in registers; None if they are applied in memory already.
        boxed: whether left atoms take the bounds of a box.
    """
    table = BOX_ATOMS if boxed else ATOMS
    return tuple(
        (
            p.accumulator,
            p.left,
            table[p.factor],
            0 if atoms else p.weight,
            ATOMS[atoms[p.weight] if atoms else "identity"],
        )
        for p in products
    )


def remask(products: tuple[Product, ...]) -> bool:
    """Whether an input atom sends padding's 0 elsewhere, so that it has to be masked again."""
    return any(product.factor not in ZERO_PRESERVING for product in products)


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


@triton.jit
def ratio(r, z, epsilon):
    """r / st(z), and 0 where st(z) is 0."""
    denominator = tl.where(z < 0, z - epsilon, z + epsilon)
    empty = denominator == 0
    return tl.where(empty, 0.0, r / tl.where(empty, 1.0, denominator))


@triton.jit
def shares(r, z0, z1, epsilon, scale0, scale1, MODE: tl.constexpr):
    """The quotients of a rule's groups; the second is unused in mode "one"."""
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
    epsilon,
    scale0,
    scale1,
    mask,
    FACTORS: tl.constexpr,
    BOXED: tl.constexpr,
    ADD: tl.constexpr,
    LOWER: tl.constexpr,
):
    """Multiply by the input; write R, or what the layer below makes of it: its s.

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
    if LOWER is None:
        tl.store(out + out_offsets, r.to(out.dtype.element_ty), mask=mask)
    elif LOWER == "input":
        s0, s1 = shares(r, a, a, epsilon, scale0, scale1, "one")
        tl.store(out + out_offsets, s0, mask=mask)
    else:
        z0 = tl.load(lower + lower_offsets, mask=mask, other=1.0)
        z1 = z0
        if LOWER != "one":
            z1 = tl.load(lower + stride_lp + lower_offsets, mask=mask, other=1.0)
        s0, s1 = shares(r, z0, z1, epsilon, scale0, scale1, LOWER)
        tl.store(out + out_offsets, s0, mask=mask)
        if LOWER != "one":
            tl.store(out + stride_op + out_offsets, s1, mask=mask)
