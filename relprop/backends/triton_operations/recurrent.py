"""Recurrent layers and cells by kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from relprop.backends.triton_recurrent import Values, forward, limits_of, relevance
from relprop.layers import Operation, Step
from relprop.layers.base import refuse
from relprop.layers.packed import PackedGru, PackedLayer
from relprop.layers.recurrent import (
    Call,
    GruCell,
    GruLayer,
    LstmCell,
    Parted,
    Recurrence,
    RecurrentCell,
    RecurrentLayer,
)
from relprop.rules import Recurrent

__all__ = ["RECURRENT", "check_rule"]


class _Fused(Recurrence):
    """By kernels."""

    backend = "triton"

    def run(self, step: Step, call: Call, lengths: Tensor | None = None) -> tuple[Values, Any]:
        assert isinstance(step.rule, Recurrent)
        precision = step.options.get("precision", "highest")
        return forward(*call, step.rule, lengths, precision, step.where)

    def carried_back(self, saved: Any, given: Sequence[Tensor | None]) -> Parted:
        return relevance(saved, *given)


class TritonLayer(_Fused, RecurrentLayer):
    """`nn.LSTM` or `nn.RNN` by kernels."""


class TritonGru(_Fused, GruLayer):
    """`nn.GRU` by kernels."""


class TritonPackedLayer(_Fused, PackedLayer):
    """`nn.LSTM` or `nn.RNN` on packed sequences by kernels."""


class TritonPackedGru(_Fused, PackedGru):
    """`nn.GRU` on packed sequences by kernels."""


class TritonCell(_Fused, RecurrentCell):
    """`nn.RNNCell` by kernels."""


class TritonGruCell(_Fused, GruCell):
    """`nn.GRUCell` by kernels."""


class TritonLstmCell(_Fused, LstmCell):
    """`nn.LSTMCell` by kernels."""


RECURRENT: dict[type[Operation], Operation] = {
    RecurrentLayer: TritonLayer(),
    GruLayer: TritonGru(),
    PackedLayer: TritonPackedLayer(),
    PackedGru: TritonPackedGru(),
    RecurrentCell: TritonCell(),
    GruCell: TritonGruCell(),
    LstmCell: TritonLstmCell(),
}
"""What serves each class of recurrent layers."""


def check_rule(step: Step) -> None:
    """Refuse, at planning time, a recurrent step that no kernel serves.

    Raises:
        PlanningError: the rule asks for more than the kernels do, or the layer projects.
    """
    assert isinstance(step.rule, Recurrent)
    reason = limits_of(step.rule, _projects(step))
    if reason is not None:
        raise refuse(step, reason)


def _projects(step: Step) -> bool:
    """Whether each direction of an LSTM has one weight more than its two matrices and biases."""
    node = step.node
    if not node.op.startswith("lstm") or node.op.endswith("cell"):
        return False
    packed = node.op.endswith("packed")
    weights, biased, layers, _, _, both = node.args[3:9] if packed else node.args[2:8]
    return len(weights) > int(layers) * (2 if both else 1) * (4 if biased else 2)
