"""One recurrent layer, all its directions: forward pass and relevance pass.

Plain tensors: `[T, batch, ·]` by strides, time first or batch first in memory, K targets ahead in
relevance.  Four launches a layer: the input product, the steps, the steps back, and R_x as one
product over all steps and directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from relprop.errors import InputError
from relprop.graph.maps import Dense
from relprop.graph.recurrent import CELLED, GATES
from relprop.kernels.constants import operand_type
from relprop.kernels.layer import Contraction, adjoint, contraction
from relprop.kernels.program import compile_rule
from relprop.kernels.recurrent.forms import Form, Steps, choose_form
from relprop.kernels.recurrent.forward import forward_scan, forward_step
from relprop.kernels.recurrent.operands import (
    biases_of,
    candidate_of,
    carry_of,
    or_else,
    padded,
    rows_of,
    steps_first,
)
from relprop.kernels.recurrent.relevance import relevance_scan, relevance_step
from relprop.kernels.runtime import FUSION
from relprop.kernels.weights import prepare_weights
from relprop.rules import Epsilon

__all__ = ["Recurrence", "recurrent_forward", "recurrent_relevance"]


@dataclass(frozen=True)
class Recurrence:
    """What a layer's forward pass leaves behind.

    Attributes:
        kind: of the layer.
        x: the input's rows `[N, E]`, N over time and batch as they lie in memory.
        batch_first: whether samples are the outer ones of these rows.
        h: hidden states `[T, batch, ways * H]`, 0 on padding.
        h0: `[ways, batch, H]`.
        alpha, beta, mix: see README.md, `[ways, T, batch, H]` in the order of steps; alpha None
            for an RNN, mix for all but a GRU.
        w_ih, w_hh: the rows of the weights that relevance goes through, `[ways, H, ·]`.
        lengths: valid steps of each sample, or None.
        precision: of the products.
    """

    kind: str
    x: Tensor
    batch_first: bool
    h: Tensor
    h0: Tensor
    alpha: Tensor | None
    beta: Tensor
    mix: Tensor | None
    w_ih: Tensor
    w_hh: Tensor
    lengths: Tensor | None
    precision: str

    @property
    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, beta, mix; beta stands in for what the kind has not."""
        return or_else(self.alpha, self.beta), self.beta, or_else(self.mix, self.beta)


def recurrent_forward(
    kind: str,
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    *,
    epsilon: float,
    lengths: Tensor | None = None,
    precision: str = "highest",
    form: Form | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Recurrence]:
    """One layer, direction 0 forwards and direction 1, if there is one, backwards in time.

    Args:
        kind: a key of `GATES`.
        x: `[T, batch, E]`, finite on padding too.
        w_ih, w_hh: `[ways, gates * H, E]` and `[ways, gates * H, H]`.
        b_ih, b_hh: `[ways, gates * H]`, both or neither None.
        h0: `[ways, batch, H]`.
        c0: likewise for kinds with a cell, else None.
        epsilon: the stabilizer, above 0.
        lengths: valid steps of each sample, integers from 1 to T `[batch]`, or None.
        precision: "highest" (IEEE float32), "high" (3xTF32), "medium" (bfloat16 operands).
        form: how to run the steps; None chooses by shape.

    Returns:
        Hidden states `[T, batch, ways * H]`, the last ones and the last cells `[ways, batch, H]`,
        all float32, and what `recurrent_relevance` needs.

    Raises:
        InputError: a type, precision or stabilizer that no kernel takes.
    """
    if epsilon <= 0:
        raise InputError(
            f"recurrent kernels divide by st(c): epsilon is {epsilon}; expected a number above 0"
        )
    gates, (ways, _, hidden) = GATES[kind], w_hh.shape
    steps, batch, _ = x.shape
    operand, mode = operand_type(torch.promote_types(x.dtype, w_hh.dtype), precision)
    form = form or choose_form(Steps(ways * batch, hidden, gates, gates, operand, mode))
    rows, batch_first = rows_of(x)
    bias, own_bias = biases_of(kind, b_ih, b_hh)
    flat = w_ih.reshape(ways * gates * hidden, -1)
    y = contraction(Dense(), Epsilon(), rows, flat, bias, save=False, precision=precision).y
    assert y is not None
    h = rows.new_empty(len(rows), ways * hidden, dtype=torch.float32)
    h = steps_first(h, x, batch_first)

    def step_values(wanted: bool) -> Tensor | None:
        return h.new_empty(ways, steps, batch, hidden) if wanted else None

    beta = step_values(True)
    assert beta is not None
    recurrence = Recurrence(
        kind=kind,
        x=rows,
        batch_first=batch_first,
        h=h,
        h0=h0.float().contiguous(),
        alpha=step_values(not kind.startswith("rnn")),
        beta=beta,
        mix=step_values(kind == "gru"),
        w_ih=candidate_of(kind, w_ih),
        w_hh=candidate_of(kind, w_hh),
        lengths=lengths,
        precision=precision,
    )
    first = h0 if c0 is None else c0
    state = torch.clone(first, memory_format=torch.contiguous_format).float()
    h_last = state if c0 is None else torch.empty_like(state)
    if h.numel():
        pre = steps_first(y, x, batch_first)
        w = padded(w_hh.reshape(ways, gates, hidden, hidden), form.padded(hidden), operand)
        _advance(recurrence, pre, w, own_bias, state, h_last, form, mode, epsilon)
    return h, h_last, None if c0 is None else state, recurrence


def _advance(
    saved: Recurrence,
    pre: Tensor,
    w: Tensor,
    bias: Tensor | None,
    state: Tensor,
    h_last: Tensor,
    form: Form,
    mode: str,
    epsilon: float,
) -> None:
    """The steps: writes h, alpha, beta, mix; the last states over `state`, a cell's h to h_last."""
    h, lengths = saved.h, saved.lengths
    ways, batch, hidden = saved.h0.shape
    carry = carry_of(form, w, ways, batch)
    if form.name != "held":
        carry[0, :, :batch, :hidden] = saved.h0
    tensors = (h if lengths is None else lengths, h, h_last, saved.factors)
    numbers = (
        (len(h), batch, hidden), carry.shape[-2], pre.stride()[:2], h.stride()[:2], epsilon
    )  # fmt: skip
    shared = {
        "CELL": saved.kind, "GATES": GATES[saved.kind], "BIASED": bias is not None,
        **_constants(form, w, hidden, lengths, mode),
    }  # fmt: skip
    tiles, bias = triton.cdiv(batch, form.m), or_else(bias, h)
    if form.name != "stepped":
        forward_scan[(tiles, ways)](
            pre, w, bias, state, saved.h0, carry, *tensors, *numbers,
            HELD=form.name == "held", STAGES=form.loop_stages, **shared,
        )  # fmt: skip
        return
    grid = (tiles * (w.shape[-1] // form.n), ways)
    for k in range(len(h)):
        forward_step[grid](
            pre, w, bias, state, carry, *tensors, k, *numbers, BN=form.n, **shared
        )  # fmt: skip


def recurrent_relevance(
    saved: Recurrence,
    r_out: Tensor | None,
    r_last: Tensor | None,
    r_cells: Tensor | None,
    *,
    form: Form | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Relevance of a layer's input and of its initial states.

    Args:
        saved: what `recurrent_forward` left.
        r_out: of the hidden states, `[K, T, batch, ways * H]`, or None; that on padding is lost.
        r_last: of the last hidden states, `[K, ways, batch, H]`, or None.
        r_cells: of the last cells, likewise.
        form: how to run the steps; None chooses by shape.

    Returns:
        `[K, T, batch, E]`, laid out as the input; `[K, ways, batch, H]` of h_0 and (None without
        cells) of c_0; float32.
    """
    targets = next(len(r) for r in (r_out, r_last, r_cells) if r is not None)
    ways, hidden = saved.h0.shape[0], saved.h0.shape[2]
    steps, batch, _ = saved.h.shape
    operand, mode = operand_type(
        torch.promote_types(saved.x.dtype, saved.w_hh.dtype), saved.precision, adjoint=True
    )
    reads = 5 if saved.mix is None else 6
    form = form or choose_form(Steps(ways * targets * batch, hidden, 1, reads, operand, mode))
    new = saved.h.new_empty
    s = new(1, targets, len(saved.x), ways * hidden)
    cells = saved.kind in CELLED
    r_h0 = new(targets, ways, batch, hidden)
    r_c0 = torch.empty_like(r_h0) if cells else r_h0
    if s.numel():
        _carry_back(saved, r_out, r_last, r_cells, s[0], r_h0, r_c0, form, operand, mode)
    program = compile_rule(Epsilon())
    weight = prepare_weights(program, saved.w_ih.reshape(ways * hidden, -1), saved.x)
    layer = Contraction(Dense(), program, saved.x, weight, None, None)
    r_x = adjoint(layer, s, precision=saved.precision)
    r_x = r_x.unflatten(1, (batch, steps) if saved.batch_first else (steps, batch))
    return r_x.transpose(1, 2) if saved.batch_first else r_x, r_h0, r_c0 if cells else None


def _carry_back(
    saved: Recurrence,
    r_out: Tensor | None,
    r_last: Tensor | None,
    r_cells: Tensor | None,
    s: Tensor,
    r_h0: Tensor,
    r_c0: Tensor,
    form: Form,
    operand: object,
    mode: str,
) -> None:
    """The steps back: writes s `[K, N, ways * H]` and relevance of the initial states."""
    h = saved.h
    ways, batch, hidden = saved.h0.shape
    rows = len(s) * batch
    w = padded(saved.w_hh.transpose(1, 2).unsqueeze(1), form.padded(hidden), operand)
    carry = carry_of(form, w, ways, rows)
    layered = s.unflatten(1, (batch, len(h)) if saved.batch_first else (len(h), batch))
    layered = layered.transpose(1, 2) if saved.batch_first else layered
    above = h.unsqueeze(0) if r_out is None else r_out
    above = above if above.stride(-1) == 1 else above.contiguous()
    last, end = (None if r is None else r.float().contiguous() for r in (r_last, r_cells))
    tensors = (above, h, saved.h0, saved.factors, w, or_else(last, r_h0))
    lengths = or_else(saved.lengths, h)
    numbers = (
        (len(h), batch, hidden), rows, carry.shape[-2], above.stride()[:3], h.stride()[:2],
        layered.stride()[:3],
    )  # fmt: skip
    cells = saved.kind in CELLED
    shared = {
        "ABOVE": r_out is not None, "LAST": last is not None, "CELLS": cells,
        "STATE": saved.alpha is not None, "MIX": saved.mix is not None,
        **_constants(form, w, hidden, saved.lengths, mode),
    }  # fmt: skip
    tiles = triton.cdiv(rows, form.m)
    if form.name != "stepped":
        relevance_scan[(tiles, ways)](
            *tensors, or_else(end, r_h0), carry, lengths, s, r_h0, r_c0, *numbers,
            GIVEN=end is not None, HELD=form.name == "held", STAGES=form.loop_stages, **shared,
        )  # fmt: skip
        return
    state = r_c0 if cells else torch.empty_like(r_h0)
    state.zero_() if end is None else state.copy_(end)
    grid = (tiles * (w.shape[-1] // form.n), ways)
    for k in range(len(h) - 1, -2, -1):
        relevance_step[grid](
            *tensors, state, carry, lengths, s, r_h0, k, *numbers, FINAL=k < 0, BN=form.n, **shared
        )


def _constants(
    form: Form, w: Tensor, hidden: int, lengths: Tensor | None, mode: str
) -> dict[str, object]:
    """What all four kernels take."""
    return {
        "LENGTHS": lengths is not None, "EVEN": w.shape[-1] == hidden, "PRECISION": mode,
        "WIDTH": w.shape[-1], "BM": form.m, "BK": form.k, "num_warps": form.warps,
        "num_stages": form.stages, "enable_fp_fusion": FUSION,
    }  # fmt: skip
