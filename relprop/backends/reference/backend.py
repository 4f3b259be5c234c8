"""The oracle behind the backend protocol: every step by its definition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relprop.backends.reference import linear as reference
from relprop.backends.reference.operations import naive_relevance
from relprop.operations import Operation, Step
from relprop.operations.base import Engine, run_by
from relprop.operations.protocol import LinearCall

__all__ = ["ReferenceBackend"]


class _Saved(NamedTuple):
    a: Tensor
    w: Tensor
    b: Tensor | None


class NaiveOperation(Operation):
    """A step whose value is the graph's own, its relevance the oracle's."""

    def forward(self, step: Step, values: Mapping[str, Any], engine: Engine) -> tuple[Any, Any]:
        return step.node.evaluate(values), {name: values[name] for name in step.node.refs}

    def relevance(self, step: Step, saved: Any, r: Any, engine: Engine) -> Sequence[Any]:
        return naive_relevance(step, saved, r)


class ReferenceBackend:
    """The naive evaluation, one target at a time; what only saves time or memory it ignores."""

    name = "reference"

    def operation(self, step: Step) -> Operation:
        """See `relprop.operations.protocol.Backend.operation`."""
        if step.operation.carry == "linear":  # comes back through `forward` and `relevance`
            return step.operation
        return run_by(NaiveOperation, type(step.operation))

    def forward(
        self,
        call: LinearCall,
        a: Tensor,
        w: Tensor,
        b: Tensor | None,
        cache: dict[Any, Any] | None = None,
        known: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """See `relprop.operations.protocol.Backend.forward`."""
        dtype = torch.promote_types(torch.promote_types(a.dtype, w.dtype), torch.float32)
        a, w, b = a.to(dtype), w.to(dtype), None if b is None else b.to(dtype)
        z = call.map.contraction(a, w)
        z = z if b is None else z + call.map.align(b)
        return z.relu() if call.rectified else z, _Saved(a, w, b)

    def relevance(self, call: LinearCall, saved: Any, r: Tensor) -> Tensor:
        """See `relprop.operations.protocol.Backend.relevance`."""
        a, w, b = saved
        result = a.new_empty(r.shape[0], *a.shape)
        for target, row in zip(result, r, strict=True):
            target.copy_(reference.linear_relevance(call.map, a, w, b, row.to(a), call.rule))
        return result
