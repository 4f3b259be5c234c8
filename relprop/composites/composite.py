"""Composites as data: selectors, precedence, and which rule each layer gets."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from relprop.errors import InputError, PlanningError
from relprop.rules import (
    EPSILON,
    Epsilon,
    LinearRule,
    Norm,
    Pass,
    Product,
    Recurrent,
    Rule,
    ZBox,
)

__all__ = [
    "KINDS",
    "LINEAR_KINDS",
    "Composite",
    "LayerInfo",
    "Selector",
    "adapted",
    "allowed_rules",
    "checked_rule",
    "fits",
]

Selector = str | type[nn.Module]
"""A kind of layer, a glob on the dotted module path, or a module class."""

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


@dataclass(frozen=True)
class LayerInfo:
    """What a composite may know of one operation.

    Attributes:
        kind: one of `KINDS`, or another word that the engine uses.
        path: full dotted path of the module that owns the operation; a repeated call of that
            module has the suffix `@1`, `@2`, ...
        module_types: classes of the modules around the operation, from the innermost outward.
        first: whether a floating input reaches it without crossing another linear layer.
    """

    kind: str
    path: str
    module_types: tuple[type, ...] = ()
    first: bool = False

    def __str__(self) -> str:
        return f"{self.path or 'the model itself'!r} ({self.kind})"


@dataclass(frozen=True, repr=False)
class Composite:
    """An assignment of rules to layers; immutable, equal by value, hashable and picklable.

    Precedence: `with_rule` (last given first), `first` or `pixel`, `rules` in order, `defaults`,
    and where all are silent the table of the engine.  A selector is

    - a kind: one of `KINDS`; "conv" includes "conv_transpose";
    - any other string: a glob on the full dotted path, whose `*` crosses dots; "path:..." forces a
      path where a module is called like a kind; a path selects every call of its module,
      "path@1" the second call alone;
    - an nn.Module class: the operations that such a module performs itself.

    A path or a class may select operations of several kinds; its rule goes to those that can take
    it.  A selector that matches nothing, or whose rule fits nothing it matches, is an error.

    Args:
        rules: (selector, rule) pairs.
        first: rule of every linear layer that a floating input reaches without crossing another
            linear layer; or a mapping from "linear", "conv", "conv_transpose" to such rules, where
            the kinds left out keep their other rule.
        pixel: (low, high), short for `first=ZBox(low, high)`.
        stabilizer: epsilon of sums, poolings and other operations whose rule names none.
        defaults: (kind, rule) pairs that come after `rules` and may match nothing.
        overrides: what `with_rule` has added, the most important first.
        name: what to call the composite in messages; does not count in comparisons.

    Raises:
        InputError: (a ValueError) both `first` and `pixel`, a selector or rule of another type, or
            a stabilizer that is not a finite number >= 0.
    """

    rules: tuple[tuple[Selector, Rule], ...] = ()
    first: Rule | tuple[tuple[str, Rule], ...] | None = None
    stabilizer: float = EPSILON
    defaults: tuple[tuple[str, Rule], ...] = ()
    overrides: tuple[tuple[Selector, Rule], ...] = ()
    name: str = field(default="", compare=False)

    def __init__(
        self,
        rules: Iterable[tuple[Selector, Rule]] = (),
        first: Rule | Mapping[str, Rule] | Iterable[tuple[str, Rule]] | None = None,
        pixel: tuple[Any, Any] | None = None,
        stabilizer: float = EPSILON,
        *,
        defaults: Iterable[tuple[str, Rule]] = (),
        overrides: Iterable[tuple[Selector, Rule]] = (),
        name: str = "",
    ) -> None:
        values = {
            "rules": _pairs("rules", rules),
            "first": _first(first, pixel),
            "stabilizer": _stabilizer(stabilizer),
            "defaults": _kind_pairs("defaults", defaults, KINDS),
            "overrides": _pairs("overrides", overrides),
            "name": name,
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def with_rule(self, selector: Selector, rule: Rule) -> Composite:
        """A new composite in which `rule` outranks everything given before, `first` included."""
        added = _pairs("with_rule", [(selector, rule)])
        return replace(self, overrides=added + self.overrides)

    def assign(self, layers: Sequence[LayerInfo]) -> list[Rule | None]:
        """The rule of each layer; None leaves it to the engine's table.

        A LinearRule selected for a recurrent layer comes back as `Recurrent` holding it.

        Raises:
            PlanningError: a selector matches no layer, its rule fits none that it matches, or
                `first` is given and no layer is first.
        """
        chosen: list[Rule | None] = [None] * len(layers)
        for selector, rule in self.overrides:
            self._give(rule, selector, layers, chosen)
        if self.first is not None:
            self._give_first(self.first, layers, chosen)
        for selector, rule in self.rules:
            self._give(rule, selector, layers, chosen)
        for kind, rule in self.defaults:
            self._give(rule, kind, layers, chosen, required=False)
        return chosen

    def _give(
        self,
        rule: Rule,
        selector: Selector,
        layers: Sequence[LayerInfo],
        chosen: list[Rule | None],
        required: bool = True,
    ) -> None:
        """Write a rule to the layers it is selected for and that have none yet."""
        matched = [i for i, layer in enumerate(layers) if _matches(selector, layer)]
        fitting = [i for i in matched if fits(rule, layers[i].kind)]
        if required and not matched:
            raise PlanningError(self._unmatched(selector, layers))
        if matched and not fitting:
            raise PlanningError(self._unfitting(selector, rule, [layers[i] for i in matched]))
        for i in fitting:
            chosen[i] = chosen[i] or adapted(rule, layers[i].kind)

    def _give_first(
        self,
        first: Rule | tuple[tuple[str, Rule], ...],
        layers: Sequence[LayerInfo],
        chosen: list[Rule | None],
    ) -> None:
        starts = [i for i, x in enumerate(layers) if x.first and x.kind in LINEAR_KINDS]
        if not starts:
            raise PlanningError(
                f"{self._label}: it has a rule for the first layer, but no linear layer or "
                "convolution is reached from a floating input; expected at least one. "
                "Use a composite without first= or pixel=."
            )
        for i in starts:
            chosen[i] = chosen[i] or _rule_of_first(first, layers[i].kind)

    @property
    def _label(self) -> str:
        return f"Composite {self.name!r}" if self.name else "Composite"

    def _unmatched(self, selector: Selector, layers: Sequence[LayerInfo]) -> str:
        kinds = sorted({layer.kind for layer in layers if layer.kind in KINDS})
        paths = [layer.path for layer in layers if layer.path]
        classes = [x.module_types[0].__name__ for x in layers if x.module_types]
        if isinstance(selector, type):
            names, wanted = classes, selector.__name__
        else:
            names, wanted = paths + kinds, selector.removeprefix("path:")
        near = difflib.get_close_matches(wanted, sorted(set(names)), n=3, cutoff=0.5)
        hint = f"Near it: {', '.join(near)}. " if near else ""
        return (
            f"{self._label}: selector {_show(selector)} matches no layer of this model. {hint}"
            f"Expected a kind ({', '.join(kinds) or 'none here'}), a glob on a module path, or the "
            "class of a module; correct it or leave it out."
        )

    def _unfitting(self, selector: Selector, rule: Rule, matched: Sequence[LayerInfo]) -> str:
        shown = ", ".join(str(layer) for layer in matched[:3]) + (", ..." * (len(matched) > 3))
        kinds = dict.fromkeys(layer.kind for layer in matched)
        allowed = "; ".join(f"{kind} takes {allowed_rules(kind)}" for kind in kinds)
        return (
            f"{self._label}: selector {_show(selector)} gives {rule!r} to {shown}, "
            f"which cannot take it: {allowed}."
        )

    def __repr__(self) -> str:
        parts = []
        if self.rules:
            parts.append(f"rules={_show_pairs(self.rules)}")
        if isinstance(self.first, tuple):
            parts.append(f"first={dict(self.first)!r}")
        elif self.first is not None:
            parts.append(f"first={self.first!r}")
        if self.stabilizer != EPSILON:
            parts.append(f"stabilizer={self.stabilizer!r}")
        for key in ("defaults", "overrides"):
            if getattr(self, key):
                parts.append(f"{key}={_show_pairs(getattr(self, key))}")
        if self.name:
            parts.append(f"name={self.name!r}")
        return f"Composite({', '.join(parts)})"


def _pairs(where: str, pairs: Iterable[tuple[Selector, Rule]]) -> tuple[tuple[Selector, Rule], ...]:
    checked = []
    for entry in pairs:
        if not isinstance(entry, (tuple, list)) or len(entry) != 2:
            raise InputError(f"Composite {where}: got {entry!r}; expected (selector, rule) pairs")
        selector, rule = entry
        module_class = isinstance(selector, type) and issubclass(selector, nn.Module)
        if not module_class and not (isinstance(selector, str) and selector):
            raise InputError(
                f"Composite {where}: selector {selector!r} is neither a kind ({', '.join(KINDS)}), "
                "nor a glob on a module path, nor an nn.Module class"
            )
        checked.append((selector, checked_rule(where, rule)))
    return tuple(checked)


def checked_rule(where: str, rule: Any) -> Rule:
    """The rule, if it is one; an error that says what came else."""
    if isinstance(rule, Rule):
        return rule
    called = isinstance(rule, type) and issubclass(rule, Rule)
    hint = f"; write {rule.__name__}(...), an instance" if called else ""
    raise InputError(f"Composite {where}: {rule!r} is not a rule of relprop.rules{hint}")


def _kind_pairs(
    where: str, pairs: Iterable[tuple[str, Rule]], kinds: Sequence[str]
) -> tuple[tuple[str, Rule], ...]:
    checked: list[tuple[str, Rule]] = []
    for kind, rule in pairs:
        if kind not in kinds:
            raise InputError(f"Composite {where}: kind {kind!r}; expected {', '.join(kinds)}")
        if not fits(checked_rule(where, rule), kind):
            raise InputError(
                f"Composite {where}: {kind!r} is given {rule!r}, but {kind} takes "
                f"{allowed_rules(kind)}"
            )
        checked.append((kind, rule))
    return tuple(checked)


def _first(first: Any, pixel: Any) -> Rule | tuple[tuple[str, Rule], ...] | None:
    if first is not None and pixel is not None:
        raise InputError(
            "Composite: both first and pixel are given; pixel=(low, high) is short for "
            "first=ZBox(low, high), so give one of them"
        )
    if pixel is not None:
        if not isinstance(pixel, (tuple, list)) or len(pixel) != 2:
            raise InputError(f"Composite: pixel is {pixel!r}; expected (low, high)")
        return ZBox(*pixel)
    if first is None:
        return None
    if isinstance(first, (Mapping, tuple, list)):
        pairs = first.items() if isinstance(first, Mapping) else first
        return _kind_pairs("first", pairs, LINEAR_KINDS) or None
    rule = checked_rule("first", first)
    if not fits(rule, "linear"):
        raise InputError(
            f"Composite first: {rule!r}; a linear layer takes {allowed_rules('linear')}"
        )
    return rule


def _rule_of_first(first: Rule | tuple[tuple[str, Rule], ...], kind: str) -> Rule | None:
    if isinstance(first, Rule):
        return first
    by_kind = dict(first)
    return by_kind.get(kind) or (by_kind.get("conv") if kind == "conv_transpose" else None)


def _stabilizer(value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise InputError(f"Composite: stabilizer is {value!r}; expected a finite number >= 0")
    return float(value)


def _matches(selector: Selector, layer: LayerInfo) -> bool:
    if isinstance(selector, type):
        return bool(layer.module_types) and issubclass(layer.module_types[0], selector)
    if selector in KINDS:
        return layer.kind == selector or (selector, layer.kind) == ("conv", "conv_transpose")
    glob = selector.removeprefix("path:")
    plain = re.sub(r"@\d+$", "", layer.path)
    return fnmatchcase(layer.path, glob) or fnmatchcase(plain, glob)


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


def _show(selector: Selector) -> str:
    return selector.__name__ if isinstance(selector, type) else repr(selector)


def _show_pairs(pairs: Iterable[tuple[Selector, Rule]]) -> str:
    return "[" + ", ".join(f"({_show(selector)}, {rule!r})" for selector, rule in pairs) + "]"
