"""The naive relevance of every operation that is no linear layer, for `backend="reference"`.

Linear layers have `relprop.reference`; here its functions are applied to the other operations of
a plan, one target at a time, by how they carry relevance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from relprop import reference
from relprop.graph import map_refs
from relprop.layers import Parts, Step
from relprop.layers.choice import taken
from relprop.layers.normalise import linearised
from relprop.layers.pointwise import summand_factors
from relprop.layers.recurrent import Recurrence
from relprop.recurrent.oracle import relevance_of_samples
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
        saved = step.operation.save(step, values, None)
        return list(step.operation.relevance(step, saved, r, None))
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
            return [(r * mask).sum_to_size(shape) for mask, shape in taken(step, values)]
        case "sum":
            return list(_sum(step, values, r))
        case "product":
            shapes = [values[name].shape for name in step.inputs]
            shares = step.options["shares"]
            return [(r * p).sum_to_size(s) for p, s in zip(shares, shapes, strict=True)]
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
        return _winner(function, x, r)
    if not x.is_floating_point():  # token ids: moved as numbers, their relevance with them
        return reference.movement_relevance(function, torch.zeros(x.shape, dtype=r.dtype), r)
    return reference.movement_relevance(function, x.to(r.dtype), r)


def _normalisation(step: Step, values: Mapping[str, Any], r: Tensor) -> Tensor:
    """Epsilon on the linear part, the shift in the denominator alone."""
    assert isinstance(step.rule, Norm) and step.rule.epsilon is not None
    x = _wide(values[step.inputs[0]])
    s = reference.quotient(r, step.node.evaluate(values), step.rule.epsilon)
    return x * reference.movement_relevance(partial(linearised, step, values), x, s)


def _winner(function: Callable[[Tensor], Tensor], x: Tensor, r: Tensor) -> Tensor:
    """Max pooling through autograd, of ranks instead of values.

    `amax` divides ties in autograd; ranks have none, the first of equal values ranking highest.
    """
    with torch.inference_mode(False), torch.enable_grad():
        ranks = _ranks(x).to(r.dtype).requires_grad_()
        (relevance,) = torch.autograd.grad(function(ranks), ranks, r)
    return relevance


def _ranks(x: Tensor) -> Tensor:
    """Each element's rank in the whole tensor, equal values ranked in falling order of position."""
    order = torch.argsort(x.flatten().flip(0), stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=x.device)
    return ranks.flip(0).view(x.shape)


def _sum(step: Step, values: Mapping[str, Any], r: Tensor) -> list[Tensor]:
    if isinstance(step.rule, Pass):
        return [r.sum_to_size(values[name].shape) for name in step.inputs]
    assert isinstance(step.rule, Norm) and step.rule.epsilon is not None
    total = step.node.evaluate(values)
    carrying = [values[name] for name in step.inputs]
    factors = summand_factors(step)
    s = reference.quotient(r, total, step.rule.epsilon)
    return [(s * x * f).sum_to_size(x.shape) for x, f in zip(carrying, factors, strict=True)]
