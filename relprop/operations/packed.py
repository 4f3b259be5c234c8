"""Packed sequences: packing and unpacking move data, recurrent layers run on them by lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from relprop.graph import Node, map_refs
from relprop.graph.recurrent import Layout, directions_of
from relprop.operations.base import Engine, Operation, Parts, Step, register
from relprop.operations.recurrent import Call, GruLayer, Recurrence, RecurrentLayer, States

__all__ = ["PackedLayer", "Packing", "Unpacking"]


class _Moved(Operation):
    """Base: rows of the result are rows of the input; where each came from is saved."""

    kind = "reshape"
    carry = "packing"
    moves = True
    row_axes: ClassVar[int] = 1
    """How many leading axes of the input count rows."""
    padding: ClassVar[int | None] = None
    """Which argument is the padding value."""

    def origin(self, step: Step, values: Mapping[str, Any]) -> tuple[Tensor, torch.Size]:
        """For each row of the result the number of the input's row, -1 for none; input's shape."""
        x, *rest = (map_refs(arg, values.__getitem__) for arg in step.node.args)
        rows = x.shape[: self.row_axes]
        numbers = torch.arange(1, rows.numel() + 1, device=x.device, dtype=torch.float64)
        rest = [0.0 if index == self.padding else arg for index, arg in enumerate(rest, start=1)]
        moved = step.node.function(numbers.view(*rows, 1), *rest)[0]
        return moved.squeeze(-1).long() - 1, x.shape

    def save(self, step: Step, values: Mapping[str, Any], out: Any) -> Any:
        return self.origin(step, values)

    def relevance(self, step: Step, saved: Any, r: Parts, engine: Engine) -> Sequence[Tensor]:
        origin, shape = saved
        own = r.items[0]
        rows = shape[: self.row_axes].numel()
        taken = origin.flatten() >= 0
        flat = own.reshape(own.shape[0], origin.numel(), -1)
        result = own.new_zeros(own.shape[0], rows, flat.shape[-1])
        result.index_copy_(1, origin.flatten()[taken], flat[:, taken])
        return (result.view(own.shape[0], *shape),)


@register("_pack_padded_sequence")
class Packing(_Moved):
    """Padded `[T, batch, E]` or `[batch, T, E]` to packed `[N, E]`."""

    row_axes = 2


@register("_pad_packed_sequence")
class Unpacking(_Moved):
    """Packed `[N, E]` to padded."""

    padding = 3


class _Packed(Recurrence):
    """A recurrent layer on packed data: padded, run by lengths, packed again."""

    def operands(self, node: Node) -> tuple[Any, Any, Any]:
        states = node.args[2]
        x = node.args[0]
        return (x, *states) if isinstance(states, (list, tuple)) else (x, states, None)

    def call(self, node: Node, values: Mapping[str, Any]) -> Call:
        data, sizes, states, weights, _, layers, _, _, both = (
            map_refs(arg, values.__getitem__) for arg in node.args
        )
        kind = node.op.removesuffix("_packed")
        h0, c0 = states if kind == "lstm" else (states, None)
        directions = directions_of(weights, kind, node.path or kind)
        layout, lengths = Layout(kind, int(layers), bool(both)), _lengths(sizes).to(data.device)
        return Call(layout, directions, _pad(data, sizes), h0, c0, lengths)

    def projects(self, node: Node) -> bool:
        unpacked = replace(node, args=(node.args[0], *node.args[2:]))  # without the sizes
        return super().projects(unpacked)

    def sizes(self, node: Node, values: Mapping[str, Any]) -> Tensor:
        sizes: Tensor = values[node.args[1].name]
        return sizes

    def pack(self, values: States, sizes: Tensor | None) -> Any:
        assert sizes is not None
        out, h, c = values
        return (_pack(out, sizes), h) if c is None else (_pack(out, sizes), h, c)

    def unpack(self, r: Parts, sizes: Tensor | None) -> list[Tensor | None]:
        assert sizes is not None
        out = r.items.get(0)
        padded = None if out is None else torch.stack([_pad(row, sizes) for row in out])
        return [padded, r.items.get(1), r.items.get(2)]

    def given(
        self, parts: Sequence[Tensor | None], sizes: Tensor | None
    ) -> Sequence[Tensor | None]:
        r_x, *states = parts
        assert r_x is not None and sizes is not None
        return [torch.stack([_pack(row, sizes) for row in r_x]), *states]


@register("lstm_packed", "rnn_tanh_packed", "rnn_relu_packed")
class PackedLayer(_Packed, RecurrentLayer):
    """`nn.LSTM` or `nn.RNN` on packed sequences."""


@register("gru_packed")
class PackedGru(_Packed, GruLayer):
    """`nn.GRU` on packed sequences."""


def _lengths(sizes: Tensor) -> Tensor:
    """Valid steps of each sample, longest first, from the number of samples at each step."""
    return (sizes.unsqueeze(1) > torch.arange(int(sizes[0]))).sum(0)


def _pack(padded: Tensor, sizes: Tensor) -> Tensor:
    packed: Tensor = torch.ops.aten._pack_padded_sequence(padded, _lengths(sizes), False)[0]
    return packed


def _pad(data: Tensor, sizes: Tensor) -> Tensor:
    padded: Tensor = torch.ops.aten._pad_packed_sequence(data, sizes, False, 0.0, -1)[0]
    return padded
