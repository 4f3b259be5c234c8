"""Quotients, with as few passes over memory as their sign allows."""

from __future__ import annotations

from torch import Tensor, where

__all__ = ["divide", "divide_signed"]


def divide(r: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """R / st(z) for z of any sign, and 0 where st(z) is 0; a new tensor.

    Args:
        r: `[K, *z.shape]`.
        z: the denominator.
        epsilon: the stabilizer.
    """
    if epsilon == 0:
        return _divide_or_zero(r, z)
    return r / where(z >= 0, epsilon, -epsilon).to(z.dtype).add_(z)


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
