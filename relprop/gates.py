"""Which factors of a product are gates, however they are spelt.

A gate is a sigmoid, a hard sigmoid or a softmax (as one operation or written out), a mask, what is
computed from gates alone, and a statistic by which a normalisation divides.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from relprop.graph import Node, Ref, refs_of

__all__ = ["is_gate", "is_magnitude"]

_SIGMOIDS = {"sigmoid", "hardsigmoid", "softmax", "_softmax"}
_MOVED = {
    "reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t",
    "expand", "expand_as", "slice", "select", "narrow", "_to_copy", "to", "repeat", "index_select",
    "index", "roll", "flip", "repeat_interleave", "pixel_shuffle",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
}  # fmt: skip
_AVERAGED = {
    "mean", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d",
}  # fmt: skip
_JOINED = {"cat", "stack"}
_NORMS = {"linalg_vector_norm", "norm", "frobenius_norm", "var", "std"}
_SCALAR_STEPS = {"sqrt", "rsqrt", "pow", "reciprocal", "clamp", "clamp_min", "square", "sum",
                 "constant_pad_nd", "maximum", "add", "mul", "div", "true_divide"}  # fmt: skip


def is_gate(
    node: Node,
    nodes: Mapping[str, Node],
    gates: Collection[str],
    magnitudes: Collection[str],
    carriers: Collection[str],
) -> bool:
    """Whether the node's value is a gate.

    Args:
        node: in question.
        nodes: all nodes by name.
        gates: the gates among the values before it.
        magnitudes: values before it that are magnitudes, see `is_magnitude`.
        carriers: values that depend on an input to explain.
    """
    if node.op in _SIGMOIDS or node.dtype is torch.bool:
        return True
    if node.op in ("clamp", "hardtanh", "relu6"):
        return _bounds(node) == (0, 1) or _is_hard_sigmoid(node, nodes)
    if node.op in ("add", "div", "true_divide", "reciprocal", "tanh") and _written_out(node, nodes):
        return True
    return _computed_from(node, gates, carriers) or _is_statistic(node, magnitudes, carriers, gates)


def _computed_from(node: Node, gates: Collection[str], carriers: Collection[str]) -> bool:
    """A gate moved, averaged or joined with others; 1 - gate, 1 + gate, 2 * gate, gate * gate."""
    reading = [name for name in node.refs if name in carriers]
    if not reading or any(name not in gates for name in reading):
        return False
    if node.op in ("sub", "rsub", "add", "mul", "neg"):
        return True
    if node.op in ("div", "true_divide"):
        return _name(node.args[0]) in gates
    return node.op in _MOVED | _AVERAGED | _JOINED


def _bounds(node: Node) -> tuple[Any, Any]:
    if node.op == "relu6":
        return 0, 6
    names = ("min_val", "max_val") if node.op == "hardtanh" else ("min", "max")
    default = (-1, 1) if node.op == "hardtanh" else (None, None)
    low, high = (node.argument(i + 1, names[i], default[i]) for i in (0, 1))
    return low, high


def _is_hard_sigmoid(node: Node, nodes: Mapping[str, Node]) -> bool:
    """relu6(x + 3), six times a hard sigmoid."""
    source = nodes.get(_name(node.args[0]))
    return _bounds(node) == (0, 6) and source is not None and _is_shifted(source, 3)


def _is_shifted(node: Node, by: float) -> bool:
    return node.op == "add" and any(_equals(x, by) for x in node.args[:2])


def _equals(value: Any, number: float) -> bool:
    return isinstance(value, (int, float)) and value == number


def _written_out(node: Node, nodes: Mapping[str, Node]) -> bool:
    """1 + tanh, 1 + erf, 1 / (1 + exp), tanh(softplus): sigmoids by other names."""

    def source(position: int, *ops: str) -> Node | None:
        found = nodes.get(_name(node.args[position]))
        return found if found is not None and found.op in ops else None

    match node.op:
        case "add":
            bounded = any(source(i, "tanh", "erf") for i in (0, 1) if i < len(node.args))
            return bounded and _is_shifted(node, 1)
        case "tanh":
            return source(0, "softplus") is not None
        case "reciprocal":
            return _is_logistic(source(0, "add"), nodes)
        case "div" | "true_divide":
            if _equals(node.args[0], 1):
                return _is_logistic(source(1, "add"), nodes)
            clipped = source(0, "relu6", "clamp", "hardtanh")
            return clipped is not None and _bounds(clipped) == (0, 6) and _equals(node.args[1], 6)
    return False


def _is_logistic(node: Node | None, nodes: Mapping[str, Node]) -> bool:
    """Whether the node is 1 + exp(x)."""
    if node is None or not _is_shifted(node, 1):
        return False
    return any(nodes[name].op == "exp" for name in node.refs if name in nodes)


def is_magnitude(
    node: Node,
    nodes: Mapping[str, Node],
    magnitudes: Collection[str],
    carriers: Collection[str],
) -> bool:
    """Whether the value tells how large others are: |x|, x², norms, variances, and what they give.

    What divides by such a value is a normalisation, and statistics take no relevance.
    """
    if node.op in _NORMS | {"abs", "square"}:
        return True
    if node.op == "pow" and isinstance(node.args[1], int | float) and node.args[1] % 2 == 0:
        return True
    if node.op == "mul" and isinstance(node.args[0], Ref) and node.args[0] == node.args[1]:
        return True
    if node.op == "add" and _is_logistic(node, nodes):
        return True
    reading = [name for name in refs_of(node.args) if name in carriers]
    known = bool(reading) and all(name in magnitudes for name in reading)
    return known and node.op in _SCALAR_STEPS | _MOVED | _AVERAGED | _JOINED


def _is_statistic(
    node: Node, magnitudes: Collection[str], carriers: Collection[str], gates: Collection[str]
) -> bool:
    """Magnitudes summed up over several elements, and what is computed from such sums alone."""
    if node.op in _NORMS:
        return True
    reading = [name for name in node.refs if name in carriers]
    if not reading or any(name not in magnitudes for name in reading):
        return False
    if node.op in _AVERAGED | {"sum"}:
        return True
    return node.op in _SCALAR_STEPS | _MOVED | _JOINED and all(name in gates for name in reading)


def _name(value: Any) -> str:
    return value.name if isinstance(value, Ref) else ""
