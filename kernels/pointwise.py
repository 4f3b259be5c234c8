"""Elementwise kernels: modified weights, the quotient, the split of a sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from relprop.kernels.modifiers import ATOMS
from relprop.kernels.operands import Weight
from relprop.kernels.program import Program
from relprop.kernels.tiles import FUSION, interpreted, ratio, shares

__all__ = ["ordered_empty", "prepare_weights", "quotients", "residual_split"]

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
def quotient(
    r,
    z,
    s,
    rows,
    n,
    stride_z,
    stride_s,
    epsilon,
    scale0,
    scale1,
    MODE: tl.constexpr,
    B: tl.constexpr,
):
    """s [1 or 2, rows, n] of r [rows, n] and z [1 or 2, n]: every row shares z."""
    offsets = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    mask = offsets < n
    z0 = tl.load(z + offsets, mask=mask, other=1.0)
    z1 = z0
    if MODE != "one":
        z1 = tl.load(z + stride_z + offsets, mask=mask, other=1.0)
    wide = tl.cast(n, tl.int64)
    for row in range(tl.program_id(1), rows, tl.num_programs(1)):
        place = row * wide + offsets
        value = tl.load(r + place, mask=mask, other=0.0).to(tl.float32)
        s0, s1 = shares(value, z0, z1, epsilon, scale0, scale1, MODE)
        tl.store(s + place, s0, mask=mask)
        if MODE != "one":
            tl.store(s + stride_s + place, s1, mask=mask)


@triton.jit
def sum_shares(a, b, r, out, rows, n, stride_o, epsilon, B: tl.constexpr):
    """out [2, rows, n]: the shares of a [n] and b [n] in r [rows, n], by st(a + b)."""
    offsets = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    mask = offsets < n
    left = tl.load(a + offsets, mask=mask, other=0.0).to(tl.float32)
    right = tl.load(b + offsets, mask=mask, other=0.0).to(tl.float32)
    wide = tl.cast(n, tl.int64)
    for row in range(tl.program_id(1), rows, tl.num_programs(1)):
        place = row * wide + offsets
        value = tl.load(r + place, mask=mask, other=0.0).to(tl.float32)
        s = ratio(value, left + right, epsilon)
        tl.store(out + place, left * s, mask=mask)
        tl.store(out + stride_o + place, right * s, mask=mask)


def _grid(n: int, rows: int) -> tuple[tuple[int, int], int]:
    """Programs over elements and rows, and the block: enough programs, few in the interpreter."""
    block = INTERPRETER_BLOCK if interpreted() else BLOCK
    blocks = triton.cdiv(n, block)
    row_programs = 1 if interpreted() else min(rows, triton.cdiv(512, blocks))
    return (blocks, row_programs), block


def _order(like: Tensor) -> list[int]:
    """The axes after the first, as they lie in memory, outermost first."""
    return sorted(range(1, like.dim()), key=lambda axis: -like.stride()[axis])


def ordered_empty(lead: Sequence[int], shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised float32 `[*lead, *shape]` whose axes lie in memory as those of `like` do.

    `shape` has as many axes as `like`, the first of them the batch.
    """
    order = [0, *_order(like)]
    empty = like.new_empty([*lead, *(shape[axis] for axis in order)], dtype=torch.float32)
    back = sorted(range(len(order)), key=order.__getitem__)
    return empty.permute(*range(len(lead)), *(len(lead) + axis for axis in back))


def _flat(tensor: Tensor, lead: int, like: Tensor) -> Tensor:
    """A tensor `[*lead, *like.shape]` laid out as `like`, without copying where it is already."""
    axes = [*range(lead), lead, *(lead + axis for axis in _order(like))]
    return tensor.permute(axes).contiguous()


def quotients(program: Program, z: Tensor, r: Tensor) -> Tensor:
    """The quotients of a rule's groups.

    Args:
        program: the rule.
        z: what the contraction saved, `[saved, batch, ...]`; batch 1 if it is input-independent.
        r: relevance of the output, `[targets, batch, ...]`.

    Returns:
        `[quotients, targets, batch, ...]`, float32, laid out as `z`.
    """
    parts = 1 if program.mode == "one" else 2
    s = ordered_empty((parts, r.shape[0]), r.shape[1:], z[0])
    if s.numel() == 0:
        return s
    flat_z, flat_r = _flat(z, 1, z[0]), _flat(r, 1, z[0])
    n = z[0].numel()
    rows = r.numel() // n
    grid, block = _grid(n, rows)
    quotient[grid](
        flat_r, flat_z, s, rows, n, n, rows * n, program.epsilon, *program.scales,
        MODE=program.mode, B=block, enable_fp_fusion=FUSION,
    )  # fmt: skip
    return s


def residual_split(a: Tensor, b: Tensor, r: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The shares of two summands of one shape.

    Args:
        a, b: the summands, `[batch, ...]` (expand a broadcast one, and sum its share afterwards).
        r: relevance of the sum, `[targets, batch, ...]`.
        epsilon: the stabilizer.

    Returns:
        Relevance of `a` and of `b`, shaped like `r`, float32.
    """
    out = ordered_empty((2, r.shape[0]), a.shape, a)
    if out.numel():
        n = a.numel()
        grid, block = _grid(n, r.shape[0])
        sum_shares[grid](
            _flat(a, 0, a), _flat(b, 0, a), _flat(r, 1, a), out, r.shape[0], n, r.numel(),
            epsilon, B=block, enable_fp_fusion=FUSION,
        )  # fmt: skip
    return out[0], out[1]


def prepare_weights(
    program: Program, w: Tensor, a: Tensor, *, in_registers: bool = False
) -> Weight:
    """The modified weights of a program: written to memory once, or left to the product kernels.

    Args:
        program: the rule.
        w: the layer's weight.
        a: the layer's input: its memory layout (channels first or last) and its dtype.
        in_registers: leave the weight as it is.
    """
    kinds = [weight.kind for weight in program.weights]
    source = torch.promote_types(a.dtype, w.dtype)
    if "square" in kinds:
        source = torch.float32
    if in_registers or set(kinds) <= {"identity", "one"} or w.numel() == 0:
        return Weight(w[None], kinds, source)
    dtype = torch.float32 if "square" in kinds else w.dtype
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
