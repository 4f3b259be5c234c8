"""LSTM, GRU, RNN and their cells: one operation a layer, several values that carry relevance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.graph import Node, Ref, map_refs
from relprop.layers.base import Operation, Parts, Step, register
from relprop.recurrent import aten
from relprop.recurrent.layout import GRU_ONLY, Direction, Layout, directions_of, suits
from relprop.recurrent.oracle import relevance_of_samples
from relprop.rules import Recurrent, Rule

__all__ = ["Item", "Recurrence", "RecurrentCell", "RecurrentLayer"]

Call = tuple[Layout, list[Direction], Tensor, Tensor, Tensor | None]
"""A layer, its weights, its input, its initial hidden states, its initial cells."""
Parted = tuple[Tensor, Tensor, Tensor | None]
"""Relevance of an input, of initial hidden states, of initial cells."""


@register("getitem")
class Item(Operation):
    """One of an operation's values."""

    kind = "reshape"
    carry = "item"
    moves = True

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Any) -> Sequence[Any]:
        return (Parts({step.node.args[1]: r}),)


class Recurrence(Operation):
    """Base of layers and cells."""

    kind = "recurrent"
    carry = "recurrent"
    several = True
    weighted = True
    needs_kernel = True

    def call(self, node: Node, values: Mapping[str, Any]) -> Call:
        """The operands of one evaluation, those of a cell as a sequence of one step."""
        raise TypeError(type(self).__name__)

    def operands(self, node: Node) -> tuple[Any, Any, Any]:
        """The arguments that may carry relevance: x, h_0, c_0 (or None)."""
        raise TypeError(type(self).__name__)

    def takes(self, node: Node, inputs: Sequence[str]) -> bool:
        """Whether what carries relevance is the input or an initial state, not a weight."""
        operands = [x.name for x in self.operands(node) if isinstance(x, Ref)]
        return list(inputs) == [name for name in operands if name in inputs]

    def pack(self, values: Sequence[Tensor | None]) -> Any:
        """Output, last hidden states and cells, as the operation returns them."""
        raise TypeError(type(self).__name__)

    def unpack(self, r: Any) -> list[Tensor | None]:
        """Relevance of the output, of the last hidden states and cells, from the operation's."""
        raise TypeError(type(self).__name__)

    def given(self, parts: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Relevance of x, h_0, c_0 shaped as these arguments are."""
        return parts

    def run(
        self, step: Step, call: Call, lengths: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor, Tensor | None], Any]:
        """Output, last hidden states and cells; and what `carried_back` needs."""
        assert isinstance(step.rule, Recurrent)
        return aten.forward(*call, step.rule, lengths)

    def carried_back(self, saved: Any, given: Sequence[Tensor | None]) -> Parted:
        """Relevance of x, h_0 and c_0 from that of the output, of the last states and cells."""
        return aten.relevance(saved, *given)

    def forward(self, step: Step, values: Mapping[str, Any], engine: Any) -> tuple[Any, Any]:
        found, saved = self.run(step, self.call(step.node, values))
        return self.pack(found), saved

    def relevance(self, step: Step, saved: Any, r: Any, engine: Any) -> Sequence[Tensor | None]:
        return self.chosen(step, self.carried_back(saved, self.unpack(r)))

    def chosen(self, step: Step, parts: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Of the relevance of x, h_0, c_0 that of the step's inputs, in their order."""
        operands = zip(self.operands(step.node), self.given(parts), strict=True)
        return [part for x, part in operands if isinstance(x, Ref) and x.name in step.inputs]

    def naive(self, step: Step, values: Mapping[str, Any], r: Any) -> list[Tensor | None]:
        """The plain loop, for `backend="reference"`: relevance of each of the step's inputs."""
        parts = naive_parts(self.call(step.node, values), step, self.unpack(r))
        return self.chosen(step, parts)

    def default_rule(self, epsilon: float) -> Rule:
        return Recurrent(epsilon=epsilon)

    def accepts(self, rule: Rule) -> bool:
        return isinstance(rule, Recurrent)


@register("lstm", "rnn_tanh", "rnn_relu")
class RecurrentLayer(Recurrence):
    """A stack over a whole sequence.  Its values: the output, h_n, an LSTM's c_n."""

    def operands(self, node: Node) -> tuple[Any, Any, Any]:
        states = node.args[1]
        return (node.args[0], *states) if node.op == "lstm" else (node.args[0], states, None)

    def call(self, node: Node, values: Mapping[str, Any]) -> Call:
        x, states, weights, _, layers, _, _, both, first = (
            map_refs(arg, values.__getitem__) for arg in node.args
        )
        layout = Layout(node.op, int(layers), bool(both), bool(first))
        h0, c0 = states if node.op == "lstm" else (states, None)
        return layout, directions_of(weights, node.op, node.path or node.op), x, h0, c0

    def pack(self, values: Sequence[Tensor | None]) -> Any:
        return tuple(value for value in values if value is not None)

    def unpack(self, r: Parts) -> list[Tensor | None]:
        return [r.items.get(index) for index in range(3)]


@register("gru")
class GruLayer(RecurrentLayer):
    """A stack of GRU layers."""

    limits = GRU_ONLY

    def accepts(self, rule: Rule) -> bool:
        return isinstance(rule, Recurrent) and suits(rule, "gru")


@register("rnn_tanh_cell", "rnn_relu_cell")
class RecurrentCell(Recurrence):
    """One step.  Its value: the hidden state."""

    def operands(self, node: Node) -> tuple[Any, Any, Any]:
        return node.args[0], node.args[1], None

    def call(self, node: Node, values: Mapping[str, Any]) -> Call:
        args = [map_refs(arg, values.__getitem__) for arg in node.args]
        kind = node.op.removesuffix("_cell")
        weights = [weight for weight in args[2:] if weight is not None]
        states = args[1] if kind == "lstm" else (args[1], None)
        h0, c0 = states[0].unsqueeze(0), None if states[1] is None else states[1].unsqueeze(0)
        directions = directions_of(weights, kind, node.path or node.op)
        return Layout(kind), directions, args[0].unsqueeze(0), h0, c0

    def pack(self, values: Sequence[Tensor | None]) -> Any:
        assert values[0] is not None
        return values[0].squeeze(0)

    def unpack(self, r: Any) -> list[Tensor | None]:
        return [r.unsqueeze(1), None, None]

    def given(self, parts: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        return [None if part is None else part.squeeze(1) for part in parts]


@register("gru_cell")
class GruCell(RecurrentCell):
    """One step of a GRU."""

    limits = GRU_ONLY

    def accepts(self, rule: Rule) -> bool:
        return isinstance(rule, Recurrent) and suits(rule, "gru")


@register("lstm_cell")
class LstmCell(RecurrentCell):
    """One step of an LSTM.  Its values: the hidden state and the cell."""

    def operands(self, node: Node) -> tuple[Any, Any, Any]:
        return (node.args[0], *node.args[1])

    def pack(self, values: Sequence[Tensor | None]) -> Any:
        _, h, c = values
        assert h is not None and c is not None
        return h.squeeze(0), c.squeeze(0)

    def unpack(self, r: Parts) -> list[Tensor | None]:
        h, c = r.items.get(0), r.items.get(1)
        return [None if h is None else h.unsqueeze(1), None, None if c is None else c.unsqueeze(1)]


def naive_parts(
    call: Call, step: Step, given: Sequence[Tensor | None], lengths: Tensor | None = None
) -> Parted:
    """Relevance of x, h_0 and c_0 by the plain loop, in float32 at least."""
    assert isinstance(step.rule, Recurrent)
    layout, directions, x, h0, c0 = call
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, h0 = x.detach().to(dtype), h0.detach().to(dtype)
    c0 = None if c0 is None else c0.detach().to(dtype)
    weights = [direction.to(x) for direction in directions]
    r = [None if part is None else part.to(dtype) for part in given]
    return relevance_of_samples(layout, weights, x, h0, c0, r, step.rule, lengths)
