"""Selectors: which layers a rule is meant for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from relprop.composites.kinds import KINDS
from relprop.rules import Rule

__all__ = ["LayerInfo", "Selector", "matches", "show", "show_pairs"]

Selector = str | type[nn.Module]
"""A kind of layer, a glob on the dotted module path, or a module class."""


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


def matches(selector: Selector, layer: LayerInfo) -> bool:
    """Whether a selector selects a layer."""
    if isinstance(selector, type):
        return bool(layer.module_types) and issubclass(layer.module_types[0], selector)
    if selector in KINDS:
        return layer.kind == selector or (selector, layer.kind) == ("conv", "conv_transpose")
    glob = selector.removeprefix("path:")
    plain = re.sub(r"@\d+$", "", layer.path)
    return fnmatchcase(layer.path, glob) or fnmatchcase(plain, glob)


def show(selector: Selector) -> str:
    """A selector in print."""
    return selector.__name__ if isinstance(selector, type) else repr(selector)


def show_pairs(pairs: Iterable[tuple[Selector, Rule]]) -> str:
    """Pairs of selector and rule in print."""
    return "[" + ", ".join(f"({show(selector)}, {rule!r})" for selector, rule in pairs) + "]"
