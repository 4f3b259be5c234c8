"""Elementwise kernels: modified weights, the quotient, the split of a sum."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from relprop.kernels.modifiers import ACTIVATIONS, ATOMS
from relprop.kernels.operands import Lower, Weight
from relprop.kernels.program import Program
from relprop.kernels.tiles import FUSION, interpreted, ratio, shares

__all__ = [
    "flat",
    "grid_of",
    "inner_of",
    "order_of",
    "ordered_empty",
    "prepare_weights",
    "quotient_empty",
    "quotients",
    "residual_split",
    "residual_sum",
]

BLOCK = 1024
INTERPRETER_BLOCK = 16_384


@triton.jit
def modified_weights(w, out, n, gamma, ATOM0: tl.constexpr, ATOM1: tl.constexpr, B: tl.constexpr):
    """out [2, n]: two modifications of w [n], from one read."""
    offsets = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    mask = offsets < n
    value = tl.load(w + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offsets, ATOM0(value, gamma).to(out.dtype.element_ty), mask=mask)
    if ATOM1 is not None:
        tl.store(out + n + offsets, ATOM1(value, gamma).to(out.dtype.element_ty), mask=mask)


@triton.jit
def store_shares(
    r,
    z,
    stride_z,
    s,
    row,
    n,
    inner,
    offsets,
    mask,
    epsilon,
    scale0,
    scale1,
    MODE: tl.constexpr,
):
    """Store the quotients of relevance r by z [1 or 2, n], or r itself where MODE is None.

    Two quotients go to s [rows, n / inner, 2, inner], halves of one row-major buffer.
    """
    start = s + row * tl.cast(n, tl.int64)
    if MODE is None:
        tl.store(start + offsets, r, mask=mask)
    else:
        z0 = tl.load(z + offsets, mask=mask, other=1.0)
        z1 = z0
        if MODE != "one":
            z1 = tl.load(z + stride_z + offsets, mask=mask, other=1.0)
        s0, s1 = shares(r, z0, z1, epsilon, scale0, scale1, MODE)
        if MODE == "one":
            tl.store(start + offsets, s0, mask=mask)
        else:
            start += row * tl.cast(n, tl.int64)
            halves = offsets + (offsets // inner) * inner
            tl.store(start + halves, s0, mask=mask)
            tl.store(start + halves + inner, s1, mask=mask)


@triton.jit
def quotient(
    r,
    z,
    s,
    rows,
    n,
    stride_z,
    inner,
    epsilon,
    scale0,
    scale1,
    MODE: tl.constexpr,
    B: tl.constexpr,
):
    """s [rows, n], or [rows, n / inner, 2, inner], of r [rows, n] and z [1 or 2, n]."""
    offsets = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    mask = offsets < n
    for row in range(tl.program_id(1), rows, tl.num_programs(1)):
        place = row * tl.cast(n, tl.int64) + offsets
        value = tl.load(r + place, mask=mask, other=0.0).to(tl.float32)
        store_shares(
            value, z, stride_z, s, row, n, inner, offsets, mask, epsilon, scale0, scale1, MODE
        )


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
    epsilon0,
    scale00,
    scale01,
    epsilon1,
    scale10,
    scale11,
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
            left * s, lower0, stride_l0, out0, row, n, inner0, offsets, mask,
            epsilon0, scale00, scale01, LOWER0,
        )  # fmt: skip
        store_shares(
            right * s, lower1, stride_l1, out1, row, n, inner1, offsets, mask,
            epsilon1, scale10, scale11, LOWER1,
        )  # fmt: skip


def grid_of(n: int, rows: int) -> tuple[tuple[int, int], int]:
    """Programs over elements and rows, and the block: enough programs, few in the interpreter."""
    block = INTERPRETER_BLOCK if interpreted() else BLOCK
    blocks = triton.cdiv(n, block)
    row_programs = 1 if interpreted() else min(rows, triton.cdiv(512, blocks))
    return (blocks, row_programs), block


def order_of(like: Tensor) -> list[int]:
    """The axes as they lie in memory, outermost first; the batch counts as the outermost."""
    return [0, *_order(like)]


def _order(like: Tensor) -> list[int]:
    return sorted(range(1, like.dim()), key=lambda axis: -like.stride()[axis])


def ordered_empty(
    lead: Sequence[int], shape: Sequence[int], like: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """An uninitialised `[*lead, *shape]` whose axes lie in memory as those of `like` do.

    `shape` has as many axes as `like`, the first of them the batch.
    """
    order = order_of(like)
    empty = like.new_empty([*lead, *(shape[axis] for axis in order)], dtype=dtype)
    back = sorted(range(len(order)), key=order.__getitem__)
    return empty.permute(*range(len(lead)), *(len(lead) + axis for axis in back))


def quotient_empty(
    parts: int, targets: int, shape: Sequence[int], like: Tensor, feature_axis: int
) -> Tensor:
    """An uninitialised float32 `[parts, targets, *shape]` for quotients.

    Laid out as `like`, the parts side by side in front of the features: as one operand of twice the
    features, they meet stacked weights in a single product.
    """
    if parts == 1:
        return ordered_empty((1, targets), shape, like)
    order = order_of(like)
    axis = feature_axis % len(order)
    sizes: list[int] = [targets]
    for i in order:
        sizes += [parts, shape[i]] if i == axis else [shape[i]]
    empty = like.new_empty(sizes, dtype=torch.float32)
    empty = empty.movedim(1 + order.index(axis), 0)
    back = sorted(range(len(order)), key=order.__getitem__)
    return empty.permute(0, 1, *(2 + place for place in back))


def inner_of(like: Tensor, feature_axis: int) -> int:
    """Elements of `like`, as it lies in memory, from one step before its features on."""
    order = order_of(like)
    return prod(like.shape[i] for i in order[order.index(feature_axis % len(order)) :])


def flat(tensor: Tensor, lead: int, like: Tensor) -> Tensor:
    """A tensor `[*lead, *like.shape]` laid out as `like`, without copying where it is already."""
    axes = [*range(lead), *(lead + axis for axis in order_of(like))]
    return tensor.permute(axes).contiguous()


def quotients(program: Program, z: Tensor, r: Tensor, feature_axis: int) -> Tensor:
    """The quotients of a rule's groups.

    Args:
        program: the rule.
        z: what the contraction saved, `[saved, batch, ...]`; batch 1 if it is input-independent.
        r: relevance of the output, `[targets, batch, ...]`.
        feature_axis: of the output's features, from the end.

    Returns:
        `[quotients, targets, batch, ...]`, float32, laid out as `z`, two of them as halves of one
        row-major buffer.
    """
    s = quotient_empty(program.parts, r.shape[0], r.shape[1:], z[0], feature_axis)
    if s.numel() == 0:
        return s
    flat_z, flat_r = flat(z, 1, z[0]), flat(r, 1, z[0])
    n = z[0].numel()
    rows = r.numel() // n
    grid, block = grid_of(n, rows)
    quotient[grid](
        flat_r, flat_z, s, rows, n, n, inner_of(z[0], feature_axis), program.epsilon,
        *program.scales, MODE=program.mode, B=block, enable_fp_fusion=FUSION,
    )  # fmt: skip
    return s


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
        numbers = [
            number
            for below in lower
            for number in ((0.0, 1.0, 1.0) if below is None else below.numbers)
        ]
        sum_shares[grid](
            flat(a, 0, a), flat(b, 0, a), flat(r, 1, a), *outs, *zs, r.shape[0], n, n, n,
            *(inner_of(a, axis) for axis in axes), *map(float, factors), epsilon, *numbers,
            LOWER0=lower[0] and lower[0].program.mode, LOWER1=lower[1] and lower[1].program.mode,
            B=block, enable_fp_fusion=FUSION,
        )  # fmt: skip
    return outs[0], outs[1]


def prepare_weights(
    program: Program,
    w: Tensor,
    a: Tensor,
    *,
    in_registers: bool = False,
    precision: str = "highest",
) -> Weight:
    """The modified weights of a program: written to memory once, or left to the product kernels.

    Args:
        program: the rule.
        w: the layer's weight.
        a: the layer's input: its memory layout (channels first or last) and its dtype.
        in_registers: leave the weight as it is.
        precision: "medium" writes float32 weights as bfloat16, which they are multiplied as: what
            is converted on the way through registers does not reach the tensor cores in time.
    """
    kinds = [weight.kind for weight in program.weights]
    source = torch.promote_types(a.dtype, w.dtype)
    if "square" in kinds:
        source = torch.float32
    narrow = precision == "medium" and w.dtype == torch.float32
    narrow = narrow and "square" not in kinds and set(kinds) != {"one"}
    plain = set(kinds) <= {"identity", "one"} and not narrow
    if in_registers or plain or w.numel() == 0:
        return Weight(w[None], kinds, source)
    dtype = torch.float32 if "square" in kinds else torch.bfloat16 if narrow else w.dtype
    order = _order(a) if a.dim() == w.dim() and w.dim() > 2 else list(range(1, w.dim()))
    axes = [0, *order]
    flat = w.permute(axes).contiguous()
    out = flat.new_empty((len(kinds), *flat.shape), dtype=dtype)
    block = INTERPRETER_BLOCK if interpreted() else BLOCK
    atoms = [ATOMS[kind] for kind in kinds] + [None]
    modified_weights[(triton.cdiv(w.numel(), block),)](
        flat, out, w.numel(), program.gamma, ATOM0=atoms[0], ATOM1=atoms[1], B=block,
        enable_fp_fusion=FUSION,
    )  # fmt: skip
    back = sorted(range(len(axes)), key=axes.__getitem__)
    return Weight(out.permute(0, *(1 + axis for axis in back)), None, source)
