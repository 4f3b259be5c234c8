"""Canonical form: one name for each operation, identities gone, layers as linear maps.

Rewrites keep every value that a module returns reachable by its module path.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from relprop.errors import PlanningError
from relprop.fold import fold_batch_norms, fold_padding
from relprop.graph import Graph, Node, Ref
from relprop.layers.base import argument
from relprop.layers.linear import evaluate_map
from relprop.maps import Conv, Dense, Diagonal, LinearMap
from relprop.spellings import respell

__all__ = ["canonical"]

aten = torch.ops.aten

_IDENTITIES = {
    "clone", "contiguous", "alias", "detach", "detach_", "lift_fresh", "lift_fresh_copy",
    "dropout", "native_dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout",
    "requires_grad_", "positive", "_conj", "resolve_conj", "resolve_neg",
}  # fmt: skip
_VIEWS = {"view", "_unsafe_view", "reshape"}
_SYNONYMS = {"multiply": "mul", "divide": "div", "subtract": "sub", "concatenate": "cat",
             "native_channel_shuffle": "channel_shuffle"}  # fmt: skip
_PARTS = {"split", "split_with_sizes", "chunk", "unbind", "tensor_split", "unsafe_split",
          "unsafe_chunk", "unsafe_split_with_sizes"}  # fmt: skip
_BATCH_NORMS = {"batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm",
                "cudnn_batch_norm", "_native_batch_norm_legit", "miopen_batch_norm"}  # fmt: skip
_POOLS_WITH_INDICES = {f"max_pool{n}d_with_indices": f"max_pool{n}d" for n in (1, 2, 3)}
_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
_ADAPTIVE_MAX = {f"adaptive_max_pool{n}d" for n in (1, 2, 3)}


def canonical(graph: Graph) -> Graph:
    """The graph in canonical form (the argument itself, changed).

    Raises:
        PlanningError: a batch norm or dropout is in training mode or lacks running statistics.
    """
    graph.prune()
    _drop_identities(graph)
    _single_values(graph)
    respell(graph)
    _layers(graph)
    graph.prune()
    fold_padding(graph)
    fold_batch_norms(graph)
    graph.prune()
    return graph


def _is_identity(node: Node) -> bool:
    if node.op in _IDENTITIES:
        if "dropout" in node.op and len(node.args) > 2 and node.args[2]:
            raise PlanningError(
                f"'{node.path}' ({node.op}) is in training mode; call model.eval() first"
            )
        return bool(node.args) and isinstance(node.args[0], Ref)
    if node.op == "slice":
        start, end, step = argument(node, 2, "start", 0), argument(node, 3, "end", None), 1
        step = argument(node, 4, "step", 1)
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
        elif node.op == "pad" and argument(node, 2, "mode", "constant") == "constant":
            args = (*node.args[:2], argument(node, 3, "value", None) or 0)
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


def _part(source: Node, node: Node) -> Node | None:
    index = node.args[1]
    if source.op in _PARTS:
        axis = argument(source, 1 if source.op == "unbind" else 2, "dim", 0)
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
        args = (source.args[0], [source.args[1]], argument(source, 2, "keepdim", False))
        return replace(node, op="amax", function=aten.amax.default, args=args)
    if source.op in _BATCH_NORMS:
        return replace(source, name=node.name, shape=node.shape, dtype=node.dtype)
    if source.op == "native_layer_norm":
        return replace(same, op="layer_norm", function=aten.layer_norm.default)
    return None


def _moment(source: Node, node: Node, op: str) -> Node:
    """The mean, or the variance or standard deviation, of the two that an operation returns."""
    if op != "mean":
        function = getattr(getattr(aten, op), source.overload)
        return replace(node, op=op, function=function, args=source.args, kwargs=source.kwargs)
    axes = argument(source, 1, "dim", None)
    args = (source.args[0], axes, bool(source.kwargs.get("keepdim", False)))
    return replace(node, op=op, function=aten.mean.dim, args=args, kwargs={})


def _first(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)[0]


def _layers(graph: Graph) -> None:
    """Dense layers, convolutions and batch norms as linear maps; weights may be computed values."""
    nodes: dict[str, Node] = {}
    fixed = graph.fixed()
    for node in graph.nodes.values():
        for new in _as_layer(graph, node, fixed):
            nodes[new.name] = new
    graph.nodes = nodes


def _as_layer(graph: Graph, node: Node, fixed: Collection[str]) -> list[Node]:
    if node.op in ("linear",):
        return [linear_node(node, Dense(), *_padded(node.args, 3))]
    if node.op in ("mm", "matmul", "addmm"):
        return _from_matmul(graph, node)
    if node.op in ("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d",
                   "conv_transpose2d", "conv_transpose3d"):  # fmt: skip
        return [linear_node(node, _convolution(graph, node), *_padded(node.args[:3], 3))]
    if node.op in _BATCH_NORMS and node.shape is not None and node.name not in fixed:
        return _from_batch_norm(node)
    return [node]


def _padded(args: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    return (*args, *(None,) * (count - len(args)))


def linear_node(node: Node, linear_map: LinearMap, x: Any, w: Any, b: Any) -> Node:
    """The node as a linear map of `x`."""
    return replace(
        node,
        op=_map_op(linear_map),
        function=partial(evaluate_map, linear_map),
        args=(x, w, b),
        kwargs={},
        attributes={**node.attributes, "map": linear_map},
    )


def _map_op(linear_map: LinearMap) -> str:
    if isinstance(linear_map, Conv):
        return "conv_transpose_map" if linear_map.transposed else "conv_map"
    return "dense_map" if isinstance(linear_map, Dense) else "diagonal_map"


def _from_matmul(graph: Graph, node: Node) -> list[Node]:
    """x @ W with a weight of two axes is a dense layer whose weight is the transpose."""
    scales = [argument(node, i, key, 1) for i, key in ((3, "beta"), (4, "alpha"))]
    if node.op == "addmm" and scales != [1, 1]:
        return [node]
    b, x, w = node.args[:3] if node.op == "addmm" else (None, *node.args[:2])
    if not isinstance(w, Ref) or _ndim(graph, w.name) != 2 or (b and _ndim(graph, b.name) != 1):
        return [node]
    if w.name in graph.nodes and graph.nodes[w.name].op in ("t", "numpy_T"):
        return [linear_node(node, Dense(), x, graph.nodes[w.name].args[0], b)]
    turned = Node(f"{node.name}_weight", "t", aten.t.default, (w,), path=node.path, shape=(0, 0))
    return [turned, linear_node(node, Dense(), x, Ref(turned.name), b)]


def _ndim(graph: Graph, name: str) -> int:
    shape = _shape_of(graph, name)
    return -1 if shape is None else len(shape)


def _shape_of(graph: Graph, name: str) -> tuple[int, ...] | None:
    if name in graph.nodes:
        return graph.nodes[name].shape
    return graph.sources[name].shape if name in graph.sources else None


def _convolution(graph: Graph, node: Node) -> Conv:
    generic, transposed = node.op == "convolution", "transpose" in node.op
    spatial = len(node.shape or ()) - 2
    if generic:
        stride, padding, dilation, transposed, output_padding, groups = node.args[3:9]
    else:
        order = (
            ("stride", "padding", "output_padding", "groups", "dilation")
            if transposed
            else ("stride", "padding", "dilation", "groups")
        )
        defaults = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
        given = {key: argument(node, 3 + i, key, defaults[key]) for i, key in enumerate(order)}
        stride, padding, dilation = given["stride"], given["padding"], given["dilation"]
        output_padding, groups = given.get("output_padding", 0), given["groups"]
    dilations = _spread(dilation, spatial)
    if isinstance(padding, str):
        kernel = (_shape_of(graph, node.args[1].name) or ())[2:]
        pads = tuple(_same_padding(padding, k, d) for k, d in zip(kernel, dilations, strict=True))
    else:
        pads = tuple((size, size) for size in _spread(padding, spatial))
    extra = _spread(output_padding, spatial) if transposed else ()
    return Conv(_spread(stride, spatial), pads, dilations, int(groups), bool(transposed), extra)


def _same_padding(padding: str, kernel: int, dilation: int) -> tuple[int, int]:
    total = dilation * (kernel - 1) if padding == "same" else 0
    return total // 2, total - total // 2


def _spread(value: Any, count: int) -> tuple[int, ...]:
    items = [value] if isinstance(value, int) else list(value)
    return tuple(items * count) if len(items) == 1 else tuple(items)


def _from_batch_norm(node: Node) -> list[Node]:
    x, weight, bias, mean, variance = node.args[:5]
    if mean is None or variance is None or isinstance(mean, bool):
        raise PlanningError(
            f"'{node.path}' ({node.op}) has no running statistics, so one sample's output depends "
            "on the others; use track_running_stats=True"
        )
    training = node.args[5] if node.op != "_native_batch_norm_legit_no_training" else False
    epsilon = node.args[7 if node.op != "_native_batch_norm_legit_no_training" else 6]
    if training:
        raise PlanningError(
            f"'{node.path}' ({node.op}) is in training mode; call model.eval() first"
        )
    scale = Node(
        f"{node.name}_scale", "batch_norm_scale", _scale, (weight, variance, epsilon),
        path=node.path, shape=(0,),
    )  # fmt: skip
    shift = Node(
        f"{node.name}_shift", "batch_norm_shift", _shift, (bias, mean, Ref(scale.name)),
        path=node.path, shape=(0,),
    )  # fmt: skip
    linear_map = Diagonal(len(node.shape or ()))
    layer = linear_node(node, linear_map, x, Ref(scale.name), Ref(shift.name))
    return [scale, shift, layer]


def _scale(weight: Tensor | None, variance: Tensor, epsilon: float) -> Tensor:
    scale = torch.rsqrt(variance + epsilon)
    return scale if weight is None else scale * weight


def _shift(bias: Tensor | None, mean: Tensor, scale: Tensor) -> Tensor:
    return -mean * scale if bias is None else bias - mean * scale
