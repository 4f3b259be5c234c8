"""What a composite is made of, checked; each function raises InputError."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from relprop.composites.selectors import KINDS, LINEAR_KINDS, Selector, allowed_rules, fits
from relprop.errors import InputError
from relprop.rules import Rule, ZBox

__all__ = [
    "checked_first",
    "checked_kind_pairs",
    "checked_pairs",
    "checked_rule",
    "checked_stabilizer",
]


def checked_pairs(
    where: str, pairs: Iterable[tuple[Selector, Rule]]
) -> tuple[tuple[Selector, Rule], ...]:
    """Pairs of selector and rule, given as the argument `where`."""
    checked = []
    for entry in pairs:
        if not isinstance(entry, (tuple, list)) or len(entry) != 2:
            raise InputError(f"Composite {where}: got {entry!r}; expected (selector, rule) pairs")
        selector, rule = entry
        module_class = isinstance(selector, type) and issubclass(selector, nn.Module)
        if not module_class and not (isinstance(selector, str) and selector):
            raise InputError(
                f"Composite {where}: selector {selector!r} is neither a kind ({', '.join(KINDS)}), "
                "nor a glob on a module path, nor an operation ('aten.pow'), nor an nn.Module class"
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


def checked_kind_pairs(
    where: str, pairs: Iterable[tuple[str, Rule]], kinds: Sequence[str]
) -> tuple[tuple[str, Rule], ...]:
    """Pairs of kind and rule, given as the argument `where`."""
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


def checked_first(first: Any, pixel: Any) -> Rule | tuple[tuple[str, Rule], ...] | None:
    """The rule of the first layers, or one a kind, of the arguments `first` and `pixel`."""
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
        return checked_kind_pairs("first", pairs, LINEAR_KINDS) or None
    rule = checked_rule("first", first)
    if not fits(rule, "linear"):
        raise InputError(
            f"Composite first: {rule!r}; a linear layer takes {allowed_rules('linear')}"
        )
    return rule


def checked_stabilizer(value: Any) -> float:
    """The epsilon of operations whose rule names none."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise InputError(f"Composite: stabilizer is {value!r}; expected a finite number >= 0")
    return float(value)
