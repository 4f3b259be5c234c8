"""Kinds of layers, and which rules those of a kind can take."""

from __future__ import annotations

from relprop.rules import Epsilon, LinearRule, Norm, Pass, Product, Recurrent, Rule

__all__ = ["KINDS", "LINEAR_KINDS", "adapted", "allowed_rules", "fits"]

LINEAR_KINDS = ("linear", "conv", "conv_transpose")
"""The kinds that `first` and `pixel` apply to."""

_RULES_OF_KIND: dict[str, tuple[type[Rule], ...]] = {
    **dict.fromkeys(LINEAR_KINDS, (LinearRule, Pass)),
    "activation": (Pass,),
    "add": (Norm,),
    "mul": (Product,),
    "avg_pool": (Norm,),
    "max_pool": (),
    "batch_norm": (Pass, LinearRule),
    "embedding": (),
    "recurrent": (Recurrent, LinearRule),
}

KINDS = tuple(_RULES_OF_KIND)
"""The words that select layers by kind."""

_RULES_OF_OTHER_KINDS: tuple[type[Rule], ...] = (Pass, Norm, Epsilon)


def fits(rule: Rule, kind: str) -> bool:
    """Whether layers of that kind take the rule."""
    return isinstance(rule, _RULES_OF_KIND.get(kind, _RULES_OF_OTHER_KINDS))


def allowed_rules(kind: str) -> str:
    """The rules that layers of a kind take, in words."""
    names: dict[type[Rule], str] = {
        LinearRule: "a rule of linear maps (Epsilon, ZPlus, AlphaBeta, ...)"
    }
    allowed = _RULES_OF_KIND.get(kind, _RULES_OF_OTHER_KINDS)
    if not allowed:
        return "no rule, its relevance moves in one way only"
    return " or ".join(names.get(rule, rule.__name__) for rule in allowed)


def adapted(rule: Rule, kind: str) -> Rule:
    """A rule of linear maps on a recurrent layer is the rule of its candidate's map."""
    if kind != "recurrent" or not isinstance(rule, LinearRule):
        return rule
    plain = rule == Epsilon(rule.epsilon)
    return Recurrent(epsilon=rule.epsilon, rule=None if plain else rule)
