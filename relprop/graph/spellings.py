"""Operations written another way, as those that the engine knows: `hstack` is a `cat`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch

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
        if any(_ndim(graph, ref) not in (None, ndim) for ref in node.args[0]) or ndim < least:
            return [node]
        args = (node.args[0], axis_of(ndim))
        return [replace(node, op="cat", function=aten.cat.default, args=args)]

    return spell


def _ndim(graph: Graph, ref: Ref) -> int | None:
    known = graph.nodes.get(ref.name) or graph.sources.get(ref.name)
    return None if known is None or known.shape is None else len(known.shape)


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
        known = graph.nodes.get(weight.name) or graph.sources.get(weight.name)
        rest = replace(rest, shape=known.shape if known is not None else node.shape)
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


def _matmul(graph: Graph, node: Node, fixed: Collection[str]) -> list[Node]:
    """W @ x is the transpose of x^T @ W^T: a dense layer over the axis before the last."""
    weight, x = node.args[:2]
    shape = node.shape or ()
    if weight.name not in fixed or x.name in fixed or _ndim(graph, weight) != 2 or len(shape) < 2:
        return [node]
    flipped = _beside(node, "input", "transpose", x, -1, -2, overload="int")
    turned = _beside(node, "turned", "linear", Ref(flipped.name), weight, overload="default")
    flat = (*shape[:-2], shape[-1])
    known = graph.nodes.get(weight.name) or graph.sources[weight.name]
    flipped = replace(flipped, shape=(*flat, (known.shape or (0,))[-1]))
    turned = replace(turned, shape=(*flat, shape[-2]))
    back = (Ref(turned.name), -1, -2)
    return [
        flipped, turned,
        replace(node, op="transpose", function=aten.transpose.int, args=back, kwargs={}),
    ]  # fmt: skip


def _bmm(graph: Graph, node: Node, fixed: Collection[str]) -> list[Node]:
    """A batch of one product with a weight is a dense layer."""
    x, weight = node.args
    known = graph.nodes.get(weight.name) or graph.sources.get(weight.name)
    if (
        weight.name not in fixed
        or x.name in fixed
        or known is None
        or (known.shape or (0,))[0] != 1
    ):
        return [node]
    matrix = _beside(node, "matrix", "select", weight, 0, 0, overload="int")
    matrix = replace(matrix, shape=(known.shape or ())[1:])
    return [
        matrix,
        replace(node, op="matmul", function=aten.matmul.default, args=(x, Ref(matrix.name))),
    ]


_SPELLINGS: dict[str, Callable[[Graph, Node, Collection[str]], list[Node]]] = {
    "hstack": _joined(lambda ndim: 0 if ndim == 1 else 1, 1),
    "vstack": _joined(lambda ndim: 0, 2),
    "dstack": _joined(lambda ndim: 2, 3),
    "column_stack": _joined(lambda ndim: 1, 2),
    "max": _elementwise("maximum"),
    "min": _elementwise("minimum"),
    "lerp": _lerp,
    "addcmul": _addc("mul"),
    "addcdiv": _addc("div"),
    **dict.fromkeys(("mT", "mH", "matrix_H", "adjoint"), _transposed),
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _bmm,
}
