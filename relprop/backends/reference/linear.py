"""The naive evaluation of every rule: the oracle of the tests, the baseline of the benchmarks.

Written to be checked against the formulas by eye: each term of a rule is one contraction and one
adjoint, adjoints come from autograd, nothing is cached, pruned or fused, and the dtype is the one
that is given (tests use float64).  No backend is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from relprop.errors import InputError
from relprop.graph.maps import LinearMap
from relprop.rules import AlphaBeta, Joint, LinearRule
from relprop.rules.bounds import bound_tensor
from relprop.rules.terms import Group, Modifier

__all__ = [
    "absorbed",
    "linear_relevance",
    "modify",
    "movement_relevance",
    "norm_relevance",
    "quotient",
    "stabilize",
    "sum_relevance",
    "winner_relevance",
]


def stabilize(z: Tensor, epsilon: float) -> Tensor:
    """st(z) = z + epsilon * sgn(z), where the sign of 0 and of -0.0 is +1."""
    return torch.where(z >= 0, z + epsilon, z - epsilon)


def quotient(relevance: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """R / st(z), and 0 where st(z) is 0 (which only epsilon = 0 allows)."""
    denominator = stabilize(z, epsilon)
    empty = denominator == 0
    return torch.where(empty, 0.0, relevance / torch.where(empty, 1.0, denominator))


def linear_relevance(
    linear_map: LinearMap,
    a: Tensor,
    w: Tensor,
    b: Tensor | None,
    relevance: Tensor,
    rule: LinearRule,
) -> Tensor:
    """Relevance of a linear layer's input, term by term.

    Args:
        linear_map: the geometry of the layer.
        a: the layer's input.
        w: its weight.
        b: its bias, a vector over output features, or None.
        relevance: shaped like the layer's output.
        rule: any linear rule.

    Returns:
        Relevance shaped like `a`, detached.
    """
    with _autograd():
        a, w, b, relevance = _own(a), _own(w), None if b is None else _own(b), _own(relevance)
        result = torch.zeros_like(a)
        for group, z, scale in _denominators(linear_map, a, w, b, rule):
            s = scale * quotient(relevance, z, rule.epsilon)
            for term in group.terms:
                entering = modify(term.input, a, linear_map, rule)
                weight = modify(term.weight, w, linear_map, rule)
                result += entering * _adjoint(partial(linear_map.contraction, w=weight), a, s)
        return result


def absorbed(
    linear_map: LinearMap,
    a: Tensor,
    w: Tensor,
    b: Tensor | None,
    relevance: Tensor,
    rule: LinearRule,
) -> Tensor:
    """What the layer's output relevance loses to bias, stabilizer, gates and scales.

    The sum of `linear_relevance` plus the sum of this is the sum of `relevance`, for every rule.
    Where the quotient is 0 because st(z) is 0, the group counts as closed.

    Returns:
        One term for each output, shaped like `relevance`, detached.
    """
    with _autograd():
        a, w, b, relevance = _own(a), _own(w), None if b is None else _own(b), _own(relevance)
        result = relevance.clone()
        for group, z, scale in _denominators(linear_map, a, w, b, rule):
            sign = torch.where(z >= 0, 1.0, -1.0).to(z)
            kept = scale * (stabilize(z, rule.epsilon) != 0)
            unexplained = _bias(linear_map, group, b, rule) + rule.epsilon * sign
            result -= kept * relevance
            result += scale * quotient(relevance * unexplained, z, rule.epsilon)
        return result


def norm_relevance(
    function: Callable[[Tensor], Tensor], a: Tensor, relevance: Tensor, epsilon: float
) -> Tensor:
    """Epsilon on any linear function of one tensor: pooling, resampling, sums.

    Args:
        function: linear, differentiable by autograd.
        a: its input.
        relevance: shaped like its output.
        epsilon: the stabilizer.

    Returns:
        Relevance shaped like `a`, detached.
    """
    with _autograd():
        a, relevance = _own(a), _own(relevance)
        return a * _adjoint(function, a, quotient(relevance, function(a), epsilon))


def movement_relevance(
    function: Callable[[Tensor], Tensor], a: Tensor, relevance: Tensor
) -> Tensor:
    """Relevance through a function that only moves, repeats or drops data: its adjoint."""
    with _autograd():
        return _adjoint(function, _own(a), _own(relevance))


def homogeneous_relevance(
    function: Callable[[Tensor], Tensor], a: Tensor, relevance: Tensor
) -> Tensor:
    """LRP-0 of a function of degree 1, such as a norm: input times gradient over the output."""
    with _autograd():
        x = _own(a).requires_grad_()
        z = function(x)
        s = quotient(_own(relevance), z.detach(), 0.0)
        (gradient,) = torch.autograd.grad(z, x, s)
    return _own(a) * gradient


def winner_relevance(function: Callable[[Tensor], Tensor], a: Tensor, relevance: Tensor) -> Tensor:
    """Winner takes all: relevance goes to the element that a maximum is, the first of equal ones.

    The maximum is differentiated at ranks instead of values: `amax` divides ties in autograd; ranks
    have none, the first of equal values ranking highest.

    Args:
        function: the maxima of any windows of its input.
        a: the input.
        relevance: shaped like the maxima.

    Returns:
        Relevance shaped like `a`, detached.
    """
    with _autograd():
        distinct = _ranks(a).to(relevance.dtype).requires_grad_()
        (result,) = torch.autograd.grad(function(distinct), distinct, _own(relevance))
    return result


def _ranks(a: Tensor) -> Tensor:
    """Each element's rank in the whole tensor, equal values ranked in falling order of position."""
    order = torch.argsort(a.flatten().flip(0), stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=a.device)
    return ranks.flip(0).view(a.shape)


def sum_relevance(a: Tensor, b: Tensor, relevance: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The two shares of `a + b`, proportional to the summands.

    Args:
        a, b: summands that broadcast against each other.
        relevance: shaped like the sum.
        epsilon: the stabilizer.

    Returns:
        Relevance of `a` and of `b`, each summed over the axes along which it was broadcast.
    """
    with _autograd():
        a, b, relevance = _own(a), _own(b), _own(relevance)
        s = quotient(relevance, a + b, epsilon)
        return (a * s).sum_to_size(a.shape), (b * s).sum_to_size(b.shape)


def modify(modifier: Modifier, u: Tensor, linear_map: LinearMap, rule: LinearRule) -> Tensor:
    """The modified tensor, shaped like `u`."""
    result = _modified(modifier, u, linear_map, rule)
    if modifier.part is None:
        return result
    return result * _mask(modifier.part, u, linear_map, rule)


def _modified(modifier: Modifier, u: Tensor, linear_map: LinearMap, rule: LinearRule) -> Tensor:
    zero = torch.zeros_like(u)
    match modifier.kind:
        case "identity":
            return u
        case "positive":
            return torch.where(u > 0, u, zero)
        case "negative":
            return torch.where(u < 0, u, zero)
        case "absolute":
            return torch.where(u < 0, -u, u)
        case "square":
            return u * u
        case "one":
            return zero + 1
        case "zero":
            return zero
        case "plus_positive":
            return torch.where(u > 0, u + modifier.value * u, u)
        case "plus_negative":
            return torch.where(u < 0, u + modifier.value * u, u)
        case "constant":
            return -_bounds(modifier, u, linear_map, rule)
    raise InputError(f"the reference knows no modifier {modifier.kind!r}")


def _bounds(modifier: Modifier, u: Tensor, linear_map: LinearMap, rule: LinearRule) -> Tensor:
    """A bound of the box for every element of `u`; of a joint input it covers the pixels."""
    bound = bound_tensor(modifier.value).to(u)
    if modifier.part is None:
        return bound.expand(u.shape)
    start, stop = _channels(rule)
    full = torch.zeros_like(u)
    pixels = full.narrow(linear_map.feature_axis, start, stop - start)
    pixels.copy_(bound.expand(pixels.shape))
    return full


def _mask(part: str, u: Tensor, linear_map: LinearMap, rule: LinearRule) -> Tensor:
    """1 on the pixels (or the state) of a concatenated input, 0 on the rest."""
    start, stop = _channels(rule)
    features = torch.arange(u.shape[linear_map.feature_axis], device=u.device)
    pixels = (features >= start) & (features < stop)
    return linear_map.align((pixels if part == "pixel" else ~pixels).to(u))


def _channels(rule: LinearRule) -> tuple[int, int]:
    if not isinstance(rule, Joint) or rule.channels is None:
        raise InputError(
            f"{rule}: a rule for a concatenated input needs to know where the pixels are; "
            "give it channels=(start, stop) on the layer's input features"
        )
    return rule.channels


def _denominators(
    linear_map: LinearMap, a: Tensor, w: Tensor, b: Tensor | None, rule: LinearRule
) -> list[tuple[Group, Tensor, Tensor]]:
    """For every group of the rule: the group, its z, and lambda times gate for every output."""
    output = linear_map.contraction(a, w)
    output = output if b is None else output + linear_map.align(b)
    groups = []
    for group in rule.groups:
        z = torch.zeros_like(output)
        for term in group.terms:
            z = z + linear_map.contraction(
                modify(term.input, a, linear_map, rule), modify(term.weight, w, linear_map, rule)
            )
        z = z + _bias(linear_map, group, b, rule)
        groups.append((group, z, group.scale * _gate(group, output)))
    if len(groups) == 2 and _conserves(rule):
        (first, z1, scale1), (second, z2, scale2) = groups
        scale1 = torch.where(z2 == 0, 1.0, scale1)
        if isinstance(rule, AlphaBeta):
            scale2 = torch.where(z1 == 0, 1.0, scale2)
        groups = [(first, z1, scale1), (second, z2, scale2)]
    return groups


def _conserves(rule: LinearRule) -> bool:
    """Whether a group takes lambda = 1 where the contributions of the other are exactly 0."""
    return isinstance(rule, Joint) or (isinstance(rule, AlphaBeta) and rule.conserve)


def _gate(group: Group, z: Tensor) -> Tensor:
    if group.gate is None:
        return torch.ones_like(z)
    return (z > 0 if group.gate == "positive" else z < 0).to(z)


def _bias(
    linear_map: LinearMap, group: Group, b: Tensor | None, rule: LinearRule
) -> Tensor | float:
    """The bias part of a group, shaped to broadcast against its z."""
    return 0.0 if b is None else linear_map.align(modify(group.bias, b, linear_map, rule))


def _adjoint(function: Callable[[Tensor], Tensor], like: Tensor, s: Tensor) -> Tensor:
    """The adjoint of a linear function at `s`, for an input shaped like `like`."""
    u = torch.zeros_like(like, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(u), u, s)
    return gradient


def _own(tensor: Tensor) -> Tensor:
    """A copy that autograd may see, even of a tensor made in inference mode."""
    return tensor.detach().clone()


@contextmanager
def _autograd() -> Iterator[None]:
    """Autograd on, autocast off, whatever the caller's modes are."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield
