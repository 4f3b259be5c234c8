"""What a rule of linear maps is made of: groups of terms, a term a pair of modifiers.

With `f_t(a)` the modified input, `g_t(W)` the modified weight and `R` the relevance of the output:

    contraction   z_g  = sum_t f_t(a) . g_t(W)  +  bias part of group g
    quotient      s_g  = scale_g * gate_g(z) * R / st(z_g)      (0 where st(z_g) is 0)
    adjoint       R_in = sum_g sum_t f_t(a) * (g_t(W)^T s_g)

`st(z) = z + epsilon * sgn(z)` with `sgn(0) = +1`.  `relprop.backends.reference` is the naive
evaluation of this table, the other backends are the fast ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = [
    "ABSOLUTE",
    "IDENTITY",
    "NEGATIVE",
    "ONE",
    "OPPOSITE_SIGNS",
    "POSITIVE",
    "SAME_SIGNS",
    "SQUARE",
    "ZERO",
    "Group",
    "Modifier",
    "Term",
]


@dataclass(frozen=True)
class Modifier:
    """How a tensor enters a term.

    `kind` is one of `identity`, `positive` (max(u, 0)), `negative` (min(u, 0)), `one`, `square`,
    `absolute`, `zero`, `plus_positive` (u + value * max(u, 0)), `plus_negative`
    (u + value * min(u, 0)) and `constant` (`-value`, broadcast to u; the bounds of ZBox, which are
    subtracted).  `part` restricts an input to the pixels or the state of a concatenated input
    (see `Joint`); elsewhere the modified input is 0.
    """

    kind: str
    value: Any = None
    part: str | None = None


IDENTITY = Modifier("identity")
POSITIVE = Modifier("positive")
NEGATIVE = Modifier("negative")
ONE = Modifier("one")
SQUARE = Modifier("square")
ABSOLUTE = Modifier("absolute")
ZERO = Modifier("zero")


@dataclass(frozen=True)
class Term:
    """One product: modified input times modified weight."""

    input: Modifier
    weight: Modifier


@dataclass(frozen=True)
class Group:
    """Terms that share a denominator.

    Attributes:
        terms: the products that are summed.
        bias: how the layer's bias enters the denominator.
        scale: the factor lambda of the group's quotient.
        gate: None, "positive" or "negative": which sign the layer's own pre-activation z (with its
            bias) must have for the group to carry relevance; at z = 0 neither does.
    """

    terms: tuple[Term, ...]
    bias: Modifier = ZERO
    scale: float = 1.0
    gate: str | None = None


SAME_SIGNS = (Term(POSITIVE, POSITIVE), Term(NEGATIVE, NEGATIVE))
OPPOSITE_SIGNS = (Term(POSITIVE, NEGATIVE), Term(NEGATIVE, POSITIVE))
"""The positive, and the negative, products of an input and a weight of any sign."""
