"""Stacks of recurrent layers by kernels: forward, relevance, what no kernel serves.

The kernels serve `Recurrent("all")` with a stabilizer above 0, no share of the bias and no rule of
its own for the candidate's map, on layers without a projection.  Everything else is refused when
the plan is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relprop.backends.triton.operands import check_operands
from relprop.graph.recurrent import Direction, Layout
from relprop.operations import Step
from relprop.operations.base import refuse
from relprop.operations.recurrent import Call, Parted, Recurrence, RecurrentRun, States
from relprop.rules import Recurrent

if TYPE_CHECKING:
    from relprop.kernels.recurrent.launch import Recurrence as LayerSaved

__all__ = ["Saved", "TritonRecurrence", "check_rule", "forward", "relevance"]


@dataclass(frozen=True)
class Saved:
    """What the relevance pass of a stack needs.

    Attributes:
        layout: of the layer.
        layers: what each layer of the stack left.
    """

    layout: Layout
    layers: list[LayerSaved]


def limits_of(rule: Recurrent, projected: bool) -> str | None:
    """Why no kernel serves a rule, or a layer with a projection; None if one does."""
    asked = {
        f"gate={rule.gate!r}": rule.gate != "all",
        f"epsilon={rule.epsilon}": rule.epsilon <= 0,
        f"bias_factor={rule.bias_factor}": rule.bias_factor != 0,
        f"rule={rule.rule!r}": rule.rule is not None,
        "a projection": projected,
    }
    found = [name for name, unserved in asked.items() if unserved]
    if not found:
        return None
    return (
        f"backend='triton' has no kernel for a recurrent layer with {', '.join(found)}; it takes "
        "gate='all', epsilon > 0, bias_factor=0, no rule of its own for the candidate's map and no "
        "projection; use backend='aten'"
    )


def forward(
    layout: Layout,
    directions: Sequence[Direction],
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    rule: Recurrent,
    lengths: Tensor | None = None,
    precision: str = "highest",
    where: str = "recurrent layer",
) -> tuple[States, Saved]:
    """Output, last hidden states, last cells; and what `relevance` needs.

    Arguments as in `relprop.backends.aten.recurrent.stack.forward`, and

        precision: of the products.
        where: the layer, for messages.

    Raises:
        InputError: an operand that no kernel takes.
    """
    from relprop.kernels.recurrent.launch import recurrent_forward

    check_operands(where, input=x, h_0=h0, c_0=c0, weight=directions[0].w_hh)
    current = (x.transpose(0, 1) if layout.batch_first else x).detach()
    if lengths is not None:
        steps = torch.arange(len(current), device=x.device).view(-1, 1, 1)
        current = torch.where(steps < lengths.view(1, -1, 1), current, 0.0)
    layers: list[LayerSaved] = []
    last: list[Tensor] = []
    cells: list[Tensor] = []
    with torch.no_grad():
        for layer in range(layout.layers):
            rows = slice(layer * layout.ways, (layer + 1) * layout.ways)
            out, h, c, saved = recurrent_forward(
                layout.kind,
                current,
                *_stacked(directions[rows]),
                h0[rows].detach(),
                None if c0 is None else c0[rows].detach(),
                epsilon=rule.epsilon,
                lengths=lengths,
                precision=precision,
            )
            layers.append(saved)
            last.append(h)
            cells += [] if c is None else [c]
            # a half-precision network stays one: its products would be float32's otherwise
            current = out.to(x.dtype)
    out = out.transpose(0, 1) if layout.batch_first else out
    return (out, torch.cat(last), torch.cat(cells) if cells else None), Saved(layout, layers)


def relevance(
    saved: Saved, r_out: Tensor | None, r_last: Tensor | None, r_cells: Tensor | None
) -> Parted:
    """Relevance of the input, of the initial hidden states, of the initial cells.

    Arguments and result as in `relprop.backends.aten.recurrent.stack.relevance`.
    """
    from relprop.kernels.recurrent.launch import recurrent_relevance

    layout, ways = saved.layout, saved.layout.ways
    above = r_out.transpose(1, 2) if r_out is not None and layout.batch_first else r_out
    r_h0: list[Tensor] = []
    r_c0: list[Tensor] = []
    for layer in reversed(range(layout.layers)):
        rows = slice(layer * ways, (layer + 1) * ways)
        states = (None if r is None else r[:, rows] for r in (r_last, r_cells))
        above, h, c = recurrent_relevance(saved.layers[layer], above, *states)
        r_h0.append(h)
        r_c0 += [] if c is None else [c]
    assert above is not None
    r_x = above.transpose(1, 2) if layout.batch_first else above
    cells = torch.cat(r_c0[::-1], 1) if r_c0 else None
    return r_x.contiguous(), torch.cat(r_h0[::-1], 1), cells


def _stacked(
    directions: Sequence[Direction],
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """w_ih, w_hh, b_ih, b_hh of a layer's directions, `[ways, ·]` each."""

    def stacked(biases: Sequence[Tensor | None]) -> Tensor | None:
        given = [bias.detach() for bias in biases if bias is not None]
        return torch.stack(given) if given else None

    return (
        torch.stack([w.w_ih.detach() for w in directions]),
        torch.stack([w.w_hh.detach() for w in directions]),
        stacked([w.b_ih for w in directions]),
        stacked([w.b_hh for w in directions]),
    )


class TritonRecurrence(RecurrentRun):
    """Recurrent steps by kernels."""

    backend = "triton"

    def run(self, step: Step, call: Call) -> tuple[States, Any]:
        assert isinstance(step.rule, Recurrent)
        precision = step.options.get("precision", "highest")
        return forward(*call[:-1], step.rule, call.lengths, precision, step.where)

    def carried_back(self, saved: Any, given: Sequence[Tensor | None]) -> Parted:
        return relevance(saved, *given)


def check_rule(step: Step) -> None:
    """Refuse, at planning time, a recurrent step that no kernel serves.

    Raises:
        PlanningError: the rule asks for more than the kernels do, or the layer projects.
    """
    assert isinstance(step.rule, Recurrent)
    assert isinstance(step.operation, Recurrence)
    reason = limits_of(step.rule, step.operation.projects(step.node))
    if reason is not None:
        raise refuse(step, reason)
