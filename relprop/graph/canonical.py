"""Canonical form: one name for each operation, identities gone, every value one tensor.

Rewrites keep every value that a module returns reachable by its module path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from relprop.errors import PlanningError
from relprop.graph.bags import BAGS
from relprop.graph.linear_maps import BATCH_NORMS, as_linear_maps, fold_batch_norms, fold_padding
from relprop.graph.nodes import Graph, Node, Ref
from relprop.graph.pointwise import KINKS, name_relus
from relprop.graph.products import PRODUCTS, as_products, products_as_layers
from relprop.graph.spellings import respell

__all__ = ["canonical"]

aten = torch.ops.aten

_IDENTITIES = {
    "clone", "contiguous", "alias", "detach", "detach_", "lift_fresh", "lift_fresh_copy",
    "dropout", "native_dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout",
    "requires_grad_", "positive", "_conj", "resolve_conj", "resolve_neg",
}  # fmt: skip
_VIEWS = {"view", "_unsafe_view", "reshape"}
_SYNONYMS = {"multiply": "mul", "divide": "div", "subtract": "sub", "concatenate": "cat",
             "native_channel_shuffle": "channel_shuffle", "moveaxis": "movedim",
             "swapdims": "swapaxes", "special_expit": "sigmoid"}  # fmt: skip
_PARTS = {"split", "split_with_sizes", "chunk", "unbind", "tensor_split", "unsafe_split",
          "unsafe_chunk", "unsafe_split_with_sizes"}  # fmt: skip
_POOLS_WITH_INDICES = {f"max_pool{n}d_with_indices": f"max_pool{n}d" for n in (1, 2, 3)}
_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
_ADAPTIVE_MAX = {f"adaptive_max_pool{n}d" for n in (1, 2, 3)}


def canonical(graph: Graph) -> Graph:
    """The graph in canonical form (the argument itself, changed).

    Raises:
        PlanningError: a batch norm or dropout works as in training, or lacks running statistics.
    """
    graph.prune()
    _drop_identities(graph)
    _single_values(graph)
    respell(graph)
    ops = {node.op for node in graph.nodes.values()}
    if not KINKS.isdisjoint(ops):
        name_relus(graph)
    if not PRODUCTS.isdisjoint(ops):
        as_products(graph)
        products_as_layers(graph, graph.fixed())
    as_linear_maps(graph)
    graph.prune()
    fold_padding(graph)
    fold_batch_norms(graph)
    graph.prune()
    return graph


def _is_identity(node: Node) -> bool:
    if node.op in _IDENTITIES:
        if "dropout" in node.op and len(node.args) > 2 and node.args[2]:
            raise PlanningError(
                f"'{node.path or 'the model itself'}' calls dropout as in training although the "
                "model is in eval mode; write F.dropout(x, p, training=self.training)"
            )
        return bool(node.args) and isinstance(node.args[0], Ref)
    if node.op == "slice":
        start, end = node.argument(2, "start", 0), node.argument(3, "end", None)
        step = node.argument(4, "step", 1)
        whole = end is None or (isinstance(end, int) and end >= 2**62)
        return start in (0, None) and whole and step == 1
    return False


def _drop_identities(graph: Graph) -> None:
    names: dict[str, str] = {}
    for node in graph.nodes.values():
        if _is_identity(node) and node.op != "native_dropout":
            target = node.args[0].name
            names[node.name] = names.get(target, target)
        elif node.op == "getitem" and node.args[1] == 0 and _dropped_pair(graph, node):
            target = graph.nodes[node.args[0].name].args[0].name
            names[node.name] = names.get(target, target)
    graph.rename_values(names)
    graph.nodes = {name: node for name, node in graph.nodes.items() if name not in names}


def _dropped_pair(graph: Graph, node: Node) -> bool:
    source = graph.nodes.get(node.args[0].name)
    return source is not None and source.op == "native_dropout" and _is_identity(source)


def _single_values(graph: Graph) -> None:
    """Parts of a split become slices; the values of a max pool with indices become a max pool."""
    fixed = graph.fixed()
    for name, node in list(graph.nodes.items()):
        if node.op in _VIEWS:
            graph.nodes[name] = replace(node, op="reshape", function=aten.reshape.default)
        elif node.op in _RECURRENT and node.overload == "data":
            graph.nodes[name] = replace(node, op=f"{node.op}_packed")
        elif node.op in _SYNONYMS:
            op = _SYNONYMS[node.op]
            function = getattr(getattr(aten, op), node.overload)
            graph.nodes[name] = replace(node, op=op, function=function)
        elif node.op == "copy":  # of y over x: y broadcast to the shape of x
            x, y = node.args[:2]
            function = aten.expand_as.default
            graph.nodes[name] = replace(node, op="expand_as", function=function, args=(y, x))
        elif node.op == "index_put" and _fills(graph, node):
            x, (mask,), value = node.args[:3]
            function = aten.where.self
            graph.nodes[name] = replace(
                node, op="where", function=function, args=(mask, value, x), kwargs={}
            )
        elif node.op == "scatter_reduce" and node.argument(4, "reduce", "") in ("sum", "mean"):
            op = "scatter_add" if node.argument(4, "reduce", "") == "sum" else "scatter_mean"
            inner = node.argument(5, "include_self", True)
            graph.nodes[name] = replace(node, op=op) if op != "scatter_add" or inner else node
        elif node.op == "index_put" and node.argument(3, "accumulate", False):
            graph.nodes[name] = replace(node, op="index_put_add")
        elif node.op == "pad" and node.argument(2, "mode", "constant") == "constant":
            args = (*node.args[:2], node.argument(3, "value", None) or 0)
            graph.nodes[name] = replace(
                node, op="constant_pad_nd", function=aten.constant_pad_nd.default, args=args,
                kwargs={},
            )  # fmt: skip
        if node.op != "getitem" or not isinstance(node.args[0], Ref):
            continue
        source = graph.nodes.get(node.args[0].name)
        # weights are standardised by a batch norm in training mode: a constant like any other
        if source is not None and source.name not in fixed:
            graph.nodes[name] = _part(source, node) or node


def _fills(graph: Graph, node: Node) -> bool:
    """Whether it is x[mask] = number, with a place in the mask for each element."""
    indices, value = node.args[1:3]
    mask = graph.nodes.get(indices[0].name) if len(indices) == 1 and indices[0] else None
    return (
        mask is not None
        and mask.dtype is torch.bool
        and mask.shape == node.shape
        and graph.shape(value.name) == ()
        and not node.argument(3, "accumulate", False)
    )


def _part(source: Node, node: Node) -> Node | None:
    index = node.args[1]
    if source.op in _PARTS:
        axis = source.argument(1 if source.op == "unbind" else 2, "dim", 0)
        if source.op == "unbind":
            args: tuple[Any, ...] = (source.args[0], axis, index)
            return replace(node, op="select", function=aten.select.int, args=args)
        sizes = [shape[axis] for shape in source.attributes["parts"]]
        start = sum(sizes[:index])
        args = (source.args[0], axis, start, start + sizes[index])
        return replace(node, op="slice", function=aten.slice.Tensor, args=args)
    if source.op in ("var_mean", "std_mean"):
        op = "mean" if index else source.op.removesuffix("_mean")
        return _moment(source, node, op)
    if index != 0:
        return None
    same = replace(node, args=source.args, kwargs=source.kwargs)
    if source.op in _POOLS_WITH_INDICES:
        op = _POOLS_WITH_INDICES[source.op]
        return replace(same, op=op, function=getattr(aten, op).default)
    if source.op in _ADAPTIVE_MAX:
        function = partial(_first, source.function)
        return replace(same, op=source.op, function=function)
    if source.op == "max" and len(source.args) > 1:
        args = (source.args[0], [source.args[1]], source.argument(2, "keepdim", False))
        return replace(node, op="amax", function=aten.amax.default, args=args)
    if source.op in BAGS:
        function = partial(_first, source.function)
        return replace(same, op="embedding_bag", function=function)
    if source.op in BATCH_NORMS:
        return replace(source, name=node.name, shape=node.shape, dtype=node.dtype)
    if source.op == "native_layer_norm":
        return replace(same, op="layer_norm", function=aten.layer_norm.default)
    return None


def _moment(source: Node, node: Node, op: str) -> Node:
    """The mean, or the variance or standard deviation, of the two that an operation returns."""
    if op != "mean":
        function = getattr(getattr(aten, op), source.overload)
        return replace(node, op=op, function=function, args=source.args, kwargs=source.kwargs)
    axes = source.argument(1, "dim", None)
    args = (source.args[0], axes, bool(source.kwargs.get("keepdim", False)))
    return replace(node, op=op, function=aten.mean.dim, args=args, kwargs={})


def _first(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)[0]
