"""iNNvestigate's rules by name, and how it hands them to layers.

Its conventions, where they are not those of `relprop.rules`:

- a quotient has no stabilizer (except Epsilon's, of 1e-7); 0 / 0 counts as 0;
- Z keeps the bias; WSquare, Flat, ZPlus, ZPlusFast, Bounded and all IgnoreBias rules leave it out;
- the AlphaBeta rules keep the whole bias in both denominators, W+ a+ + W- a- + b and
  W- a+ + W+ a- + b;
- ZPlusFast is a * max(W, 0)^T (R / (max(W, 0) a)), whatever the sign of a.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from relprop.composites import KINDS, LINEAR_KINDS, Composite, LayerInfo
from relprop.errors import InputError, PlanningError
from relprop.integrations.terms import ScaledWeights, WholeBiasAlphaBeta
from relprop.rules import AlphaBeta, Epsilon, Flat, LinearRule, Rule, WSquare, ZBox

__all__ = ["RULES", "InOrder", "alpha_beta", "composite", "inferred", "rule_named"]

_IGNORED = AlphaBeta(1.0, 0.0, 0.0, "bias")

RULES: dict[str, LinearRule] = {
    "Z": Epsilon(0.0),
    "ZIgnoreBias": Epsilon(0.0, "bias"),
    "Epsilon": Epsilon(1e-7),
    "EpsilonIgnoreBias": Epsilon(1e-7, "bias"),
    "WSquare": WSquare(0.0, "bias"),
    "Flat": Flat(0.0),
    "Alpha2Beta1": WholeBiasAlphaBeta(2.0, 1.0),
    "Alpha2Beta1IgnoreBias": AlphaBeta(2.0, 1.0, 0.0, "bias"),
    "Alpha1Beta0": WholeBiasAlphaBeta(1.0, 0.0),
    "Alpha1Beta0IgnoreBias": _IGNORED,
    "ZPlus": _IGNORED,
    "ZPlusFast": ScaledWeights(None, 0.0, "bias"),
    "Bounded": ZBox(-1.0, 1.0, 0.0),
}
"""The names that `rule=` and `input_layer_rule=` take."""


@dataclass(frozen=True, repr=False, init=False)
class InOrder(Composite):
    """A composite that gives the first linear layers, in order of evaluation, rules of their own.

    Args:
        in_order: the rules, the first layer's first.
        complete: whether every linear layer must get one of them.
        options: of the composite of all others, see `Composite`.
    """

    in_order: tuple[Rule, ...] = ()
    complete: bool = False

    def __init__(
        self, in_order: Sequence[Rule] = (), complete: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        object.__setattr__(self, "in_order", tuple(in_order))
        object.__setattr__(self, "complete", complete)

    def assign(self, layers: Sequence[LayerInfo]) -> list[Rule | None]:
        """See `Composite.assign`."""
        chosen = super().assign(layers)
        places = [i for i, layer in enumerate(layers) if layer.kind in LINEAR_KINDS]
        wrong = len(places) != len(self.in_order) if self.complete else False
        if wrong or len(places) < len(self.in_order):
            raise PlanningError(
                f"{self.name}: {len(self.in_order)} rules for {len(places)} linear layers and "
                f"convolutions ({', '.join(repr(layers[i].path) for i in places)}); expected "
                + ("one for each" if self.complete else "no more rules than layers")
            )
        for place, rule in zip(places, self.in_order, strict=False):
            chosen[place] = rule
        return chosen


def rule_named(name: Any) -> Rule:
    """A rule by iNNvestigate's name; a `relprop` rule is taken as it is.

    Raises:
        InputError: there is none of that name.
    """
    if isinstance(name, Rule):
        return name
    if isinstance(name, str) and name in RULES:
        return RULES[name]
    raise InputError(f"rule: {name!r}; expected a relprop rule or one of {', '.join(RULES)}")


def inferred(alpha: float | None, beta: float | None) -> tuple[float, float]:
    """Alpha and beta, one of which may be left out: alpha - beta is 1.

    Raises:
        InputError: both are missing, or one is no number.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not (value is None or isinstance(value, (int, float))):
            raise InputError(f"lrp.alpha_beta: {name} is {value!r}; expected a number")
    if alpha is None and beta is None:
        raise InputError("lrp.alpha_beta: neither alpha nor beta; expected one of them, or both")
    if alpha is None:
        assert beta is not None
        return float(beta) + 1, float(beta)
    return float(alpha), float(alpha) - 1 if beta is None else float(beta)


def alpha_beta(alpha: float, beta: float, bias: bool) -> LinearRule:
    """AlphaBeta with the whole bias in both denominators, or in none."""
    if bias:
        return WholeBiasAlphaBeta(alpha, beta)
    return AlphaBeta(alpha, beta, 0.0, "bias")


def composite(
    name: str,
    rule: Any,
    input_layer_rule: Any = None,
    until_layer_idx: int | None = None,
    until_layer_rule: Any = None,
) -> Composite:
    """The composite of an LRP analyzer.

    Args:
        name: of the analyzer.
        rule: a rule or its name for all layers; a list of them, one for each linear layer and
            convolution in order; or a list of (selector, rule) pairs.
        input_layer_rule: of the layers that an input reaches first; (low, high) is Bounded.
        until_layer_idx, until_layer_rule: the rule of the first linear layers and convolutions,
            counted from 0, this one included.

    Raises:
        InputError: a rule has no such name, none is given, or a bound or index is none.
    """
    if not isinstance(rule, (str, Rule, list, tuple)) or not rule:
        raise InputError(f"{name}: rule is {rule!r}; expected one of {', '.join(RULES)}")
    several = list(rule) if isinstance(rule, (list, tuple)) else []
    pairs = bool(several) and isinstance(several[0], tuple)
    first = _first(input_layer_rule)
    if several and not pairs:
        ordered = [rule_named(one) for one in several]
        if first is not None:
            ordered = [first, *ordered[1:]]
        return InOrder(ordered, complete=True, stabilizer=0.0, name=name)
    chosen = several if pairs else [(kind, rule) for kind in ("conv", "linear")]
    named = [(selector, rule_named(one)) for selector, one in chosen]
    by_kind = [(kind, one) for kind, one in named if kind in KINDS]  # these may match nothing
    others = [(selector, one) for selector, one in named if selector not in KINDS]
    options: dict[str, Any] = {"rules": others, "first": first, "defaults": by_kind}
    options |= {"stabilizer": 0.0, "name": name}
    if until_layer_rule is None or until_layer_idx is None:
        return Composite(**options)
    if not isinstance(until_layer_idx, int):
        raise InputError(f"until_layer_idx: {until_layer_idx!r}; expected a whole number, or None")
    return InOrder([rule_named(until_layer_rule)] * (until_layer_idx + 1), **options)


def _first(rule: Any) -> Rule | None:
    if isinstance(rule, tuple):
        try:
            low, high = rule
            return ZBox(low, high, 0.0)
        except (TypeError, ValueError) as error:
            raise InputError(f"bounds: {rule!r}; expected (low, high): {error}") from error
    return None if rule is None else rule_named(rule)
