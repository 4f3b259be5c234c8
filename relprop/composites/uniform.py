"""Composites from a rule for convolutions and one for dense layers, or from one for both."""

from __future__ import annotations

from collections.abc import Mapping

from relprop.composites.checks import checked_rule
from relprop.composites.composite import Composite
from relprop.composites.kinds import adapted, allowed_rules, fits
from relprop.errors import InputError
from relprop.rules import EPSILON, Epsilon, Recurrent, Rule

__all__ = ["by_layer", "uniform"]


def by_layer(
    name: str,
    conv: Rule,
    linear: Rule,
    stabilizer: float,
    first: Rule | Mapping[str, Rule] | None = None,
    recurrent: Rule | None = None,
) -> Composite:
    """A rule for convolutions, one for dense layers, and if given for first and recurrent ones."""
    pairs = [("conv", conv), ("linear", linear)]
    if recurrent is not None:
        pairs.append(("recurrent", recurrent))
    return Composite(first=first, stabilizer=stabilizer, defaults=pairs, name=name)


def uniform(rule: Rule, *, stabilizer: float | None = None, name: str = "") -> Composite:
    """One rule on every linear layer: what a bare rule means as a method.

    Args:
        rule: `Epsilon(e)` goes to recurrent layers too and makes e the stabilizer; any other
            rule of linear maps, or `Pass`, goes to linear layers and convolutions alone;
            `Recurrent` goes to recurrent layers and its epsilon to everything else.
        stabilizer: of everything else; None is e as above, 1e-6 for other rules.
        name: what to call the composite in messages.

    Raises:
        InputError: the rule is of no use to a linear or recurrent layer.
    """
    checked_rule("uniform", rule)
    if not (fits(rule, "linear") or fits(rule, "recurrent")):
        raise InputError(f"uniform: {rule!r}; a linear layer takes {allowed_rules('linear')}")
    shared = isinstance(rule, (Epsilon, Recurrent))
    if stabilizer is None:
        stabilizer = rule.epsilon if isinstance(rule, (Epsilon, Recurrent)) else EPSILON
    linear = Epsilon(rule.epsilon) if isinstance(rule, Recurrent) else rule
    recurrent = adapted(rule, "recurrent") if shared else None
    label = name or type(rule).__name__
    return by_layer(label, linear, linear, stabilizer, recurrent=recurrent)
