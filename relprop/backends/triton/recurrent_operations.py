"""Recurrent layers and cells by kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from relprop.backends.triton.recurrent import forward, limits_of, relevance
from relprop.operations import Step
from relprop.operations.base import refuse
from relprop.operations.recurrent import Call, Parted, Recurrence, RecurrentRun, States
from relprop.rules import Recurrent

__all__ = ["TritonRecurrence", "check_rule"]


class TritonRecurrence(RecurrentRun):
    """Recurrent steps by kernels."""

    backend = "triton"

    def run(self, step: Step, call: Call) -> tuple[States, Any]:
        assert isinstance(step.rule, Recurrent)
        precision = step.options.get("precision", "highest")
        return forward(*call[:-1], step.rule, call.lengths, precision, step.where)

    def carried_back(self, saved: Any, given: Sequence[Tensor | None]) -> Parted:
        return relevance(saved, *given)


def check_rule(step: Step) -> None:
    """Refuse, at planning time, a recurrent step that no kernel serves.

    Raises:
        PlanningError: the rule asks for more than the kernels do, or the layer projects.
    """
    assert isinstance(step.rule, Recurrent)
    assert isinstance(step.operation, Recurrence)
    reason = limits_of(step.rule, step.operation.projects(step.node))
    if reason is not None:
        raise refuse(step, reason)
