"""What the engine asks of a backend, and what it hands it.

A backend sees one layer at a time.  `forward` returns the layer's output and whatever its own
`relevance` will need; in between, the engine keeps that object and drops it when last used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from relprop.graph import Graph
from relprop.graph.maps import LinearMap
from relprop.operations.base import Operation, Step
from relprop.rules import LinearRule

__all__ = [
    "PRECISIONS",
    "Backend",
    "Below",
    "Fusing",
    "Joined",
    "LinearCall",
    "Quotients",
    "joined",
]

PRECISIONS = ("highest", "high", "medium")


@dataclass(frozen=True)
class LinearCall:
    """One linear layer of a plan.

    Attributes:
        map: geometry of the layer.
        rule: how its relevance propagates.
        nonnegative: whether the input is known to be >= 0, as after ReLU.
        precision: of the products: "highest" (float32, or float64 for float64 operands), "high"
            (TF32 on CUDA), "medium" (bfloat16 operands).
        path: the layer's name, for messages.
        rectified: `forward` returns max(z, 0), in whose place z has no other use, and no relevance
            arrives where that is 0.
    """

    map: LinearMap
    rule: LinearRule
    nonnegative: bool = False
    precision: str = "highest"
    path: str = ""
    rectified: bool = False


class Backend(Protocol):
    """What the engine asks of a backend."""

    name: str

    def operation(self, step: Step) -> Operation:
        """What runs a step of a plan: `step.operation`, or the backend's own in its place.

        Raises:
            PlanningError: the backend must serve this kind of operation, and cannot.
        """
        ...

    def forward(
        self,
        call: LinearCall,
        a: Tensor,
        w: Tensor,
        b: Tensor | None,
        cache: dict[Any, Any] | None = None,
        known: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """The layer's output and what `relevance` needs.

        Args:
            call: the layer.
            a: its input.
            w: its weight.
            b: its bias, or None.
            cache: a dict of this layer alone, for what depends on weights and shapes but not on
                the input; it must not outlive a change of the weights.
            known: W a + b where it has been computed before; it stays unchanged.

        Returns:
            z, bias included, or max(z, 0) if `call.rectified`; in float32, or in float64 if an
            operand is float64.
        """
        ...

    def relevance(self, call: LinearCall, saved: Any, r: Tensor) -> Tensor:
        """Relevance of the layer's input.

        Args:
            call: the layer.
            saved: what `forward` returned; it stays valid and unchanged.
            r: relevance of the output for K targets, `[K, *z.shape]`.

        Returns:
            `[K, *a.shape]`.
        """
        ...


@runtime_checkable
class Fusing(Protocol):
    """A backend that joins neighbouring steps of a plan."""

    def fuse(self, graph: Graph, steps: Mapping[str, Step], output: str) -> dict[str, Step]:
        """The steps of a plan that explains `output`, joined where one kernel serves two.

        A step with the option "below" may return `Quotients` (`relprop.operations.protocol`).
        """
        ...


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
