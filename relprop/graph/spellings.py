"""Operations written another way, as those that the engine knows: `hstack` is a `cat`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch

from relprop.graph.bags import embedding_and_bag
from relprop.graph.nodes import Graph, Node, Ref

__all__ = ["respell"]

aten = torch.ops.aten


def respell(graph: Graph) -> None:
    """Replace each node by nodes of other names that compute the same."""
    nodes: dict[str, Node] = {}
    fixed = graph.fixed()
    for node in graph.nodes.values():
        spell = _SPELLINGS.get(node.op)
        for new in spell(graph, node, fixed) if spell is not None else [node]:
            nodes[new.name] = new
    graph.nodes = nodes


def _joined(axis_of: Callable[[int], int], least: int) -> Callable[..., list[Node]]:
    """hstack and its like: `cat` on an axis that depends on the number of axes."""

    def spell(graph: Graph, node: Node, fixed: Collection[str]) -> list[Node]:
        ndim = len(node.shape or ())
        shapes = [graph.shape(ref.name) for ref in node.args[0]]
        if any(shape is not None and len(shape) != ndim for shape in shapes) or ndim < least:
            return [node]
        args = (node.args[0], axis_of(ndim))
        return [replace(node, op="cat", function=aten.cat.default, args=args)]

    return spell


def _elementwise(name: str) -> Callable[..., list[Node]]:
    """`max(a, b)` of two tensors is `maximum(a, b)`; over axes it stays what it is."""

    def spell(graph: Graph, node: Node, fixed: Collection[str]) -> list[Node]:
        if node.overload != "other":
            return [node]
        return [replace(node, op=name, function=getattr(aten, name).default)]

    return spell


def _beside(node: Node, suffix: str, op: str, *args: Any, overload: str = "Tensor") -> Node:
    """A new node at the same place, shaped as `node` is."""
    function = getattr(getattr(aten, op), overload)
    return replace(node, name=f"{node.name}_{suffix}", op=op, function=function, args=args,
                   kwargs={})  # fmt: skip


def _sum(node: Node, a: Any, b: Node) -> Node:
    return replace(node, op="add", function=aten.add.Tensor, args=(a, Ref(b.name)), kwargs={})


def _lerp(graph: Graph, node: Node, fixed: Collection[str]) -> list[Node]:
    """(1 - w) a + w b."""
    start, end, weight = node.args
    if isinstance(weight, Ref):
        rest = _beside(node, "rest", "rsub", weight, 1, overload="Scalar")
        rest = replace(rest, shape=graph.shape(weight.name) or node.shape)
        first = _beside(node, "start", "mul", start, Ref(rest.name))
        last = _beside(node, "end", "mul", end, weight)
        return [rest, first, last, _sum(node, Ref(first.name), last)]
    first = _beside(node, "start", "mul", start, 1 - weight, overload="Scalar")
    last = _beside(node, "end", "mul", end, weight, overload="Scalar")
    return [first, last, _sum(node, Ref(first.name), last)]


def _addc(op: str) -> Callable[..., list[Node]]:
    """a + value * (b * c), or b / c."""

    def spell(graph: Graph, node: Node, fixed: Collection[str]) -> list[Node]:
        product = _beside(node, "product", op, *node.args[1:3])
        total = _sum(node, node.args[0], product)
        value = node.argument(3, "value", 1)
        return [product, replace(total, kwargs={"alpha": value} if value != 1 else {})]

    return spell


def _transposed(graph: Graph, node: Node, fixed: Collection[str]) -> list[Node]:
    """`x.mT`, and the adjoint of a real matrix, by the names of the axes that change places."""
    if node.dtype is None or node.dtype.is_complex:
        return [node]
    args = (node.args[0], -2, -1)
    return [replace(node, op="transpose", function=aten.transpose.int, args=args)]


def _loss(op: str) -> Callable[[Graph, Node, Collection[str]], list[Node]]:
    """mse_loss and l1_loss: a function of the difference, then a mean or a sum."""

    def spell(graph: Graph, node: Node, fixed: Collection[str]) -> list[Node]:
        a, b = node.args[:2]
        shapes = [graph.shape(x.name) or () for x in (a, b)]
        shape = tuple(torch.broadcast_shapes(*shapes))
        difference = replace(_beside(node, "difference", "sub", a, b), shape=shape)
        last = Ref(difference.name), *((2,) if op == "pow" else ())
        overload = "Tensor_Scalar" if op == "pow" else "default"
        error = replace(_beside(node, "error", op, *last, overload=overload), shape=shape)
        reduction = ("none", "mean", "sum")[node.argument(2, "reduction", 1)]
        if reduction == "none":
            return [difference, replace(error, name=node.name)]
        function = getattr(aten, reduction).default
        whole = replace(node, op=reduction, function=function, args=(Ref(error.name),), kwargs={})
        return [difference, error, whole]

    return spell


def _diff(graph: Graph, node: Node, fixed: Collection[str]) -> list[Node]:
    """x[1:] - x[:-1]."""
    x, dim = node.args[0], node.argument(2, "dim", -1)
    if node.argument(1, "n", 1) != 1 or len(node.args) > 3 or node.kwargs:
        return [node]
    last = _beside(node, "last", "slice", x, dim, 1, 2**63 - 1)
    first = _beside(node, "first", "slice", x, dim, 0, -1)
    args = Ref(last.name), Ref(first.name)
    return [last, first, replace(node, op="sub", function=aten.sub.Tensor, args=args)]


_SPELLINGS: dict[str, Callable[[Graph, Node, Collection[str]], list[Node]]] = {
    "hstack": _joined(lambda ndim: 0 if ndim == 1 else 1, 1),
    "vstack": _joined(lambda ndim: 0, 2),
    "dstack": _joined(lambda ndim: 2, 3),
    "column_stack": _joined(lambda ndim: 1, 2),
    "max": _elementwise("maximum"),
    "min": _elementwise("minimum"),
    "lerp": _lerp,
    "addcmul": _addc("mul"),
    "embedding_bag": embedding_and_bag,
    "mse_loss": _loss("pow"),
    "l1_loss": _loss("abs"),
    "diff": _diff,
    "addcdiv": _addc("div"),
    **dict.fromkeys(("mT", "mH", "matrix_H", "adjoint"), _transposed),
}
