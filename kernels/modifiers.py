"""Jitted atoms: how an operand enters a term, and the activations of a contraction's epilogue.

Atoms of a plain operand take (u, gamma); atoms of a boxed input take (u, low, high, pixel), where
`pixel` is true on the channels that the box bounds.  NaN goes through every one of them.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

__all__ = ["ACTIVATIONS", "ATOMS", "BOX_ATOMS", "ZERO_PRESERVING"]


@triton.jit
def identity(u, gamma):
    return u


@triton.jit
def positive(u, gamma):
    return tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def negative(u, gamma):
    return tl.minimum(u, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def absolute(u, gamma):
    return tl.abs(u)


@triton.jit
def square(u, gamma):
    return u * u


@triton.jit
def one(u, gamma):
    return tl.full(u.shape, 1, u.dtype)


@triton.jit
def zero(u, gamma):
    return tl.zeros(u.shape, u.dtype)


@triton.jit
def plus_positive(u, gamma):
    return u + gamma * tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def plus_negative(u, gamma):
    return u + gamma * tl.minimum(u, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def above_low(u, low, high, pixel):
    return u - low


@triton.jit
def below_high(u, low, high, pixel):
    return u - high


@triton.jit
def above_low_or_positive(u, low, high, pixel):
    return tl.where(pixel, u - low, tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def below_high_or_negative(u, low, high, pixel):
    return tl.where(pixel, u - high, tl.minimum(u, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def state_positive(u, low, high, pixel):
    return tl.where(pixel, 0.0, tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def state_negative(u, low, high, pixel):
    return tl.where(pixel, 0.0, tl.minimum(u, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def whole(u, low, high, pixel):
    return u


@triton.jit
def no_activation(u):
    return u


@triton.jit
def relu(u):
    return tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sigmoid(u):
    return tl.sigmoid(u)


@triton.jit
def silu(u):
    return u * tl.sigmoid(u)


@triton.jit
def gelu(u):
    return 0.5 * u * (1.0 + tl.erf(u * 0.7071067811865476))


ATOMS: dict[str, Any] = {
    "identity": identity,
    "positive": positive,
    "negative": negative,
    "absolute": absolute,
    "square": square,
    "one": one,
    "zero": zero,
    "plus_positive": plus_positive,
    "plus_negative": plus_negative,
}
"""Modifier kinds of `relprop.rules`, as device functions."""

BOX_ATOMS: dict[str, Any] = {
    "above_low": above_low,
    "below_high": below_high,
    "above_low_or_positive": above_low_or_positive,
    "below_high_or_negative": below_high_or_negative,
    "state_positive": state_positive,
    "state_negative": state_negative,
    "whole": whole,
}
"""Inputs of a rule that bounds (part of) its input: ZBox and Joint."""

ZERO_PRESERVING = frozenset(
    ["identity", "positive", "negative", "absolute", "square", "zero"]
    + ["plus_positive", "plus_negative", "state_positive", "state_negative", "whole"]
)
"""Atoms that send padding's 0 to 0; the others are masked again after they are applied."""

ACTIVATIONS: dict[str | None, Any] = {
    None: no_activation,
    "relu": relu,
    "sigmoid": sigmoid,
    "silu": silu,
    "gelu": gelu,
}
