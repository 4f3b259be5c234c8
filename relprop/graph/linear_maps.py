"""Dense layers, convolutions and batch norms as what they are: linear maps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from relprop.errors import PlanningError
from relprop.graph.maps import (
    Conv,
    Dense,
    Diagonal,
    LinearMap,
    norm_scale,
    norm_shift,
    scale_bias,
    scale_inputs,
    scale_outputs,
    shift_inputs,
)
from relprop.graph.nodes import Graph, Node, Ref

__all__ = [
    "BATCH_NORMS",
    "as_linear_maps",
    "fold_batch_norms",
    "fold_padding",
    "linear_node",
]

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
        return [linear_node(node, Dense(), *_padded(node.args, 3))]
    if node.op in _CONVOLUTIONS:
        return [linear_node(node, _convolution(graph, node), *_padded(node.args[:3], 3))]
    if node.op in BATCH_NORMS and node.shape is not None and node.name not in fixed:
        return _from_batch_norm(node)
    return [node]


def _padded(args: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    return (*args, *(None,) * (count - len(args)))


def linear_node(node: Node, linear_map: LinearMap, x: Any, w: Any, b: Any) -> Node:
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
        given = defaults | given
        stride, padding, dilation = given["stride"], given["padding"], given["dilation"]
        output_padding, groups = given["output_padding"], given["groups"]
    kernel = (1,) * spatial
    if isinstance(padding, str):
        kernel = (graph.shape(node.args[1].name) or ())[2:]
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
        f"{node.name}norm_scale", "batch_norm_scale", norm_scale, (weight, variance, epsilon),
        path=node.path, shape=(0,),
    )  # fmt: skip
    shift = Node(
        f"{node.name}norm_shift", "batch_norm_shift", norm_shift, (bias, mean, Ref(scale.name)),
        path=node.path, shape=(0,),
    )  # fmt: skip
    linear_map = Diagonal(len(node.shape or ()))
    layer = linear_node(node, linear_map, x, Ref(scale.name), Ref(shift.name))
    return [scale, shift, layer]


def fold_padding(graph: Graph) -> None:
    """Zero padding whose only reader is a convolution becomes that convolution's padding."""
    readers = graph.consumers()
    for node in list(graph.nodes.values()):
        if node.op != "conv_map":
            continue
        pad = graph.nodes.get(node.args[0].name)
        if pad is None or pad.op != "constant_pad_nd" or not _sole(graph, readers, pad.name):
            continue
        linear_map, sizes = node.attributes["map"], pad.args[1]
        value = pad.argument(2, "value", 0)
        fits = len(sizes) <= 2 * linear_map.spatial and all(size >= 0 for size in sizes)
        if value != 0 or not fits:
            continue
        padded = replace(linear_map, padding=_widened(linear_map.padding, sizes))
        graph.nodes[node.name] = _with_map(node, padded, (pad.args[0], *node.args[1:]))


def _widened(padding: tuple[tuple[int, int], ...], sizes: list[int]) -> Any:
    pairs = [tuple(sizes[i : i + 2]) for i in range(0, len(sizes), 2)][::-1]
    pairs = [(0, 0)] * (len(padding) - len(pairs)) + pairs
    return tuple((a + c, b + d) for (a, b), (c, d) in zip(padding, pairs, strict=True))


def _with_map(node: Node, linear_map: LinearMap, args: tuple[Any, ...]) -> Node:
    return replace(
        node,
        args=args,
        function=linear_map.contraction,
        attributes={**node.attributes, "map": linear_map},
    )


def _sole(graph: Graph, readers: dict[str, list[str]], name: str) -> bool:
    return len(readers.get(name, [])) == 1 and name not in graph.output_names


def fold_batch_norms(graph: Graph) -> None:
    """Batch norms fold into the linear layer before them, else into the one after."""
    readers = graph.consumers()
    for node in list(graph.nodes.values()):
        if node.op == "diagonal_map":
            _fold_before(graph, readers, node) or _fold_after(graph, readers, node)


def _fold_before(graph: Graph, readers: dict[str, list[str]], norm: Node) -> bool:
    layer = graph.nodes.get(norm.args[0].name)
    if layer is None or layer.op not in ("dense_map", "conv_map", "conv_transpose_map"):
        return False
    linear_map = layer.attributes["map"]
    same_axis = linear_map.feature_axis == norm.attributes["map"].feature_axis
    if not same_axis or not _sole(graph, readers, layer.name):
        return False
    x, w, b = layer.args
    scale, shift = norm.args[1:]
    weight = _constant(norm, "weight", partial(scale_outputs, linear_map), (w, scale))
    bias = _constant(norm, "bias", scale_bias, (b, scale, shift))
    joint = replace(layer, name=norm.name, args=(x, Ref(weight.name), Ref(bias.name)))
    joint = replace(joint, shape=norm.shape, attributes={**joint.attributes, "folded": norm.path})
    _replace(graph, norm.name, [weight, bias, joint], drop=layer.name)
    _reread(readers, x, layer.name, norm.name)
    graph.rename_outputs({layer.name: norm.name})
    return True


def _fold_after(graph: Graph, readers: dict[str, list[str]], norm: Node) -> bool:
    if not _sole(graph, readers, norm.name):
        return False
    layer = graph.nodes[readers[norm.name][0]]
    if layer.op not in ("dense_map", "conv_map") or layer.args[0] != Ref(norm.name):
        return False
    linear_map: LinearMap = layer.attributes["map"]
    padded = isinstance(linear_map, Conv) and any(map(any, linear_map.padding))
    diagonal: Diagonal = norm.attributes["map"]
    if padded or linear_map.feature_axis != diagonal.feature_axis:
        return False
    _, w, b = layer.args
    scale, shift = norm.args[1:]
    weight = _constant(layer, "weight", partial(scale_inputs, linear_map), (w, scale))
    bias = _constant(layer, "bias", partial(shift_inputs, linear_map), (w, b, shift))
    joint = replace(layer, args=(norm.args[0], Ref(weight.name), Ref(bias.name)))
    joint = replace(joint, attributes={**joint.attributes, "folded": norm.path})
    _replace(graph, layer.name, [weight, bias, joint], drop=norm.name)
    _reread(readers, norm.args[0], norm.name, layer.name)
    graph.keep_outputs({*graph.nodes, *graph.inputs})
    return True


def _reread(readers: dict[str, list[str]], x: Ref, old: str, new: str) -> None:
    """`x` is read by the node `new` where it was by `old`."""
    readers[x.name] = [new if name == old else name for name in readers[x.name]]


def _constant(node: Node, what: str, function: Any, args: tuple[Any, ...]) -> Node:
    return Node(f"{node.name}_{what}", f"folded_{what}", function, args, path=node.path, shape=(0,))


def _replace(graph: Graph, name: str, new: list[Node], drop: str) -> None:
    nodes: dict[str, Node] = {}
    for key, node in graph.nodes.items():
        if key == name:
            nodes.update({item.name: item for item in new})
        elif key != drop:
            nodes[key] = node
    graph.nodes = nodes
