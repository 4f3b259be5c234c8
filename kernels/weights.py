"""Modified weights, written to memory once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from relprop.kernels.layouts import order_of, restored
from relprop.kernels.modifiers import ATOMS
from relprop.kernels.operands import Weight
from relprop.kernels.pointwise import grid_of
from relprop.kernels.program import Program
from relprop.kernels.runtime import FUSION

__all__ = ["prepare_weights"]


@triton.jit
def modified_weights(w, out, n, gamma, ATOM0: tl.constexpr, ATOM1: tl.constexpr, B: tl.constexpr):
    """out [2, n]: two modifications of w [n], from one read."""
    offsets = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    mask = offsets < n
    value = tl.load(w + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offsets, ATOM0(value, gamma).to(out.dtype.element_ty), mask=mask)
    if ATOM1 is not None:
        tl.store(out + n + offsets, ATOM1(value, gamma).to(out.dtype.element_ty), mask=mask)


def prepare_weights(
    program: Program, w: Tensor, a: Tensor, *, precision: str = "highest"
) -> Weight:
    """The modified weights of a program, written to memory once; plain ones are as they are.

    Args:
        program: the rule.
        w: the layer's weight.
        a: the layer's input: its memory layout (channels first or last) and its dtype.
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
    if plain or w.numel() == 0:
        return Weight(w[None], kinds, source)
    dtype = torch.float32 if "square" in kinds else torch.bfloat16 if narrow else w.dtype
    order = order_of(a) if a.dim() == w.dim() and w.dim() > 2 else list(range(w.dim()))
    flat = w.permute(order).contiguous()
    out = flat.new_empty((len(kinds), *flat.shape), dtype=dtype)
    (blocks, _), block = grid_of(w.numel(), 1)
    atoms = [ATOMS[kind] for kind in kinds] + [None]
    modified_weights[(blocks,)](
        flat, out, w.numel(), program.gamma, ATOM0=atoms[0], ATOM1=atoms[1], B=block,
        enable_fp_fusion=FUSION,
    )  # fmt: skip
    return Weight(restored(out, order), None, source)
