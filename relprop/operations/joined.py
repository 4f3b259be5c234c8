"""What two neighbouring steps of a relevance pass hand each other when a backend joins them.

A backend may let the step above take the quotient of the layer below, so that relevance between
them never exists in memory: planning gives that step the option "below", the engine then passes it
what the layer below saved, and the layer below receives its own quotients for relevance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Below", "Joined", "Quotients", "joined"]


@dataclass(frozen=True)
class Below:
    """The layer whose quotient a step takes along.

    Attributes:
        name: of the layer's value.
        between: the values whose relevance is then never formed, the layer's own among them.
    """

    name: str
    between: frozenset[str]


@dataclass(frozen=True)
class Joined:
    """What a step saved, and for each of its inputs what the layer below saved, or None."""

    own: Any
    below: tuple[Any, ...]


@dataclass(frozen=True)
class Quotients:
    """In the place of a layer's relevance: the quotients of its rule, made by the step above.

    Attributes:
        s: `[1 or 2, K, *shape]`.
    """

    s: Tensor


def joined(step: Any, saved: Any, all_saved: Mapping[str, Any], wanted: set[str] | None) -> Any:
    """What a step gets of the forward pass: with the layers below unless their relevance is wanted.

    Args:
        step: a step of a plan.
        saved: what it saved.
        all_saved: what each step saved.
        wanted: values whose relevance has to be formed; None for all.
    """
    layers: tuple[Below | None, ...] = step.options.get("below", ())
    kept = tuple(
        all_saved.get(layer.name)
        if layer is not None and wanted is not None and wanted.isdisjoint(layer.between)
        else None
        for layer in layers
    )
    return Joined(saved, kept) if any(other is not None for other in kept) else saved
