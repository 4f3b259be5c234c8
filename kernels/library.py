"""The library's product with one pointwise kernel: the rival of a fused kernel.

Where a rule's products are all of the input, or of s, with weights that lie in memory one after
another, they are a single product of the library, with as many times the features; bias,
activation, multiplication by the input and the quotient of the layer below are the epilogues of the
fused kernels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl

from relprop.graph.maps import Conv
from relprop.kernels.constants import epilogue_constants, operand_type
from relprop.kernels.epilogues import finish_adjoint, finish_contraction
from relprop.kernels.layouts import flat, inner_of, order_of
from relprop.kernels.modifiers import ATOMS
from relprop.kernels.operands import AdjointCall, ContractionCall, Pass, Weight, lower_numbers
from relprop.kernels.pointwise import grid_of
from relprop.kernels.program import Product
from relprop.kernels.runtime import FUSION
from relprop.operations.precision import float32_products

__all__ = ["adjoint", "contraction"]


@triton.jit
def product_contraction(
    p,
    bias,
    z,
    y,
    n,
    inner,
    features,
    step,
    stride_z,
    gamma,
    PARTS: tl.constexpr,
    BIASED: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    OUTPUT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SAVE: tl.constexpr,
    B: tl.constexpr,
):
    """z [saved, n] and y [n] of p [n / inner, PARTS, inner]; feature = place / step % features."""
    offsets = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    mask = offsets < n
    start = p + offsets + (offsets // inner) * ((PARTS - 1) * inner)
    acc0 = tl.load(start, mask=mask, other=0.0).to(tl.float32)
    acc1 = acc0
    if PARTS == 2:
        acc1 = tl.load(start + inner, mask=mask, other=0.0).to(tl.float32)
    shift = tl.zeros((B,), tl.float32)
    if BIASED:
        feature = (offsets // step) % features
        shift = tl.load(bias + feature, mask=mask, other=0.0).to(tl.float32)
    finish_contraction(
        acc0, acc1, shift, gamma, z, stride_z, offsets, y, offsets, mask,
        BIAS, GATED, OUTPUT, ACTIVATION, SAVE,
    )  # fmt: skip


@triton.jit
def product_adjoint(
    p,
    a,
    lower,
    out,
    rows,
    n,
    inner,
    stride_l,
    gamma,
    numbers,
    FACTORS: tl.constexpr,
    READ: tl.constexpr,
    LOWER: tl.constexpr,
    PARTS: tl.constexpr,
    B: tl.constexpr,
):
    """out [rows, n], or [rows, n / inner, 2, inner], of p [rows, n], a [n], lower [1 or 2, n]."""
    offsets = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    mask = offsets < n
    value = tl.zeros((B,), tl.float32)
    if READ:
        value = tl.load(a + offsets, mask=mask, other=0.0).to(tl.float32)
    halves = offsets + (offsets // inner) * ((PARTS - 1) * inner)
    for row in range(tl.program_id(1), rows, tl.num_programs(1)):
        start = row * tl.cast(n, tl.int64)
        acc = tl.load(p + start + offsets, mask=mask, other=0.0).to(tl.float32)
        finish_adjoint(
            acc, acc, value, value, value, mask, gamma, out, inner, PARTS * start + halves,
            lower, stride_l, offsets, numbers, mask,
            FACTORS, False, False, LOWER,
        )  # fmt: skip


@contextlib.contextmanager
def _settings(precision: str, device: torch.device) -> Iterator[None]:
    """The library's products repeat to the bit; plain TF32, coarser than the kernels', is off."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        with float32_products("highest" if precision == "high" else precision, device):
            yield
    finally:
        torch.backends.cudnn.deterministic = before


_TORCH = {tl.float32: torch.float32, tl.bfloat16: torch.bfloat16, tl.float16: torch.float16}


def _stacked(weight: Weight, products: tuple[Product, ...], pairs: list[tuple[int, int]]) -> bool:
    """Whether the products are those of weights in memory, each by its own place."""
    plain = weight.atoms is None or set(weight.atoms) <= {"identity"}
    return plain and pairs == [(i, i) for i in range(weight.parts)] == [
        (i, p.weight) for i, p in enumerate(products)
    ]


def _joins(call: ContractionCall | AdjointCall) -> bool:
    """Whether several weights make one of more features."""
    conv = call.map
    single = call.weight.parts == 1
    return single or not isinstance(conv, Conv) or (conv.groups == 1 and not conv.transposed)


def contraction(call: ContractionCall) -> Callable[[], None] | None:
    """The contraction by the library, None where it is no single product of its.

    Of half-precision operands the library's result is rounded to their type, so that several parts,
    whose sum is the output, are left to the fused kernel.
    """
    pairs = [(p.accumulator, p.weight) for p in call.products]
    plain = call.program.box is None and all(p.factor == "identity" for p in call.products)
    operand, _ = operand_type(call.weight.source, call.precision)
    rounded = operand != tl.float32 and call.weight.parts > 1
    if rounded or not (plain and _stacked(call.weight, call.products, pairs) and _joins(call)):
        return None
    return lambda: _contract(call, _TORCH[operand])


def _contract(call: ContractionCall, dtype: torch.dtype) -> None:
    target = call.z[0] if call.z is not None else call.y
    assert target is not None
    weight = call.weight.tensor.flatten(0, 1)
    with _settings(call.precision, call.a.device):
        p = call.map.contraction(call.a.to(dtype), weight.to(dtype))
    axis, parts, n = call.map.feature_axis, call.weight.parts, target.numel()
    whole = p.permute(order_of(target)).contiguous()
    inner = inner_of(target, axis)
    features = target.shape[axis]
    (blocks, _), block = grid_of(n, 1)
    product_contraction[(blocks,)](
        whole, whole if call.bias is None else call.bias, whole if call.z is None else call.z,
        whole if call.y is None else call.y, n, inner, features, inner // features,
        n if call.z is None else call.z.stride(0), call.program.gamma,
        PARTS=parts, **epilogue_constants(call), B=block, enable_fp_fusion=FUSION,
    )  # fmt: skip


def adjoint(call: AdjointCall, step: Pass) -> Callable[[], None] | None:
    """The adjoint by the library, None where it is no single product of its."""
    pairs = [(p.left, p.weight) for p in call.program.adjoint]
    single = step.factors in (("identity",), ("one",)) and not step.add
    if not (single and len(call.program.factors) == 1 and _joins(call)):
        return None
    if not _stacked(call.weight, call.program.adjoint, pairs):
        return None
    operand, _ = operand_type(call.weight.source, call.precision, adjoint=True)
    return lambda: _propagate(call, step, _TORCH[operand])


def _propagate(call: AdjointCall, step: Pass, dtype: torch.dtype) -> None:
    a, axis = call.a, call.map.feature_axis
    place = call.s.dim() + axis - 1
    s = call.s.movedim(0, place).flatten(place, place + 1)
    rows = s.shape[0]
    with _settings(call.precision, call.a.device):
        weight = call.weight.tensor.flatten(0, 1).to(dtype)
        p = call.map.adjoint(s.to(dtype), weight, torch.Size((rows, *a.shape[1:])))
    out, parts = call.out, call.out.shape[0]
    like = out[0, : a.shape[0]]
    n = a.numel()
    lower = a if call.lower is None else flat(call.lower.z, 1, like)
    inner = a.shape[-1]  # a dense layer's quotients lie side by side in front of its last axis
    if isinstance(call.map, Conv):
        inner = n if call.lower is None else inner_of(like, call.lower.feature_axis)
    grid, block = grid_of(n, rows // a.shape[0])
    product_adjoint[grid](
        flat(p.unflatten(0, (-1, a.shape[0])), 1, like), flat(a, 0, like), lower, out,
        rows // a.shape[0], n, inner, n, call.program.gamma, lower_numbers(call.lower),
        FACTORS=tuple(ATOMS[f] for f in step.factors), READ=step.reads, LOWER=step.lower,
        PARTS=parts, B=block, enable_fp_fusion=FUSION,
    )  # fmt: skip
