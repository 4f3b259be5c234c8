"""Operands of the recurrent kernels: rows in the order of memory, padded weights, joined biases."""

from __future__ import annotations

import triton
from torch import Tensor

from relprop.graph.recurrent import GATES
from relprop.kernels.recurrent.forms import Form, torch_type

__all__ = [
    "biases_of",
    "candidate_of",
    "carry_of",
    "or_else",
    "padded",
    "rows_of",
    "steps_first",
]


def or_else(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A tensor, or what stands in for it where the kernel does not touch it."""
    return other if tensor is None else tensor


def rows_of(x: Tensor) -> tuple[Tensor, bool]:
    """The input as rows `[N, E]` in the order of memory; whether samples are the outer ones."""
    turned = x.transpose(0, 1)
    batch_first = turned.is_contiguous() and not x.is_contiguous()
    return (turned if batch_first else x).reshape(-1, x.shape[-1]), batch_first


def steps_first(rows: Tensor, x: Tensor, batch_first: bool) -> Tensor:
    """Rows `[N, ·]` as `[T, batch, ·]`."""
    steps, batch, _ = x.shape
    if batch_first:
        return rows.view(batch, steps, rows.shape[-1]).transpose(0, 1)
    return rows.view(steps, batch, rows.shape[-1])


def biases_of(
    kind: str, b_ih: Tensor | None, b_hh: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The bias of the input product; that of a GRU's recurrent product of n, float32."""
    if b_ih is None or b_hh is None:
        return None, None
    b_ih, b_hh = b_ih.float(), b_hh.float()
    if kind != "gru":
        return (b_ih + b_hh).flatten(), None
    split = b_hh.shape[1] // 3 * 2
    joint = b_ih.clone()
    joint[:, :split] += b_hh[:, :split]
    return joint.flatten(), b_hh[:, split:].contiguous()


def candidate_of(kind: str, w: Tensor) -> Tensor:
    """The candidate's rows of a weight `[ways, gates * H, ·]`."""
    gates = GATES[kind]
    return w.chunk(gates, 1)[2 if gates > 1 else 0]


def padded(w: Tensor, width: int, operand: object) -> Tensor:
    """`[ways, gates, H, H]` padded with 0 to `[ways, gates, width, width]` operands."""
    hidden = w.shape[-1]
    out = w.new_zeros(*w.shape[:2], width, width, dtype=torch_type(operand))
    out[..., :hidden, :hidden] = w
    return out


def carry_of(form: Form, w: Tensor, ways: int, rows: int) -> Tensor:
    """What one step hands to the next, twice: zeros `[2, ways, rows, width]`, whole blocks."""
    if form.name == "held":
        return w
    return w.new_zeros(2, ways, triton.cdiv(rows, form.m) * form.m, w.shape[-1])
