"""The ATen backend: library calls, no autograd, any device, float64 to half precision."""

from __future__ import annotations

from relprop.backends.aten_linear import AtenLinear
from relprop.layers import Operation, Step
from relprop.layers.base import run_by
from relprop.layers.recurrent import Recurrence
from relprop.recurrent.aten import AtenRecurrence

__all__ = ["AtenBackend"]


class AtenBackend(AtenLinear):
    """See `relprop.layers.protocol.Backend`; operations of one step bring their own ATen code."""

    name = "aten"

    def operation(self, step: Step) -> Operation:
        """See `relprop.layers.protocol.Backend.operation`."""
        described = step.operation
        if isinstance(described, Recurrence):
            return run_by(AtenRecurrence, type(described))
        return described
