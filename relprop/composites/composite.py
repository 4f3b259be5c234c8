"""Composites as data: precedence, and which rule each layer gets."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from relprop.composites.checks import (
    checked_first,
    checked_kind_pairs,
    checked_pairs,
    checked_rule,
    checked_stabilizer,
)
from relprop.composites.selectors import (
    KINDS,
    LINEAR_KINDS,
    LayerInfo,
    Selector,
    adapted,
    allowed_rules,
    fits,
    matches,
    show,
    show_pairs,
)
from relprop.errors import InputError, PlanningError
from relprop.rules import EPSILON, Epsilon, Recurrent, Rule

__all__ = ["Composite", "by_layer", "uniform"]


@dataclass(frozen=True, repr=False)
class Composite:
    """An assignment of rules to layers; immutable, equal by value, hashable and picklable.

    Precedence: `with_rule` (last given first), `first` or `pixel`, `rules` in order, `defaults`,
    and where all are silent the table of the engine.  A selector is

    - a kind: one of `KINDS`; "conv" includes "conv_transpose";
    - any other string: a glob on the full dotted path, whose `*` crosses dots; "path:..." forces a
      path where a module is called like a kind; a path selects every call of its module,
      "path@1" the second call alone;
    - "aten.<operation>": the operations of that canonical name, as messages and plans name them;
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
            "rules": checked_pairs("rules", rules),
            "first": checked_first(first, pixel),
            "stabilizer": checked_stabilizer(stabilizer),
            "defaults": checked_kind_pairs("defaults", defaults, KINDS),
            "overrides": checked_pairs("overrides", overrides),
            "name": name,
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def with_rule(self, selector: Selector, rule: Rule) -> Composite:
        """A new composite in which `rule` outranks everything given before, `first` included."""
        added = checked_pairs("with_rule", [(selector, rule)])
        return replace(self, overrides=added + self.overrides)

    def assign(self, layers: Sequence[LayerInfo]) -> list[Rule | None]:
        """The rule of each layer; None leaves it to the engine's table.

        A LinearRule selected for a recurrent layer comes back as `Recurrent` holding it.

        Raises:
            PlanningError: a selector matches no layer, its rule fits none that it matches, or
                `first` is given and none of the linear layers is first; a network without any
                has no use for it.
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
        matched = [i for i, layer in enumerate(layers) if matches(selector, layer)]
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
        if not starts and any(x.kind in LINEAR_KINDS for x in layers):
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
            f"{self._label}: selector {show(selector)} matches no layer of this model. {hint}"
            f"Expected a kind ({', '.join(kinds) or 'none here'}), a glob on a module path, "
            '"aten.<operation>", or the class of a module; correct it or leave it out.'
        )

    def _unfitting(self, selector: Selector, rule: Rule, matched: Sequence[LayerInfo]) -> str:
        shown = ", ".join(str(layer) for layer in matched[:3]) + (", ..." * (len(matched) > 3))
        kinds = dict.fromkeys(layer.kind for layer in matched)
        allowed = "; ".join(f"{kind} takes {allowed_rules(kind)}" for kind in kinds)
        return (
            f"{self._label}: selector {show(selector)} gives {rule!r} to {shown}, "
            f"which cannot take it: {allowed}."
        )

    def __repr__(self) -> str:
        parts = []
        if self.rules:
            parts.append(f"rules={show_pairs(self.rules)}")
        if isinstance(self.first, tuple):
            parts.append(f"first={dict(self.first)!r}")
        elif self.first is not None:
            parts.append(f"first={self.first!r}")
        if self.stabilizer != EPSILON:
            parts.append(f"stabilizer={self.stabilizer!r}")
        for key in ("defaults", "overrides"):
            if getattr(self, key):
                parts.append(f"{key}={show_pairs(getattr(self, key))}")
        if self.name:
            parts.append(f"name={self.name!r}")
        return f"Composite({', '.join(parts)})"


def _rule_of_first(first: Rule | tuple[tuple[str, Rule], ...], kind: str) -> Rule | None:
    if isinstance(first, Rule):
        return first
    by_kind = dict(first)
    return by_kind.get(kind) or (by_kind.get("conv") if kind == "conv_transpose" else None)


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
