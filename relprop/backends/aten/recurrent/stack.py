"""Recurrent layers through library calls: stacks, both directions, lengths, any number of targets.

Values run over time first, relevance over time and targets: `[T, K, batch, ·]`.  Half precision is
computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relprop.backends.aten.recurrent.fused import fused_scan
from relprop.backends.aten.recurrent.reduced import (
    Inflow,
    Outflow,
    Scan,
    at_last,
    reduced_relevance,
    scan_of,
)
from relprop.backends.aten.recurrent.stepwise import stepwise_relevance
from relprop.backends.aten.recurrent.tape import Tape, run
from relprop.graph.recurrent import Direction, Layout
from relprop.operations.base import Step, quotient
from relprop.operations.precision import float32_products
from relprop.operations.recurrent import Call, Parted, RecurrentRun, States
from relprop.rules import Recurrent

__all__ = ["AtenRecurrence", "Saved", "forward", "relevance"]


class AtenRecurrence(RecurrentRun):
    """Recurrent steps through library calls."""

    def run(self, step: Step, call: Call) -> tuple[States, Any]:
        assert isinstance(step.rule, Recurrent)
        return forward(*call[:-1], step.rule, call.lengths)

    def carried_back(self, saved: Any, given: Sequence[Tensor | None]) -> Parted:
        return relevance(saved, *given)


@dataclass(frozen=True)
class Saved:
    """What the relevance pass of a recurrent layer needs.

    Attributes:
        layout, rule: of the layer.
        runs: for each layer and direction its reduced recurrence, or its whole tape.
        lengths: valid steps of each sample `[batch]`, or None.
        x: the layer's input, time first, padding zero.
        out: its output, time first, padding zero.
        last: its last hidden states `[layers * ways, batch, P]`.
    """

    layout: Layout
    rule: Recurrent
    runs: list[Scan | Tape]
    lengths: Tensor | None
    x: Tensor
    out: Tensor
    last: Tensor

    @property
    def bounded(self) -> bool:
        """Whether relevance travels as coefficients between the layers."""
        return isinstance(self.runs[0], Scan) and self.runs[0].bounded


def is_reduced(rule: Recurrent) -> bool:
    """Whether the reduced recurrence serves the rule."""
    return rule.gate == "all" and rule.rule is None and rule.bias_factor == 0


def forward(
    layout: Layout,
    directions: Sequence[Direction],
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    rule: Recurrent,
    lengths: Tensor | None = None,
) -> tuple[tuple[Tensor, Tensor, Tensor | None], Saved]:
    """Output, last hidden states, last cells; and what `relevance` needs.

    Args:
        layout: the layer.
        directions: its weights, layer by layer.
        x: `[batch, T, E]` if `layout.batch_first`, else `[T, batch, E]`.
        h0: `[layers * ways, batch, P]`.
        c0: `[layers * ways, batch, H]`, an LSTM's.
        rule: the rule.
        lengths: valid steps of each sample `[batch]`, each from 1 to T, or None.

    Returns:
        (output, h_n, c_n), shaped as PyTorch's, zero on padding; then the saved tensors.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, h0 = x.detach().to(dtype), h0.detach().to(dtype)
    c0 = None if c0 is None else c0.detach().to(dtype)
    x = _masked(x.transpose(0, 1) if layout.batch_first else x, lengths).contiguous()
    current, runs, last, cells = x, [], [], []
    with torch.no_grad(), float32_products("highest", x.device):
        for layer in range(layout.layers):
            outputs = []
            for way in range(layout.ways):
                index = layer * layout.ways + way
                own = reverse(current, lengths) if way else current
                state = h0[index], None if c0 is None else c0[index]
                recurrence, h, c = _run(layout.kind, directions[index].to(x), own, *state, rule)
                last.append(_last(h, lengths))
                if c is not None:
                    cells.append(_last(c, lengths))
                h = _masked(h, lengths)
                outputs.append(reverse(h, lengths) if way else h)
                runs.append(recurrence)
            current = torch.cat(outputs, -1) if layout.bidirectional else outputs[0]
    states = torch.stack(last), torch.stack(cells) if cells else None
    saved = Saved(layout, rule, runs, lengths, x, current, states[0])
    out = current.transpose(0, 1) if layout.batch_first else current
    return (out, *states), saved


def _run(
    kind: str, w: Direction, x: Tensor, h0: Tensor, c0: Tensor | None, rule: Recurrent
) -> tuple[Scan | Tape, Tensor, Tensor | None]:
    """One direction: what its relevance pass needs, its hidden states, an LSTM's cells."""
    plain = kind == "lstm" and w.w_hr is None and rule.epsilon > 0
    if is_reduced(rule) and plain and c0 is not None and not x.is_cuda:
        return fused_scan(w, x, h0, c0, rule.epsilon)
    tape = run(kind, w, x, h0, c0)
    return scan_of(tape, rule.epsilon) if is_reduced(rule) else tape, tape.h, tape.c


def relevance(
    saved: Saved, r_out: Tensor | None, r_last: Tensor | None, r_cells: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Relevance of the input, of the initial hidden states, of the initial cells.

    Args:
        saved: what `forward` left.
        r_out: of the output, `[K, *shape]`, or None; that on padding is lost.
        r_last: of the last hidden states, `[K, layers * ways, batch, P]`, or None.
        r_cells: of the last cells, likewise.

    Returns:
        `[K, *shape]` of each; the last is None but for an LSTM.
    """
    layout, ways = saved.layout, saved.layout.ways
    with torch.no_grad(), float32_products("highest", saved.x.device):
        above = _above(saved, r_out, r_last, r_cells)
        r_h0: list[Tensor] = [above] * len(saved.runs)
        r_c0: list[Tensor | None] = [None] * len(saved.runs)
        for layer in reversed(range(layout.layers)):
            below = []
            for way, own in enumerate(above.chunk(ways, -1)):
                index = layer * ways + way
                found = _direction(saved, index, own, r_last, r_cells)
                r_h0[index], r_c0[index] = found.h0, found.c0
                below.append(reverse(found.x, saved.lengths) if way else found.x)
            above = below[0] if ways == 1 else below[0] + below[1]
        r_x = above * saved.x.unsqueeze(1) if saved.bounded else above
        r_x = _masked(r_x, saved.lengths).permute(
            (1, 2, 0, 3) if layout.batch_first else (1, 0, 2, 3)
        )
    cells = [r for r in r_c0 if r is not None]
    return r_x.contiguous(), torch.stack(r_h0, 1), torch.stack(cells, 1) if cells else None


def _direction(
    saved: Saved, index: int, own: Tensor, r_last: Tensor | None, r_cells: Tensor | None
) -> Outflow:
    """Relevance through one direction of one layer."""
    last = None if saved.lengths is None else saved.lengths - 1
    own = reverse(own, saved.lengths) if index % saved.layout.ways else own
    own = own.contiguous() if r_last is None else own.clone(memory_format=torch.contiguous_format)
    if r_last is not None:
        r = r_last[:, index].to(own)
        if saved.bounded:
            r = quotient(r, saved.last[index], 0.0)
        if last is None:
            own[-1] += r
        else:
            own[last, :, torch.arange(len(last), device=last.device)] += r.transpose(0, 1)
    cells = None if r_cells is None else r_cells[:, index].to(own)
    inflow = Inflow(own, cells, last)
    recurrence = saved.runs[index]
    if isinstance(recurrence, Scan):
        return reduced_relevance(recurrence, inflow)
    return stepwise_relevance(recurrence, saved.rule, inflow)


def _above(saved: Saved, *given: Tensor | None) -> Tensor:
    """What comes to the top layer's output, `[T, K, batch, ·]`."""
    r_out = given[0]
    if r_out is None:
        targets = next(r.shape[0] for r in given if r is not None)
        steps, *rest = saved.out.shape
        return saved.out.new_zeros(steps, targets, *rest)
    r = r_out.to(saved.out).permute((2, 0, 1, 3) if saved.layout.batch_first else (1, 0, 2, 3))
    r = _masked(r, saved.lengths)
    return quotient(r, saved.out.unsqueeze(1), 0.0) if saved.bounded else r


def _last(values: Tensor, lengths: Tensor | None) -> Tensor:
    return values[-1] if lengths is None else at_last(values, lengths - 1)


def _masked(values: Tensor, lengths: Tensor | None) -> Tensor:
    """`[T, (K,) batch, ·]` with 0 beyond each sample's length."""
    if lengths is None:
        return values
    valid = torch.arange(len(values), device=values.device).unsqueeze(1) < lengths
    shape = (len(values), *(1,) * (values.ndim - 3), len(lengths), 1)
    return torch.where(valid.view(shape), values, 0.0)


def reverse(values: Tensor, lengths: Tensor | None) -> Tensor:
    """`[T, (K,) batch, ·]` with each sample's valid steps in reverse; its own inverse."""
    if lengths is None:
        return values.flip(0)
    steps = torch.arange(len(values), device=values.device).unsqueeze(1)
    order = torch.where(steps < lengths, lengths - 1 - steps, steps)
    shape = (len(values), *(1,) * (values.ndim - 3), len(lengths), 1)
    return values.gather(0, order.view(shape).expand(values.shape))
