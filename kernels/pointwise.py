"""The quotient by a kernel of its own, and what elementwise kernels share."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from relprop.kernels.epilogues import finish_relevance
from relprop.kernels.layouts import flat, inner_of, quotient_empty
from relprop.kernels.program import Program
from relprop.kernels.runtime import FUSION, interpreted

__all__ = ["grid_of", "quotients", "store_shares"]

BLOCK = 1024
INTERPRETER_BLOCK = 16_384


@triton.jit
def store_shares(r, z, stride_z, s, row, n, inner, offsets, numbers, mask, MODE: tl.constexpr):
    """Store the quotients of relevance r by z [1 or 2, n], or r itself where MODE is None.

    Two quotients go to s [rows, n / inner, 2, inner], halves of one row-major buffer.
    """
    start = row * tl.cast(n, tl.int64)
    places = start + offsets
    if MODE is not None and MODE != "one":
        places += start + (offsets // inner) * inner
    finish_relevance(r, z, stride_z, offsets, s, inner, places, numbers, mask, MODE)


@triton.jit
def quotient(r, z, s, rows, n, stride_z, inner, numbers, MODE: tl.constexpr, B: tl.constexpr):
    """s [rows, n], or [rows, n / inner, 2, inner], of r [rows, n] and z [1 or 2, n]."""
    offsets = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    mask = offsets < n
    for row in range(tl.program_id(1), rows, tl.num_programs(1)):
        place = row * tl.cast(n, tl.int64) + offsets
        value = tl.load(r + place, mask=mask, other=0.0).to(tl.float32)
        store_shares(value, z, stride_z, s, row, n, inner, offsets, numbers, mask, MODE)


def grid_of(n: int, rows: int) -> tuple[tuple[int, int], int]:
    """Programs over elements and rows, and the block: enough programs, few in the interpreter."""
    block = INTERPRETER_BLOCK if interpreted() else BLOCK
    blocks = triton.cdiv(n, block)
    row_programs = 1 if interpreted() else min(rows, triton.cdiv(512, blocks))
    return (blocks, row_programs), block


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
        flat_r, flat_z, s, rows, n, n, inner_of(z[0], feature_axis), program.numbers,
        MODE=program.mode, B=block, enable_fp_fusion=FUSION,
    )  # fmt: skip
    return s
