"""The naive relevance of every operation that is no linear layer, for `backend="reference"`.

Linear layers have `linear` beside this file; here its functions are applied to the other
operations of a plan, one target at a time, by how they carry relevance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.backends.reference import linear as reference
from relprop.backends.reference.samples import relevance_of_samples
from relprop.graph import Node, Ref, map_refs
from relprop.operations import Parts, Step
from relprop.operations.recurrent import Recurrence
from relprop.rules import Norm, Pass, Recurrent

__all__ = ["naive_relevance"]


def naive_relevance(
    step: Step, values: Mapping[str, Any], r: Any
) -> Sequence[Tensor | Parts | None]:
    """Relevance of each of the step's inputs, `[K, *shape]`.

    Args:
        step: the operation.
        values: the values that it read.
        r: relevance of its value, `[K, *shape]`, or `Parts` of its several values.
    """
    if step.operation.carry == "item":
        return [Parts({step.node.args[1]: r})]
    if isinstance(step.operation, Recurrence):
        return _recurrent(step, step.operation, values, r)
    if step.operation.carry == "packing":
        return [torch.stack([_packing(step, values, row) for row in r.items[0]])]
    targets = [_one_target(step, values, row) for row in r]
    return [
        None if parts[0] is None else torch.stack([part for part in parts if part is not None])
        for parts in zip(*targets, strict=True)
    ]


def _one_target(step: Step, values: Mapping[str, Any], r: Tensor) -> list[Tensor | None]:
    match step.operation.carry:
        case "pass":
            return [r]
        case "movement" | "winner":
            return [_adjoint(step, values, position, r) for position in range(len(step.inputs))]
        case "norm":
            assert isinstance(step.rule, Norm) and step.rule.epsilon is not None
            a = _wide(values[step.inputs[0]])
            return [reference.norm_relevance(_of(step, values, 0), a, r, step.rule.epsilon)]
        case "normalisation":
            return [r if isinstance(step.rule, Pass) else _normalisation(step, values, r)]
        case "choice":
            return _choice(step, values, r)
        case "sum":
            return _sum(step, values, r)
        case "product":
            shapes = [values[name].shape for name in step.inputs]
            shares = step.options["shares"]
            return [(r * p).sum_to_size(s) for p, s in zip(shares, shapes, strict=True)]
        case "bag":
            return [_bag(step, values, r)]
        case "share":
            x = values[step.inputs[0]].to(r.dtype)
            return [reference.homogeneous_relevance(_of(step, values, 0), x, r)]
        case "indexed":
            assert isinstance(step.rule, Norm) and step.rule.epsilon is not None
            s = reference.quotient(r, _wide(step.node.evaluate(values)), step.rule.epsilon)
            return [
                _wide(values[name]) * _adjoint(step, values, position, s)
                for position, name in enumerate(step.inputs)
            ]
        case "embedding":
            return [r.sum(-1)]
        case "gated":
            x = values[step.inputs[0]]
            axis = step.node.args[1] if len(step.node.args) > 1 else -1
            return [torch.cat([r, torch.zeros_like(x.chunk(2, axis)[1])], axis)]
    raise AssertionError(f"{step.where}: unknown way to carry, {step.operation.carry!r}")


def _recurrent(
    step: Step, operation: Recurrence, values: Mapping[str, Any], r: Any
) -> list[Tensor | None]:
    """The plain loop, in float32 at least."""
    assert isinstance(step.rule, Recurrent)
    sizes = operation.sizes(step.node, values)
    layout, directions, x, h0, c0, lengths = operation.call(step.node, values)
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, h0 = x.detach().to(dtype), h0.detach().to(dtype)
    c0 = None if c0 is None else c0.detach().to(dtype)
    weights = [direction.to(x) for direction in directions]
    given = [None if part is None else part.to(dtype) for part in operation.unpack(r, sizes)]
    parts = relevance_of_samples(layout, weights, x, h0, c0, given, step.rule, lengths)
    return operation.chosen(step, parts, sizes)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _of(step: Step, values: Mapping[str, Any], position: int) -> Callable[[Tensor], Tensor]:
    """The operation as a function of the input at a position, the others as they were."""
    seen = -1

    def replaced(name: str, tensor: Tensor) -> Any:
        nonlocal seen
        if name in step.inputs:
            seen += 1
            return tensor if seen == position else values[name]
        return values[name]

    def function(tensor: Tensor) -> Tensor:
        nonlocal seen
        seen = -1
        node = step.node
        args = map_refs(node.args, lambda name: replaced(name, tensor))
        kwargs = {key: map_refs(arg, values.__getitem__) for key, arg in node.kwargs.items()}
        result: Tensor = node.function(*args, **kwargs)
        return result

    return function


def _adjoint(step: Step, values: Mapping[str, Any], position: int, r: Tensor) -> Tensor:
    function = _of(step, values, position)
    x = values[step.inputs[position]]
    if step.operation.carry == "winner":
        return reference.winner_relevance(function, x, r)
    if not x.is_floating_point():  # token ids: moved as numbers, their relevance with them
        return reference.movement_relevance(function, torch.zeros(x.shape, dtype=r.dtype), r)
    return reference.movement_relevance(function, x.to(r.dtype), r)


def _bag(step: Step, values: Mapping[str, Any], r: Tensor) -> Tensor:
    """Bag by bag and feature by feature: shares of a sum or mean, all to the first maximum."""
    rows, indices, offsets, mode, weights, _, padding = (
        values[x.name] if isinstance(x, Ref) else x for x in step.node.args
    )
    ends = [*offsets.tolist(), len(indices)][1:]
    result = torch.zeros_like(rows, dtype=r.dtype)
    for number, (start, end) in enumerate(zip(offsets.tolist(), ends, strict=False)):
        inside = [j for j in range(start, end) if padding is None or int(indices[j]) != padding]
        if number >= len(r) or not inside:
            continue
        own = rows[inside].to(r.dtype)
        if mode == "max":
            for feature in range(rows.shape[1]):
                best = max(inside, key=lambda j, f=feature: float(rows[j, f]))  # type: ignore[misc]
                result[best, feature] = r[number, feature]
            continue
        shares = own / len(inside) if mode == "mean" else own
        if weights is not None:
            shares = shares * weights[inside].to(r.dtype)[:, None]
        assert isinstance(step.rule, Norm) and step.rule.epsilon is not None
        result[inside] = shares * reference.quotient(r[number], shares.sum(0), step.rule.epsilon)
    return result


def _normalisation(step: Step, values: Mapping[str, Any], r: Tensor) -> Tensor:
    """Epsilon on the linear part, the shift in the denominator alone."""
    assert isinstance(step.rule, Norm) and step.rule.epsilon is not None
    x = _wide(values[step.inputs[0]])
    s = reference.quotient(r, step.node.evaluate(values), step.rule.epsilon)
    return x * reference.movement_relevance(_linear_part(step.node, values, x), x, s)


def _linear_part(node: Node, values: Mapping[str, Any], x: Tensor) -> Callable[[Tensor], Tensor]:
    """gain * (u - mean(u)) / sigma as a function of u, sigma that of x; an RMS norm has no mean."""
    if node.op in ("layer_norm", "rms_norm"):
        shape, over, place = x.shape, range(-len(node.args[1]), 0), tuple(node.args[1])
        at = 2
    else:
        groups = x.shape[1] if node.op == "instance_norm" else node.args[1]
        shape = torch.Size((x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))
        over, place = range(2, len(shape)), (1, x.shape[1], *[1] * (x.ndim - 2))
        at = 1 if node.op == "instance_norm" else 2
    axes = tuple(over)
    added = {"layer_norm": (4, 1e-5), "group_norm": (4, 1e-5), "instance_norm": (7, 1e-5)}
    position, default = added.get(node.op, (3, None))
    epsilon = node.argument(position, "eps", default)
    epsilon = torch.finfo(x.dtype).eps if epsilon is None else epsilon
    gain = map_refs(node.argument(at, "weight", None), values.__getitem__)

    def centred(u: Tensor) -> Tensor:
        u = u.reshape(shape)
        return u if node.op == "rms_norm" else u - u.mean(axes, keepdim=True)

    sigma = torch.sqrt((centred(x) ** 2).mean(axes, keepdim=True) + epsilon)

    def function(u: Tensor) -> Tensor:
        y = (centred(u) / sigma).reshape(x.shape)
        return y if gain is None else y * gain.to(y).reshape(place)

    return function


def _packing(step: Step, values: Mapping[str, Any], r: Tensor) -> Tensor:
    """Packing and unpacking return their data first, then its sizes."""
    function, x = _of(step, values, 0), values[step.inputs[0]].to(r)
    return reference.movement_relevance(lambda data: function(data)[0], x, r)


def _choice(step: Step, values: Mapping[str, Any], r: Tensor) -> list[Tensor | None]:
    """Where the first operand is the result it takes all; elsewhere the second does."""
    first = values[step.node.args[0].name] == step.node.evaluate(values)
    return _carried(step, values, torch.where(first, r, 0.0), torch.where(first, 0.0, r))


def _sum(step: Step, values: Mapping[str, Any], r: Tensor) -> list[Tensor | None]:
    """a + alpha b, a - alpha b or, rsub, b - alpha a, one of them perhaps a number."""
    if isinstance(step.rule, Pass):
        return _carried(step, values, r, r)
    assert isinstance(step.rule, Norm) and step.rule.epsilon is not None
    node, alpha = step.node, step.node.argument(2, "alpha", 1)
    a, b = (
        _wide(torch.as_tensor(map_refs(x, values.__getitem__), device=r.device)).to(r.dtype)
        for x in node.args[:2]
    )
    match node.op:
        case "add":
            a, b = a, alpha * b
        case "sub":
            a, b = a, -alpha * b
        case "rsub":
            a, b = -alpha * a, b
    return _carried(step, values, *reference.sum_relevance(a, b, r, step.rule.epsilon))


def _carried(step: Step, values: Mapping[str, Any], *shares: Tensor) -> list[Tensor | None]:
    """Of the shares of the first operands those of the step's inputs, shaped as these are."""
    return [
        share.sum_to_size(values[x.name].shape)
        for x, share in zip(step.node.args, shares, strict=False)
        if isinstance(x, Ref) and x.name in step.inputs
    ]
