"""Regions of pointwise operations: functions of one value, written in several operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from relprop.graph.nodes import Graph, Node, Ref

__all__ = ["KINKS", "Region", "name_relus", "regions_to"]

aten = torch.ops.aten

_FILLS = {"zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0, "ones": 1.0, "ones_like": 1.0,
          "new_ones": 1.0}  # fmt: skip
_FILLED = {"full": 1, "full_like": 1, "new_full": 2, "scalar_tensor": 0}
"""Operations that fill a tensor, and where they take its value."""
KINKS = {
    "clamp", "clamp_min", "clip", "maximum", "minimum", "threshold", "where", "masked_fill", "gt",
    "elu", "rrelu", "prelu", "_prelu_kernel",
    "ge", "lt", "le", "abs", "leaky_relu", "hardtanh", "heaviside", "sign", "sgn", "fmax",
}  # fmt: skip
"""Operations that a ReLU is written with."""
_LONGEST = 8
"""Operations of the longest spelling of a ReLU that is looked for."""


@dataclass(frozen=True)
class Region:
    """Pointwise operations between two values of one shape, and nothing else between them.

    Attributes:
        root: name of the value that they start from.
        nodes: the operations, in order; the last gives the other value.
        constants: names of what else they read, each one number.
    """

    root: str
    nodes: tuple[Node, ...]
    constants: tuple[str, ...]

    def __call__(self, root: Any, *constants: Any) -> Any:
        """The function of the root that they are."""
        values = dict(zip(self.constants, constants, strict=True), **{self.root: root})
        for node in self.nodes:
            values[node.name] = node.evaluate(values)
        return values[self.nodes[-1].name]

    @property
    def node(self) -> Node:
        """The last node as one operation that computes all."""
        args = tuple(Ref(name) for name in (self.root, *self.constants))
        return replace(self.nodes[-1], function=self, args=args, kwargs={})

    def cuts(self, name: str) -> bool:
        """Whether every way through the region leads through the value of that name."""
        behind = {self.root}
        for node in self.nodes:
            if node.name != name and behind & set(node.refs):
                behind.add(node.name)
        return self.nodes[-1].name == name or self.nodes[-1].name not in behind


def regions_to(
    graph: Graph, last: str, readers: Mapping[str, Sequence[str]] | None = None, most: int = 64
) -> list[Region]:
    """The regions that end at a value, the longest first.

    Args:
        graph: in canonical form or on its way there.
        last: name of the value.
        readers: `graph.consumers()`, where nothing else may read what lies between.
        most: operations looked at.
    """
    shape = graph.shape(last)
    within = _leading(graph, last, readers, most)
    heads = dict.fromkeys(name for node in within for name in (*node.refs, node.name))
    found = []
    for head in heads:
        region = _between(graph, head, within) if graph.shape(head) == shape else None
        if region is not None and not _is_number(graph, head):
            found.append(region)
    return sorted(found, key=lambda region: -len(region.nodes))


def _leading(
    graph: Graph, last: str, readers: Mapping[str, Sequence[str]] | None, most: int
) -> list[Node]:
    """Pointwise operations that lead to a value through others of its shape, in order."""
    found, queue = {last: graph.nodes[last]}, [last]
    while queue and len(found) < most:
        for name in found[queue.pop()].refs:
            node = graph.nodes.get(name)
            if node is None or name in found or node.shape != graph.shape(last):
                continue
            if readers is not None and any(reader not in found for reader in readers[name]):
                continue  # it comes again with its last reader
            if node.pointwise and not _is_number(graph, name):
                found[name] = node
                queue.append(name)
    seen: dict[str, Node] = {}
    _in_order(last, found, seen)
    return list(seen.values())


def _in_order(name: str, found: Mapping[str, Node], seen: dict[str, Node]) -> None:
    if name in found and name not in seen:
        for ref in found[name].refs:
            _in_order(ref, found, seen)
        seen[name] = found[name]


def _between(graph: Graph, head: str, within: Sequence[Node]) -> Region | None:
    """The region from a value to the last operation, None where something else is read."""
    inner: dict[str, Node] = {}
    constants: dict[str, None] = {}
    for node in within:
        if node.name == head or not any(name == head or name in inner for name in node.refs):
            continue
        inner[node.name] = node
        for name in node.refs:
            if name == head or name in inner:
                continue
            if not _is_number(graph, name):
                return None
            constants[name] = None
    if within[-1].name not in inner:
        return None
    return Region(head, tuple(inner.values()), tuple(constants))


def _is_number(graph: Graph, name: str) -> bool:
    """Whether a value is one number, or the same number everywhere, whatever the input."""
    if name in graph.sources:
        shape = graph.sources[name].shape
        return all(size == 1 for size in shape) or _number(graph, name) is not None
    return _number(graph, name) is not None


def _number(graph: Graph, name: str, depth: int = 3) -> float | None:
    """The number that a value is made of, None where it is not known.

    It may be computed from numbers, by `depth` operations after one another at most.
    """
    if name in graph.sources:
        constant = graph.sources[name].constant
        return None if constant is None else _one_number(constant)
    node = graph.nodes.get(name)
    if node is None or node.op not in _FILLS.keys() | _FILLED.keys():
        return None if node is None or depth == 0 else _computed_number(graph, node, depth - 1)
    value = _FILLS.get(node.op, node.args[_FILLED.get(node.op, 0)] if node.args else None)
    return float(value) if isinstance(value, (int, float)) else None


def _computed_number(graph: Graph, node: Node, depth: int) -> float | None:
    """The number that a pointwise operation makes of numbers."""
    if not (node.refs and node.pointwise):
        return None
    values: dict[str, Tensor] = {}
    for name in node.refs:
        number = _number(graph, name, depth)
        if number is None:
            return None
        values[name] = torch.tensor(number, dtype=torch.float64)
    return float(node.evaluate(values))


def _one_number(constant: Tensor) -> float | None:
    if constant.numel() == 0 or constant.is_complex():
        return None
    first = constant.flatten()[0]
    return float(first) if bool((constant == first).all()) else None


_GRID = torch.tensor(
    [sign * m * 2.0**k for sign in (-1, 1) for k in range(-24, 101, 4) for m in (1.0, 1.5)] + [0.0],
    dtype=torch.float64,
)
"""Where a function is compared with a ReLU; all values are exact in float32."""


def name_relus(graph: Graph) -> None:
    """Replace what computes max(x, 0), however it is written, by a ReLU.

    The function decides: `clamp`, `where(x > 0, x, 0)`, `x * (x > 0)`, `(x + |x|) / 2`, ...
    """
    for name, node in list(graph.nodes.items()):
        floating = node.dtype is None or node.dtype.is_floating_point
        if node.op == "relu" or not floating or not node.pointwise:
            continue
        within = _leading(graph, name, None, _LONGEST)
        if all(other.op not in KINKS for other in within):
            continue
        for region in reversed(regions_to(graph, name, most=_LONGEST)):
            if _is_relu(graph, region):
                args = (Ref(region.root),)
                graph.nodes[name] = replace(
                    node, op="relu", function=aten.relu.default, args=args, kwargs={}
                )
                break


def _is_relu(graph: Graph, region: Region) -> bool:
    numbers = [_number(graph, name) for name in region.constants]
    if None in numbers:
        return False
    constants = [torch.tensor(number, dtype=torch.float64) for number in numbers]
    try:
        values = region(_GRID, *constants)
    except (RuntimeError, TypeError):  # sizes or types of this model are written in it
        return False
    return values.shape == _GRID.shape and torch.equal(values.double(), _GRID.clamp(min=0))
