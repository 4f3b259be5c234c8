"""Selectors: which layers a rule is meant for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from relprop.rules import Epsilon, LinearRule, Norm, Pass, Product, Recurrent, Rule

__all__ = [
    "KINDS",
    "LINEAR_KINDS",
    "LayerInfo",
    "Selector",
    "adapted",
    "allowed_rules",
    "fits",
    "matches",
    "show",
    "show_pairs",
]

Selector = str | type[nn.Module]
"""A kind of layer, a glob on the dotted module path, "aten.<operation>", or a module class."""


@dataclass(frozen=True)
class LayerInfo:
    """What a composite may know of one operation.

    Attributes:
        kind: one of `KINDS`, or another word that the engine uses.
        path: full dotted path of the module that owns the operation; a repeated call of that
            module has the suffix `@1`, `@2`, ...
        module_types: classes of the modules around the operation, from the innermost outward.
        first: whether a floating input reaches it without crossing another linear layer.
        op: canonical name of the operation, such as "cumsum".
    """

    kind: str
    path: str
    module_types: tuple[type, ...] = ()
    first: bool = False
    op: str = ""

    def __str__(self) -> str:
        return f"{self.path or 'the model itself'!r} ({self.kind})"


def matches(selector: Selector, layer: LayerInfo) -> bool:
    """Whether a selector selects a layer."""
    if isinstance(selector, type):
        return bool(layer.module_types) and issubclass(layer.module_types[0], selector)
    if selector in KINDS:
        return layer.kind == selector or (selector, layer.kind) == ("conv", "conv_transpose")
    if selector.startswith("aten."):
        return selector == f"aten.{layer.op}"
    glob = selector.removeprefix("path:")
    plain = re.sub(r"@\d+$", "", layer.path)
    return fnmatchcase(layer.path, glob) or fnmatchcase(plain, glob)


def show(selector: Selector) -> str:
    """A selector in print."""
    return selector.__name__ if isinstance(selector, type) else repr(selector)


def show_pairs(pairs: Iterable[tuple[Selector, Rule]]) -> str:
    """Pairs of selector and rule in print."""
    return "[" + ", ".join(f"({show(selector)}, {rule!r})" for selector, rule in pairs) + "]"


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
