"""Quotients, in few and fast passes over memory.

`torch.where` and other selections by a boolean mask are 10 to 20 times slower on a CPU than
arithmetic; the sign of a number does the same work here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from relprop.errors import InputError
from relprop.graph.maps import CHANNELS_LAST, LinearMap, is_channels_last
from relprop.rules import Joint, LinearRule
from relprop.rules.bounds import bound_tensor
from relprop.rules.terms import Modifier

__all__ = [
    "divide",
    "flush_tiny_",
    "modified",
    "modify",
    "new_like",
    "nonzero",
    "one_where_zero",
    "quotient",
    "stabilized",
]


def new_like(r: Tensor, size: Sequence[int]) -> Tensor:
    """An uninitialised tensor of dtype, device and memory format of `r`.

    Args:
        r: `[K, batch, ...]`.
        size: `[K, batch, ...]`, with as many axes.
    """
    if not is_channels_last(r[0]):
        return r.new_empty(size)
    rows = (size[0] * size[1], *size[2:])
    layout = CHANNELS_LAST[len(rows)]
    flat = torch.empty(rows, dtype=r.dtype, device=r.device, memory_format=layout)
    return flat.unflatten(0, (size[0], size[1]))


def nonzero(z: Tensor) -> Tensor:
    """1 where z is not 0, else 0; a new tensor of its dtype."""
    return z.sgn().abs_()


def one_where_zero(z: Tensor, otherwise: float) -> Tensor:
    """1 where z is 0, else the given number; a new tensor of its dtype."""
    return nonzero(z).mul_(otherwise - 1).add_(1)


def stabilized(z: Tensor, epsilon: float, sign: int = 0) -> Tensor:
    """st(z), for epsilon > 0; a new tensor.

    Args:
        z: the denominator.
        epsilon: the stabilizer.
        sign: 1 or -1 where every summand of z has that sign: at z = 0 the stabilizer then takes
            it too, for every numerator is 0 there and the quotient need only be finite.
    """
    if sign:
        return z + sign * epsilon
    unsigned_zero = z + 0.0  # -0.0 becomes 0.0, whose sign copysign takes as positive
    return unsigned_zero.new_full((), epsilon).copysign(unsigned_zero).add_(z)


def divide(
    r: Tensor,
    z: Tensor,
    epsilon: float,
    sign: int = 0,
    scale: float | Tensor = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """scale * R / st(z), and 0 where st(z) is 0.

    Args:
        r: `[K, *z.shape]`.
        z: the denominator.
        epsilon: the stabilizer.
        sign: see `stabilized`.
        scale: a number other than 0, or one for each z.
        out: where to write, shaped like `r`; a new tensor if None.

    Returns:
        `out`.
    """
    if epsilon == 0:
        present = nonzero(z)
        denominator = (1 - present).add_(z)
        return torch.div(r, denominator, out=out).mul_(present.mul_(scale))
    denominator = stabilized(z, epsilon, sign)
    if isinstance(scale, Tensor) or scale != 1:
        denominator.div_(scale)
    return quotient(r, denominator) if out is None else torch.div(r, denominator, out=out)


def quotient(r: Tensor, denominator: Tensor) -> Tensor:
    """R / denominator, where possible over the denominator.

    Fresh memory costs as much as a pass over it.

    Args:
        r: `[K, *denominator.shape]`.
        denominator: nowhere 0; lost afterwards.
    """
    if r.shape != (1, *denominator.shape) or r.dtype is not denominator.dtype:
        return r / denominator
    denominator = denominator.unsqueeze(0)
    return torch.div(r, denominator, out=denominator)


def flush_tiny_(r: Tensor) -> Tensor:
    """Overwrite by 0 what is so small that products with it may be subnormal; returns the tensor.

    Relevance that decays over some hundred steps ends there, and a CPU's products take forty times
    as long with such operands.  What is dropped is below 1e-31 (float32) or 1e-292 (float64).
    """
    if r.device.type == "cpu":
        limits = torch.finfo(r.dtype)
        torch.hardshrink(r, limits.tiny / limits.eps, out=r)
    return r


def modify(modifier: Modifier, u: Tensor, linear_map: LinearMap, rule: LinearRule) -> Tensor:
    """The modified tensor, shaped like `u`.

    Args:
        modifier: of one of the rule's terms.
        u: the layer's input, weight or bias.
        linear_map: geometry of the layer.
        rule: the rule, which knows where the pixels of a concatenated input are.

    Raises:
        InputError: a rule for a concatenated input does not know.
    """
    if modifier.part is None:
        return _whole(modifier, u)
    if not isinstance(rule, Joint) or rule.channels is None:
        raise InputError(
            f"{rule}: a rule for a concatenated input needs to know where the pixels are; "
            "give it channels=(start, stop) on the layer's input features"
        )
    axis = linear_map.feature_axis
    before, pixels, after = u.tensor_split(rule.span, axis)
    if modifier.part == "pixel":
        parts = torch.zeros_like(before), _whole(modifier, pixels), torch.zeros_like(after)
    else:
        parts = _whole(modifier, before), torch.zeros_like(pixels), _whole(modifier, after)
    return torch.cat(parts, axis)


def _whole(modifier: Modifier, u: Tensor) -> Tensor:
    if modifier.kind == "constant":
        return -bound_tensor(modifier.value).to(u).expand(u.shape)
    return modified(modifier, u)


def modified(modifier: Modifier, u: Tensor) -> Tensor:
    """A weight, bias or input under a modifier that looks at nothing but its values."""
    match modifier.kind:
        case "identity":
            return u
        case "positive":
            return u.clamp(min=0)
        case "negative":
            return u.clamp(max=0)
        case "absolute":
            return u.abs()
        case "square":
            return u.square()
        case "one":
            return torch.ones_like(u)
        case "zero":
            return torch.zeros_like(u)
        case "plus_positive":
            return u + modifier.value * u.clamp(min=0)
        case "plus_negative":
            return u + modifier.value * u.clamp(max=0)
    raise InputError(f"modifier {modifier.kind!r} has no elementwise form")
