"""Products of two values, one of them a weight, as the linear layers that they are.

A weight is whatever does not depend on an explained input: first, for all explanations of a model,
its parameters and what is computed from them; then, for one explanation, the inputs that are not
explained as well, such as the adjacency matrix of a graph.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from relprop.graph.linear_maps import linear_node
from relprop.graph.maps import Dense
from relprop.graph.nodes import Graph, Node, Ref

__all__ = ["PRODUCTS", "as_products", "products_as_layers"]

aten = torch.ops.aten


def as_products(graph: Graph) -> None:
    """All products of matrices and vectors as `matmul`, those with a summand as a sum."""
    nodes: dict[str, Node] = {}
    for node in graph.nodes.values():
        if node.op in PRODUCTS - {*_SUMS, "matmul"}:
            node = replace(node, op="matmul", function=aten.matmul.default)
        for new in _SUMS[node.op](_Chain(graph, node)) if node.op in _SUMS else [node]:
            nodes[new.name] = new
    graph.nodes = nodes


def products_as_layers(graph: Graph, weights: Collection[str]) -> None:
    """Each product of which one factor alone is a weight as a layer."""
    nodes: dict[str, Node] = {}
    for node in graph.nodes.values():
        for new in _as_layers(graph, node, weights):
            nodes[new.name] = new
    graph.nodes = nodes


class _Chain:
    """New nodes in the place of one, whose name the last of them takes."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph, self.node = graph, node
        self.made: list[Node] = []

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Of a value that was there, or of a new one."""
        own = [node.shape for node in self.made if node.name == ref.name]
        return (own[0] if own else self.graph.shape(ref.name)) or ()

    def add(self, op: str, *args: Any, overload: str = "default", **kwargs: Any) -> Ref:
        """An operation of ATen more."""
        function = getattr(getattr(aten, op), overload)
        empty = [torch.empty(self.shape(x), device="meta") if isinstance(x, Ref) else x
                 for x in args]  # fmt: skip
        shape = tuple(function(*empty, **kwargs).shape)
        return self._append(replace(self.node, op=op, function=function, args=args, kwargs=kwargs,
                                    shape=shape, attributes={}))  # fmt: skip

    def layer(self, x: Ref, w: Ref, b: Ref | None = None) -> Ref:
        """A dense layer more, its weight one for all samples or one for each."""
        shape = (*torch.broadcast_shapes(self.shape(x)[:-2], self.shape(w)[:-2]),
                 *self.shape(x)[-2:-1], self.shape(w)[-2])  # fmt: skip
        node = linear_node(replace(self.node, shape=shape, attributes={}), Dense(), x, w, b)
        own = len(self.shape(w)) > 2
        return self._append(replace(node, op="product_map") if own else node)

    def _append(self, node: Node) -> Ref:
        self.made.append(replace(node, name=f"{self.node.name}_part{len(self.made)}"))
        return Ref(self.made[-1].name)

    def nodes(self) -> list[Node]:
        """All of them."""
        *before, last = self.made
        attributes = {**self.node.attributes, **last.attributes}
        return [*before, replace(last, name=self.node.name, attributes=attributes)]


def _added(chain: _Chain, b: Ref, product: Ref, beta: float = 1, alpha: float = 1) -> list[Node]:
    """beta b + alpha product."""
    if beta == 0:
        chain.add("mul", product, alpha, overload="Scalar")
        return chain.nodes()
    if beta != 1:
        b = chain.add("mul", b, beta, overload="Scalar")
    chain.add("add", b, product, overload="Tensor", **({"alpha": alpha} if alpha != 1 else {}))
    return chain.nodes()


def _addmm(chain: _Chain) -> list[Node]:
    b, x, w = chain.node.args[:3]
    scales = chain.node.kwargs.get("beta", 1), chain.node.kwargs.get("alpha", 1)
    if chain.node.op == "addmm" and scales == (1, 1) and len(chain.shape(b)) == 1:
        chain.add("linear", x, _transposed(chain, w), b)
        return chain.nodes()
    return _added(chain, b, chain.add("matmul", x, w), *scales)


def _addbmm(chain: _Chain) -> list[Node]:
    b, x, w = chain.node.args[:3]
    product = chain.add("sum", chain.add("matmul", x, w), [0], overload="dim_IntList")
    scales = chain.node.kwargs.get("beta", 1), chain.node.kwargs.get("alpha", 1)
    return _added(chain, b, product, *scales)


_SUMS = {"addmm": _addmm, "addmv": _addmm, "baddbmm": _addmm, "addbmm": _addbmm}
PRODUCTS = {"matmul", "mm", "bmm", "mv", "dot", *_SUMS}
"""Products of matrices and vectors."""


def _as_layers(graph: Graph, node: Node, weights: Collection[str]) -> list[Node]:
    if node.op not in ("matmul", "dense_map"):
        return [node]
    known = [ref is None or ref.name in weights for ref in node.args]
    chain = _Chain(graph, node)
    if node.op == "matmul" and known in ([True, False], [False, True]):
        x, w = node.args
        _ = _right(chain, w, x) if known[0] else _left(chain, x, w)
        return chain.nodes()
    if node.op == "matmul" or all(known[1:]) or len(chain.shape(node.args[1])) != 2:
        return [node]
    x, w, b = node.args
    if known[:2] == [True, False]:  # W x is a layer of the weight, whose rows are the samples
        product = _right(chain, chain.add("t", w), x)
    else:
        product = chain.layer(x, w)
    return chain.nodes() if b is None else _added(chain, b, product)


def _left(chain: _Chain, x: Ref, w: Ref) -> Ref:
    """x @ w, a layer of x."""
    vector, row = len(chain.shape(x)) == 1, len(chain.shape(w)) == 1
    x = chain.add("unsqueeze", x, 0) if vector else x
    w = chain.add("unsqueeze", w, 0) if row else _transposed(chain, w)
    z = chain.layer(x, _matrix(chain, w, x))
    z = chain.add("squeeze", z, -2, overload="dim") if vector else z
    return chain.add("squeeze", z, -1, overload="dim") if row else z


def _right(chain: _Chain, x: Ref, w: Ref) -> Ref:
    """w @ x, a layer of x: that over the axis before the last."""
    if len(chain.shape(x)) == 1:
        # w x is x w^T
        w = w if len(chain.shape(w)) == 1 else chain.add("transpose", w, -1, -2, overload="int")
        return _left(chain, x, w)
    turned = chain.add("transpose", x, -1, -2, overload="int")
    row = len(chain.shape(w)) == 1
    w = chain.add("unsqueeze", w, 0) if row else w
    z = chain.layer(turned, _matrix(chain, w, turned))
    if row:
        return chain.add("squeeze", z, -1, overload="dim")
    return chain.add("transpose", z, -1, -2, overload="int")


def _transposed(chain: _Chain, w: Ref) -> Ref:
    """The transpose of a matrix, which it may be computed from."""
    node = chain.graph.nodes.get(w.name)
    if node is not None and node.op in ("t", "numpy_T") and len(node.shape or ()) == 2:
        source: Ref = node.args[0]
        return source
    return chain.add("transpose", w, -1, -2, overload="int")


def _matrix(chain: _Chain, w: Ref, x: Ref) -> Ref:
    """The weight, of a batch of one the one."""
    shape = chain.shape(w)
    one = len(shape) == 3 and shape[0] == 1 and len(chain.shape(x)) >= 3
    return chain.add("select", w, 0, 0, overload="int") if one else w
