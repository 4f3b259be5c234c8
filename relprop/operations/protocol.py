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

__all__ = ["PRECISIONS", "Backend", "Fusing", "LinearCall"]

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

        A step with the option "below" may return `Quotients` (`relprop.operations.joined`).
        """
        ...
