"""Which sample each row of a value belongs to, where packed sequences change their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from relprop.graph import Node, Ref
from relprop.operations import Parts

__all__ = ["Samples"]

_PACKING, _UNPACKING = "_pack_padded_sequence", "_pad_packed_sequence"


class Samples:
    """Notes of a forward pass with packed sequences.

    Packing wants the longest first, and lets the rows of all samples run together by steps.

    Args:
        batch: number of samples.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.rows: dict[str, Tensor] = {}
        self.states: dict[str, Tensor] = {}

    def note(self, node: Node, values: Mapping[str, Any]) -> None:
        """Note the samples of a value that has been computed from `values`."""
        known = next((name for name in node.refs if name in self.rows), None)
        if node.op == _PACKING:
            own = self.rows.get(node.args[0].name, torch.arange(self.batch))
            sizes = values[node.name][1].tolist()
            self.rows[node.name] = torch.cat([own[:size] for size in sizes])
            self.states[node.name] = own
        elif node.op in ("index_select", "index") and (moved := _moved(node, values)) is not None:
            own = torch.arange(self.batch) if known is None else self.rows[known]
            if len(moved) == len(own) == self.batch:
                self.rows[node.name] = own[moved.to(own.device)]
        elif known is not None and node.op == _UNPACKING:
            self.rows[node.name] = self.states[known]
        elif known is not None and node.op == "getitem" and known in self.states:
            first = node.args[1] == 0
            self.rows[node.name] = self.rows[known] if first else self.states[known]
            if first:
                self.states[node.name] = self.states[known]
        elif known is not None:
            self.rows[node.name] = self.rows[known]
            if known in self.states:
                self.states[node.name] = self.states[known]

    def sums(self, name: str, r: Tensor | Parts, axis: int) -> Tensor | None:
        """Sums over everything but targets and samples, `[K, batch]`, None where nothing is known.

        Args:
            name: of the value.
            r: its relevance `[K, *shape]`; of an operation with several values, of each.
            axis: of the samples, where it is told.
        """
        if isinstance(r, Tensor):
            return self._summed(self.rows.get(name), r, axis)
        known = self.rows.get(name), self.states.get(name)
        found = [
            self._summed(known[min(index, 1)], part, min(index, 1))  # states: [layers, batch, H]
            for index, part in r.items.items()
        ]
        whole = [part for part in found if part is not None]
        return torch.stack(whole).sum(0) if len(whole) == len(found) else None

    def _summed(self, rows: Tensor | None, r: Tensor, axis: int) -> Tensor | None:
        fitting = [i for i, n in enumerate(r.shape[1:]) if rows is not None and n == len(rows)]
        if rows is None or not fitting:
            return None
        chosen = axis if axis in fitting else fitting[0]
        each = r.double().movedim(chosen + 1, 1)
        each = each.flatten(2).sum(2) if r.ndim > 2 else each
        return each.new_zeros(r.shape[0], self.batch).index_add_(1, rows.to(r.device), each)


def _moved(node: Node, values: Mapping[str, Any]) -> Tensor | None:
    """The numbers by which a vector of integers orders the slices of a value."""
    index = node.args[2] if node.op == "index_select" else node.args[1]
    if isinstance(index, (list, tuple)):
        given = [entry for entry in index if entry is not None]
        index = given[0] if len(given) == 1 else None
    value = values.get(index.name) if isinstance(index, Ref) else None
    is_order = isinstance(value, Tensor) and value.ndim == 1 and value.dtype is torch.int64
    return value if is_order else None
