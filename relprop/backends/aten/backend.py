"""The ATen backend: library calls, no autograd, any device, float64 to half precision."""

from __future__ import annotations

from relprop.backends.aten.linear import AtenLinear
from relprop.backends.aten.recurrent.stack import AtenRecurrence
from relprop.operations import Operation, Step
from relprop.operations.base import run_by
from relprop.operations.recurrent import Recurrence

__all__ = ["AtenBackend"]


class AtenBackend(AtenLinear):
    """See `relprop.operations.protocol`; operations of one step bring their own ATen code."""

    name = "aten"

    def operation(self, step: Step) -> Operation:
        """See `relprop.operations.protocol.Backend.operation`."""
        described = step.operation
        if isinstance(described, Recurrence):
            return run_by(AtenRecurrence, type(described))
        return described
