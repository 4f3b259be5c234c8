"""Sums and assignments by index, as in graph networks: each element goes to the place told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.graph import Node, Ref, map_refs
from relprop.operations.base import Engine, Operation, Step, quotient, register, unbroadcast, wide
from relprop.operations.movement import Movement
from relprop.rules import Norm, Rule

__all__ = ["IndexedAssignment", "IndexedSum"]


class _Indexed(Operation):
    """Base: what is written, and where, into the first argument."""

    several = True

    def written(self, step: Step, values: Mapping[str, Any]) -> tuple[Tensor, Tensor, Places]:
        """The first argument, what is written into it, and its places."""
        args = [map_refs(argument, values.__getitem__) for argument in step.node.args]
        if step.node.op.startswith("index_put"):
            return args[0], args[2], Places(None, _index(args[1]), args[2].shape)
        dim, index, source = args[1:4]
        if step.node.op in ("index_add", "index_copy"):
            return args[0], source, Places(dim, index.view(-1), None)
        return args[0], source, Places(dim, index, source.shape)

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        position = 2 if node.op.startswith("index_put") else 3
        return known(node.args[0]) and known(node.args[position])

    def handed_on(self, step: Step, first: Tensor, written: Tensor) -> Sequence[Tensor]:
        """Relevance of those of both operands that carry some."""
        position = 2 if step.node.op.startswith("index_put") else 3
        operands = step.node.args[0], step.node.args[position]
        return [
            part
            for operand, part in zip(operands, (first, written), strict=True)
            if isinstance(operand, Ref) and operand.name in step.inputs
        ]


def _index(indices: Sequence[Tensor | None]) -> tuple[Tensor | slice, ...]:
    return tuple(slice(None) if index is None else index for index in indices)


class Places:
    """Where the elements written lie in a tensor.

    Args:
        dim: the axis of the index, None where there is an index for several axes.
        index: for each slice along `dim`, for each element, or a tuple for the first axes.
        shape: of what is written, None where an index names whole slices.
    """

    def __init__(self, dim: int | None, index: Any, shape: torch.Size | None) -> None:
        self.dim, self.index, self.shape = dim, index, shape

    def read(self, row: Tensor) -> Tensor:
        """What lies there, shaped like what is written."""
        if self.dim is None:
            assert self.shape is not None
            return unbroadcast(row[self.index].unsqueeze(0), self.shape).squeeze(0)
        if self.shape is None:
            return row.index_select(self.dim, self.index)
        found = row.gather(self.dim, self.index)
        if found.shape == self.shape:
            return found
        result = row.new_zeros(self.shape)  # of what is written a part has an index
        result[tuple(slice(size) for size in found.shape)] = found
        return result

    def cleared(self, row: Tensor) -> Tensor:
        """The tensor with 0 there."""
        row = row.clone()
        if self.dim is None:
            row[self.index] = 0
        elif self.shape is None:
            row.index_fill_(self.dim, self.index, 0)
        else:
            row.scatter_(self.dim, self.index, 0)
        return row


@register("index_add", "scatter_add", "scatter_mean", "index_put_add")
class IndexedSum(_Indexed):
    """Elements added at places, or averaged: in proportion, the denominator is the sum."""

    kind = "add"
    carry = "indexed"
    averages = True
    combines_gates = False

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        x, source, places = self.written(step, values)
        kept, count = None, None
        if step.node.op == "scatter_mean":
            found = torch.zeros_like(out)
            found.scatter_add_(step.node.args[1], places.index, torch.ones_like(source))
            kept = step.node.argument(5, "include_self", True) | (found == 0)
            count = found + kept
        return x, source, places, kept, count, out

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        x, source, places, kept, count, out = saved
        assert isinstance(step.rule, Norm) and step.rule.epsilon is not None
        s = quotient(r, out, step.rule.epsilon)
        s = s if count is None else s / count
        own = s * wide(x) if kept is None else s * (wide(x) * kept)
        factor = step.node.argument(4, "alpha", 1) if step.node.op == "index_add" else 1
        written = torch.stack([places.read(row) for row in s]) * (wide(source) * factor)
        return self.handed_on(step, own, written)

    def accepts(self, rule: Rule) -> bool:
        return isinstance(rule, Norm)

    def default_rule(self, epsilon: float) -> Rule:
        return Norm(epsilon)


@register("index_put", "index_copy", "scatter")
class IndexedAssignment(_Indexed, Movement):
    """Elements written over others: these lose their relevance."""

    several = True

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        return self.written(step, values)[2]

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        first = torch.stack([saved.cleared(row) for row in r])
        return self.handed_on(step, first, torch.stack([saved.read(row) for row in r]))
