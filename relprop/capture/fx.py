"""Nodes of torch.fx as nodes of a `Graph`, whether exported or recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from relprop.errors import CaptureError
from relprop.graph import Node, Ref

__all__ = ["TAKEN_APART", "argument_of", "operation_name", "shape_of", "translated"]

aten = torch.ops.aten


def _apart(operation: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> Any:
    """The operation by those that torch computes it by itself."""
    return operation._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)


TAKEN_APART: dict[Any, Callable[..., Any]] = {
    overload: partial(_apart, overload)
    for overload in (
        aten.einsum.default, aten.tensordot.default, aten.inner.default, aten.outer.default,
        aten.linalg_multi_dot.default, aten.chain_matmul.default, aten.linalg_vecdot.default,
        aten.linalg_norm.default, aten.linalg_matrix_norm.default, aten.linalg_matrix_norm.str_ord,
        aten.cosine_similarity.default, aten.pairwise_distance.default, aten.l1_loss.default,
        aten.cosine_embedding_loss.default, aten.triplet_margin_loss.default,
        aten.broadcast_tensors.default,
    )
}  # fmt: skip
"""Operations whose meaning is in their arguments, by what computes them from others."""


def translated(
    node: torch.fx.Node, function: Callable[..., Any], path: str, module_types: Iterable[type]
) -> Node:
    """The node of a graph for one of torch.fx.

    Args:
        node: a call of a function.
        function: what computes it.
        path: the innermost module call around it.
        module_types: classes of the modules around it, from the innermost outward.
    """
    value = node.meta.get("val")
    return Node(
        name=node.name,
        op=operation_name(node.target),
        function=function,
        args=tuple(argument_of(arg) for arg in node.args),
        kwargs={key: argument_of(arg) for key, arg in node.kwargs.items()},
        path=path,
        module_types=tuple(module_types),
        shape=shape_of(value),
        dtype=value.dtype if isinstance(value, Tensor) else None,
        attributes=_parts(value),
    )


def argument_of(value: Any) -> Any:
    """An argument of a torch.fx node; where it reads another node, a reference to that."""
    if isinstance(value, torch.fx.Node):
        return Ref(value.name)
    if isinstance(value, (list, tuple)):
        items = [argument_of(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def operation_name(target: Any) -> str:
    """ "aten.conv2d.default" → "conv2d"; a Python function by its own name."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2]
    return getattr(target, "__name__", str(target))


def shape_of(value: Any) -> tuple[int, ...] | None:
    """The sizes of a tensor, free ones by their example; None for anything else."""
    return tuple(_size(size) for size in value.shape) if isinstance(value, Tensor) else None


def _size(size: Any) -> int:
    if not isinstance(size, torch.SymInt):
        return int(size)
    if not size.node.has_hint():
        raise CaptureError("the shape of a value depends on the data, as with x[mask]")
    return int(size.node.hint)


def _parts(value: Any) -> dict[str, Any]:
    """Shapes of the parts of a value that is a tuple (split, unbind, …), axes of free size."""
    if isinstance(value, Tensor):
        sizes = enumerate(value.shape)
        return {"free": tuple(i for i, size in sizes if isinstance(size, torch.SymInt))}
    if isinstance(value, (tuple, list)):
        return {"parts": [shape_of(part) for part in value]}
    return {}
