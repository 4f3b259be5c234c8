"""LSTM, GRU, RNN and their cells: one operation a layer, several values that carry relevance.

A `Recurrence` says what its operands and values are; a backend's `RecurrentRun` computes with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from relprop.graph import Node, Ref, map_refs
from relprop.graph.recurrent import GRU_ONLY, Direction, Layout, directions_of, suits
from relprop.operations.base import Engine, Operation, Parts, Step, register
from relprop.rules import Recurrent, Rule

__all__ = ["Call", "Item", "Recurrence", "RecurrentCell", "RecurrentLayer", "RecurrentRun"]

States = tuple[Tensor, Tensor, Tensor | None]
"""Output, last hidden states, last cells."""
Parted = tuple[Tensor, Tensor, Tensor | None]
"""Relevance of an input, of initial hidden states, of initial cells."""


class Call(NamedTuple):
    """The operands of one evaluation.

    Attributes:
        layout: the layer.
        directions: its weights.
        x, h0, c0: its input, its initial hidden states, an LSTM's initial cells.
        lengths: valid steps of each sample `[batch]`, or None.
    """

    layout: Layout
    directions: list[Direction]
    x: Tensor
    h0: Tensor
    c0: Tensor | None
    lengths: Tensor | None = None


@register("getitem")
class Item(Operation):
    """One of an operation's values."""

    kind = "reshape"
    carry = "item"
    moves = True

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Any]:
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

    def projects(self, node: Node) -> bool:
        """Whether hidden states are projections of what the gates let out."""
        return False

    def sizes(self, node: Node, values: Mapping[str, Any]) -> Tensor | None:
        """Number of samples at each step of packed data, None where nothing is packed."""
        return None

    def pack(self, values: States, sizes: Tensor | None) -> Any:
        """Output, last hidden states and cells, as the operation returns them."""
        raise TypeError(type(self).__name__)

    def unpack(self, r: Any, sizes: Tensor | None) -> list[Tensor | None]:
        """Relevance of the output, of the last hidden states and cells, from the operation's."""
        raise TypeError(type(self).__name__)

    def given(
        self, parts: Sequence[Tensor | None], sizes: Tensor | None
    ) -> Sequence[Tensor | None]:
        """Relevance of x, h_0, c_0 shaped as these arguments are."""
        return parts

    def chosen(
        self, step: Step, parts: Sequence[Tensor | None], sizes: Tensor | None
    ) -> list[Tensor | None]:
        """Of the relevance of x, h_0, c_0 that of the step's inputs, in their order."""
        operands = zip(self.operands(step.node), self.given(parts, sizes), strict=True)
        return [part for x, part in operands if isinstance(x, Ref) and x.name in step.inputs]

    def default_rule(self, epsilon: float) -> Rule:
        return Recurrent(epsilon=epsilon)

    def accepts(self, rule: Rule) -> bool:
        return isinstance(rule, Recurrent)


class RecurrentRun(Recurrence):
    """Base of what backends run recurrent steps by; see `relprop.operations.base.run_by`."""

    def run(self, step: Step, call: Call) -> tuple[States, Any]:
        """Output, last hidden states and cells; and what `carried_back` needs."""
        raise TypeError(type(self).__name__)

    def carried_back(self, saved: Any, given: Sequence[Tensor | None]) -> Parted:
        """Relevance of x, h_0 and c_0 from that of the output, of the last states and cells."""
        raise TypeError(type(self).__name__)

    def forward(self, step: Step, values: Mapping[str, Any], engine: Engine) -> tuple[Any, Any]:
        sizes = self.sizes(step.node, values)
        found, saved = self.run(step, self.call(step.node, values))
        return self.pack(found, sizes), (saved, sizes)

    def relevance(self, step: Step, saved: Any, r: Any, engine: Engine) -> Sequence[Tensor | None]:
        own, sizes = saved
        return self.chosen(step, self.carried_back(own, self.unpack(r, sizes)), sizes)


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
        return Call(layout, directions_of(weights, node.op, node.path or node.op), x, h0, c0)

    def projects(self, node: Node) -> bool:
        if not node.op.startswith("lstm"):
            return False
        weights, biased, layers, _, _, both = node.args[2:8]
        # an LSTM's directions have one weight more then than two matrices and their biases
        return len(weights) > int(layers) * (2 if both else 1) * (4 if biased else 2)

    def pack(self, values: States, sizes: Tensor | None) -> Any:
        return tuple(value for value in values if value is not None)

    def unpack(self, r: Parts, sizes: Tensor | None) -> list[Tensor | None]:
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
        return Call(Layout(kind), directions, args[0].unsqueeze(0), h0, c0)

    def pack(self, values: States, sizes: Tensor | None) -> Any:
        return values[0].squeeze(0)

    def unpack(self, r: Any, sizes: Tensor | None) -> list[Tensor | None]:
        return [r.unsqueeze(1), None, None]

    def given(
        self, parts: Sequence[Tensor | None], sizes: Tensor | None
    ) -> Sequence[Tensor | None]:
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

    def pack(self, values: States, sizes: Tensor | None) -> Any:
        _, h, c = values
        assert c is not None
        return h.squeeze(0), c.squeeze(0)

    def unpack(self, r: Parts, sizes: Tensor | None) -> list[Tensor | None]:
        h, c = r.items.get(0), r.items.get(1)
        return [None if h is None else h.unsqueeze(1), None, None if c is None else c.unsqueeze(1)]
