"""The relevance that an explanation starts with, at the target in the output."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from relprop.call import Call
from relprop.errors import InputError
from relprop.inputs import check_finite
from relprop.planner import AnyPlan
from relprop.targets import Target, resolve_target, seed

__all__ = ["Starting"]


class Starting:
    """From an output to the starting relevance; remembers the target it resolved."""

    def __init__(self, target: Any, start: Any, call: Call, nan_policy: str, plan: AnyPlan) -> None:
        self.target, self.start, self.call, self.nan_policy = target, start, call, nan_policy
        self.plan = plan
        self.resolved: Target | None = None
        self.axis = 0

    def __call__(self, output: Tensor) -> Tensor:
        if self.nan_policy == "raise":
            check_finite("the model's output", output)
        batch, graph = self.call.batch, self.plan.graph
        axis = graph.batch_axis(self.plan.output, output.shape, batch, self.call.batch_dim)
        self.axis = axis or 0
        if isinstance(self.start, Tensor):
            if self.target is not None:
                raise InputError("start: a tensor beside a target; expected target=None")
        else:
            if callable(self.target):
                self.target = self.target(output.detach())
            self.resolved = resolve_target(self.target, output.shape, batch, self.axis)
        begun = seed(self.resolved, output, self.start)
        if self.nan_policy == "raise":
            check_finite("the starting relevance", begun)
        return begun
