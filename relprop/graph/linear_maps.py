"""Dense layers, convolutions and batch norms as what they are: linear maps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relprop.errors import PlanningError
from relprop.graph.maps import Conv, Dense, Diagonal, LinearMap
from relprop.graph.nodes import Graph, Node, Ref

__all__ = ["BATCH_NORMS", "as_linear_maps"]

aten = torch.ops.aten

BATCH_NORMS = {"batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm",
                "cudnn_batch_norm", "_native_batch_norm_legit", "miopen_batch_norm"}  # fmt: skip
_CONVOLUTIONS = {
    "convolution",
    *(f"conv{n}d" for n in (1, 2, 3)),
    *(f"conv_transpose{n}d" for n in (1, 2, 3)),
}


def as_linear_maps(graph: Graph) -> None:
    """Dense layers, convolutions and batch norms as linear maps; weights may be computed values."""
    nodes: dict[str, Node] = {}
    fixed = graph.fixed()
    for node in graph.nodes.values():
        for new in _as_layer(graph, node, fixed):
            nodes[new.name] = new
    graph.nodes = nodes


def _as_layer(graph: Graph, node: Node, fixed: Collection[str]) -> list[Node]:
    if node.op == "linear":
        return [_linear_node(node, Dense(), *_padded(node.args, 3))]
    if node.op in ("mm", "matmul", "addmm"):
        return _from_matmul(graph, node)
    if node.op in _CONVOLUTIONS:
        return [_linear_node(node, _convolution(graph, node), *_padded(node.args[:3], 3))]
    if node.op in BATCH_NORMS and node.shape is not None and node.name not in fixed:
        return _from_batch_norm(node)
    return [node]


def _padded(args: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    return (*args, *(None,) * (count - len(args)))


def _linear_node(node: Node, linear_map: LinearMap, x: Any, w: Any, b: Any) -> Node:
    """The node as a linear map of `x`."""
    return replace(
        node,
        op=_map_op(linear_map),
        function=linear_map.contraction,
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
    scales = [node.argument(i, key, 1) for i, key in ((3, "beta"), (4, "alpha"))]
    if node.op == "addmm" and scales != [1, 1]:
        return [node]
    b, x, w = node.args[:3] if node.op == "addmm" else (None, *node.args[:2])
    if not isinstance(w, Ref) or _ndim(graph, w.name) != 2 or (b and _ndim(graph, b.name) != 1):
        return [node]
    if w.name in graph.nodes and graph.nodes[w.name].op in ("t", "numpy_T"):
        return [_linear_node(node, Dense(), x, graph.nodes[w.name].args[0], b)]
    turned = Node(f"{node.name}_weight", "t", aten.t.default, (w,), path=node.path, shape=(0, 0))
    return [turned, _linear_node(node, Dense(), x, Ref(turned.name), b)]


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
        given = {key: node.argument(3 + i, key, defaults[key]) for i, key in enumerate(order)}
        stride, padding, dilation = given["stride"], given["padding"], given["dilation"]
        output_padding, groups = given.get("output_padding", 0), given["groups"]
    kernel = (1,) * spatial
    if isinstance(padding, str):
        kernel = (_shape_of(graph, node.args[1].name) or ())[2:]
    groups, transposed = int(groups), bool(transposed)
    return Conv.of(kernel, stride, padding, dilation, groups, transposed, output_padding)


def _from_batch_norm(node: Node) -> list[Node]:
    x, weight, bias, mean, variance = node.args[:5]
    if mean is None or variance is None or isinstance(mean, bool):
        raise PlanningError(
            f"'{node.path}' ({node.op}) has no running statistics, so one sample's output depends "
            "on the others; use track_running_stats=True"
        )
    without_mode = node.op == "_native_batch_norm_legit_no_training"
    training, epsilon = (False, node.args[6]) if without_mode else (node.args[5], node.args[7])
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
    layer = _linear_node(node, linear_map, x, Ref(scale.name), Ref(shift.name))
    return [scale, shift, layer]


def _scale(weight: Tensor | None, variance: Tensor, epsilon: float) -> Tensor:
    scale = torch.rsqrt(variance + epsilon)
    return scale if weight is None else scale * weight


def _shift(bias: Tensor | None, mean: Tensor, scale: Tensor) -> Tensor:
    return -mean * scale if bias is None else bias - mean * scale
