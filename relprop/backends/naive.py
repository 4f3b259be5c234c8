"""`relprop.reference` behind the backend protocol."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from relprop import reference
from relprop.layers import Operation, Step
from relprop.layers.protocol import LinearCall

__all__ = ["ReferenceBackend"]


class _Saved(NamedTuple):
    a: Tensor
    w: Tensor
    b: Tensor | None


class ReferenceBackend:
    """The naive evaluation, one target at a time; what only saves time or memory it ignores."""

    name = "reference"

    def operation(self, step: Step) -> Operation:
        """See `relprop.layers.protocol.Backend.operation`."""
        return step.operation

    def forward(
        self,
        call: LinearCall,
        a: Tensor,
        w: Tensor,
        b: Tensor | None,
        cache: dict[Any, Any] | None = None,
        known: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """See `relprop.layers.protocol.Backend.forward`."""
        dtype = torch.promote_types(torch.promote_types(a.dtype, w.dtype), torch.float32)
        a, w, b = a.to(dtype), w.to(dtype), None if b is None else b.to(dtype)
        z = call.map.contraction(a, w)
        z = z if b is None else z + call.map.align(b)
        return z.relu() if call.rectified else z, _Saved(a, w, b)

    def relevance(self, call: LinearCall, saved: Any, r: Tensor) -> Tensor:
        """See `relprop.layers.protocol.Backend.relevance`."""
        a, w, b = saved
        result = a.new_empty(r.shape[0], *a.shape)
        for target, row in zip(result, r, strict=True):
            target.copy_(reference.linear_relevance(call.map, a, w, b, row.to(a), call.rule))
        return result
