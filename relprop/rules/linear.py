"""Every rule for linear maps, once, as data: groups of terms, see `relprop.rules.terms`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from relprop.rules.bounds import bound_of, bound_tensor
from relprop.rules.terms import (
    IDENTITY,
    NEGATIVE,
    ONE,
    OPPOSITE_SIGNS,
    POSITIVE,
    SAME_SIGNS,
    SQUARE,
    ZERO,
    Group,
    Modifier,
    Term,
)

__all__ = [
    "EPSILON",
    "AlphaBeta",
    "Epsilon",
    "Flat",
    "Gamma",
    "Joint",
    "LinearRule",
    "Rule",
    "WSquare",
    "ZBox",
    "ZPlus",
    "check_number",
    "set_values",
]


EPSILON = 1e-6
"""Default stabilizer of every rule."""


@dataclass(frozen=True)
class Rule:
    """Base class of all rules.  Rules are immutable, comparable, hashable and picklable."""


def set_values(rule: Rule, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(rule, name, value)


def check_number(rule: Rule, name: str, value: Any, minimum: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < minimum:
        raise ValueError(
            f"{type(rule).__name__}: {name} is {value!r}; expected a finite number >= {minimum:g}"
        )


@dataclass(frozen=True)
class LinearRule(Rule):
    """A rule for linear maps (dense, convolution, transposed convolution), defined by `groups`.

    Args:
        epsilon: the stabilizer added to every denominator with the denominator's sign.
        zero_params: None, or "bias" to leave the bias out of the denominators.
    """

    epsilon: float = EPSILON
    zero_params: str | None = None

    def __post_init__(self) -> None:
        check_number(self, "epsilon", self.epsilon, minimum=0.0)
        if self.zero_params not in (None, "bias"):
            raise ValueError(
                f"{type(self).__name__}: zero_params is {self.zero_params!r}; "
                "expected None or 'bias'"
            )

    def terms(self) -> tuple[Group, ...]:
        """The groups before `zero_params` is applied."""
        raise TypeError(f"{type(self).__name__} defines no terms")

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups to evaluate; those with scale 0 are left out."""
        keep_bias = self.zero_params is None
        return tuple(
            Group(g.terms, g.bias if keep_bias else ZERO, g.scale, g.gate)
            for g in self.terms()
            if g.scale != 0
        )


@dataclass(frozen=True)
class Epsilon(LinearRule):
    """LRP-epsilon; `Epsilon(0)` is LRP-0.  Bach et al. 2015, eq. 58."""

    def terms(self) -> tuple[Group, ...]:
        return (Group((Term(IDENTITY, IDENTITY),), bias=IDENTITY),)


@dataclass(frozen=True)
class ZPlus(LinearRule):
    """z-plus: only positive contributions count, of signed inputs too.  Montavon et al. 2017."""

    def terms(self) -> tuple[Group, ...]:
        return (Group(SAME_SIGNS, bias=POSITIVE),)


@dataclass(frozen=True)
class AlphaBeta(LinearRule):
    """LRP-alpha-beta: positive contributions times alpha, negative times -beta.

    Bach et al. 2015, eq. 60.

    Args:
        alpha: at least 1.
        beta: at least 0, with alpha - beta = 1 up to rounding.
        conserve: where the contributions of one sign are exactly 0, give the other lambda = 1, so
            that no relevance is lost or invented.  Off by default, as in Zennit.  With beta = 0
            the negative group is not computed, hence takes nothing.

    Raises:
        ValueError: alpha or beta is out of range, or their difference is not 1.
    """

    alpha: float = 2.0
    beta: float = 1.0
    conserve: bool = False

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 1.0,
        epsilon: float = EPSILON,
        zero_params: str | None = None,
        conserve: bool = False,
    ) -> None:
        set_values(self, alpha=alpha, beta=beta, epsilon=epsilon)
        set_values(self, zero_params=zero_params, conserve=bool(conserve))
        self.__post_init__()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "alpha", self.alpha, minimum=1.0 - 1e-12)
        check_number(self, "beta", self.beta, minimum=0.0)
        if not math.isclose(self.alpha - self.beta, 1.0, rel_tol=0.0, abs_tol=1e-9):
            raise ValueError(
                f"AlphaBeta: alpha - beta is {self.alpha - self.beta:g} "
                f"(alpha={self.alpha!r}, beta={self.beta!r}); expected alpha - beta = 1"
            )

    def terms(self) -> tuple[Group, ...]:
        return (
            Group(SAME_SIGNS, bias=POSITIVE, scale=self.alpha),
            Group(OPPOSITE_SIGNS, bias=NEGATIVE, scale=-self.beta),
        )


@dataclass(frozen=True)
class Gamma(LinearRule):
    """Generalised LRP-gamma for inputs of any sign.  Andéol et al. 2021; Montavon et al. 2019.

    Args:
        gamma: how much contributions of the output's own sign are favoured, at least 0.
    """

    gamma: float = 0.25

    def __init__(
        self, gamma: float = 0.25, epsilon: float = EPSILON, zero_params: str | None = None
    ) -> None:
        set_values(self, gamma=gamma, epsilon=epsilon, zero_params=zero_params)
        self.__post_init__()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "gamma", self.gamma, minimum=0.0)

    def terms(self) -> tuple[Group, ...]:
        up = Modifier("plus_positive", self.gamma)
        down = Modifier("plus_negative", self.gamma)
        return (
            Group((Term(POSITIVE, up), Term(NEGATIVE, down)), bias=up, gate="positive"),
            Group((Term(POSITIVE, down), Term(NEGATIVE, up)), bias=down, gate="negative"),
        )


@dataclass(frozen=True)
class ZBox(LinearRule):
    """z^B, for inputs confined to a box, such as pixels.  Montavon et al. 2017.

    The denominator is the sum of the numerators: the bias cancels.

    Args:
        low, high: numbers, or tensors that broadcast against the input without its batch axis.

    Raises:
        ValueError: a bound is not finite, or low exceeds high somewhere.
    """

    low: Any = -1.0
    high: Any = 1.0

    def __init__(
        self, low: Any, high: Any, epsilon: float = EPSILON, zero_params: str | None = None
    ) -> None:
        set_values(self, low=bound_of("ZBox", "low", low), high=bound_of("ZBox", "high", high))
        set_values(self, epsilon=epsilon, zero_params=zero_params)
        self.__post_init__()

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            ordered = bool((bound_tensor(self.low) <= bound_tensor(self.high)).all())
        except RuntimeError as error:
            raise ValueError(f"ZBox: low and high do not broadcast: {error}") from None
        if not ordered:
            raise ValueError("ZBox: low exceeds high; expected low <= high everywhere")

    def box_terms(self, part: str | None = None) -> tuple[Term, ...]:
        """The three terms of the box, restricted to one part of a concatenated input."""
        return (
            Term(Modifier("identity", part=part), IDENTITY),
            Term(Modifier("constant", self.low, part), POSITIVE),
            Term(Modifier("constant", self.high, part), NEGATIVE),
        )

    def terms(self) -> tuple[Group, ...]:
        return (Group(self.box_terms()),)


@dataclass(frozen=True)
class WSquare(LinearRule):
    """w^2: relevance by squared weights, whatever the input.  Montavon et al. 2017."""

    def terms(self) -> tuple[Group, ...]:
        return (Group((Term(ONE, SQUARE),), bias=SQUARE),)


@dataclass(frozen=True)
class Flat(LinearRule):
    """Relevance spread evenly over the receptive field.  Lapuschkin et al. 2019."""

    def terms(self) -> tuple[Group, ...]:
        return (Group((Term(ONE, ONE),)),)


@dataclass(frozen=True)
class Joint(LinearRule):
    """Pixels and a recurrent state entering one layer: ZBox for pixels, AlphaBeta for the state.

    Group one holds the box terms of the pixels and the agreeing signs of the state (lambda alpha),
    group two the opposing signs of the state (lambda -beta).  Where the second sum is exactly 0, as
    at the first step, lambda is 1 and 0.

    Args:
        pixel: the rule of the pixels.
        state: the rule of the state.
        channels: (start, stop) of the pixels on the layer's input-feature axis; None in a plan,
            which reads it off the concatenation that feeds the layer.
    """

    pixel: ZBox = ZBox(-1.0, 1.0)
    state: AlphaBeta = AlphaBeta()
    channels: tuple[int, int] | None = None

    def __init__(
        self,
        pixel: ZBox = ZBox(-1.0, 1.0),
        state: AlphaBeta = AlphaBeta(),
        epsilon: float = EPSILON,
        zero_params: str | None = None,
        channels: Sequence[int] | None = None,
    ) -> None:
        if not isinstance(pixel, ZBox) or not isinstance(state, AlphaBeta):
            raise ValueError(
                f"Joint: got pixel={pixel!r}, state={state!r}; expected a ZBox and an AlphaBeta"
            )
        span = None if channels is None else (int(channels[0]), int(channels[1]))
        set_values(self, pixel=pixel, state=state, channels=span)
        set_values(self, epsilon=epsilon, zero_params=zero_params)
        self.__post_init__()

    @property
    def span(self) -> tuple[int, int]:
        """`channels`, which a plan has filled in."""
        if self.channels is None:
            raise ValueError("Joint: channels is None; expected (start, stop)")
        return self.channels

    def terms(self) -> tuple[Group, ...]:
        plus, minus = Modifier("positive", part="state"), Modifier("negative", part="state")
        agreeing = (Term(plus, POSITIVE), Term(minus, NEGATIVE))
        opposing = (Term(plus, NEGATIVE), Term(minus, POSITIVE))
        return (
            Group((*self.pixel.box_terms("pixel"), *agreeing), scale=self.state.alpha),
            Group(opposing, scale=-self.state.beta),
        )
