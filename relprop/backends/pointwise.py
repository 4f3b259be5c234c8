"""Quotients, with as few passes over memory as their sign allows."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CHANNELS_LAST", "choose", "divide", "divide_signed", "is_channels_last"]

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Memory formats with the features innermost, by number of axes."""


def is_channels_last(t: Tensor) -> bool:
    """Whether features are innermost in memory, and not merely because there is one of them."""
    layout = CHANNELS_LAST.get(t.ndim)
    return layout is not None and not t.is_contiguous() and t.is_contiguous(memory_format=layout)


def choose(condition: Tensor, yes: float, no: float, like: Tensor) -> Tensor:
    """`yes` where the condition holds, else `no`, in the precision of `like`."""
    return torch.where(condition, like.new_full((), yes), like.new_full((), no))


def divide(r: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """R / st(z) for z of any sign, and 0 where st(z) is 0; a new tensor.

    Args:
        r: `[K, *z.shape]`.
        z: the denominator.
        epsilon: the stabilizer.
    """
    if epsilon == 0:
        return _divide_or_zero(r, z)
    return r / choose(z >= 0, epsilon, -epsilon, like=z).add_(z)


def divide_signed(r: Tensor, z: Tensor, epsilon: float, sign: int) -> Tensor:
    """R / st(z) where every summand of z has the given sign; a new tensor.

    At z = 0 the stabilizer takes that sign also if it is negative: there every numerator is 0, so
    that the quotient need only be finite.

    Args:
        r: `[K, *z.shape]`.
        z: the denominator, `sign * z >= 0`.
        epsilon: the stabilizer.
        sign: 1 or -1.
    """
    if epsilon == 0:
        return _divide_or_zero(r, z)
    return r / (z + sign * epsilon)


def _divide_or_zero(r: Tensor, z: Tensor) -> Tensor:
    return (r / z).masked_fill_(z == 0, 0.0)
