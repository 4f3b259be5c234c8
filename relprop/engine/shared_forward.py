"""One forward pass for several methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from relprop.engine import run
from relprop.engine.gradients import GradientPlan, Switch, differentiable_values
from relprop.engine.plan import Plan
from relprop.engine.planner import AnyPlan
from relprop.engine.run import Engine
from relprop.methods import GradientMethod
from relprop.operations.precision import float32_products

__all__ = ["SharedForward"]


class SharedForward:
    """The values of one call's forward pass, computed when the first method asks for them.

    Args:
        model: the model.
        plans: of all methods, made for the same inputs and output.
    """

    def __init__(self, model: nn.Module, plans: Sequence[AnyPlan]) -> None:
        self.model = model
        self.convolves = any(isinstance(plan, Plan) and plan.convolves for plan in plans)
        self.differentiated = any(isinstance(plan, GradientPlan) for plan in plans)
        self.switch = Switch()
        self.values: dict[str, Any] = {}

    def differentiable(
        self, plan: GradientPlan, inputs: Mapping[str, Any], wanted: Iterable[str]
    ) -> Mapping[str, Any] | None:
        """All values in autograd's graph, set to the plan's method; None if it moves the inputs."""
        if plan.method.path or plan.method.noise:
            return None
        self._evaluate(plan, inputs, wanted)
        self.switch.relu = plan.method.relu
        return self.values

    def engine(
        self, engine: Engine, plan: Plan, inputs: Mapping[str, Any], wanted: Iterable[str]
    ) -> Engine:
        """The engine, with the values that the plan's operations need not compute any more."""
        self._evaluate(plan, inputs, wanted)
        known = {
            name: value.detach()
            for name, value in self.values.items()
            if name in plan.graph.nodes and isinstance(value, Tensor)
        }
        return replace(engine, known=known)

    def _evaluate(self, plan: AnyPlan, inputs: Mapping[str, Any], wanted: Iterable[str]) -> None:
        if self.values:
            return
        if isinstance(plan, Plan):
            plan = GradientPlan(plan.graph, plan.output, plan.facts, GradientMethod("gradient"))
        if self.convolves:
            inputs = {name: run.arranged(value) for name, value in inputs.items()}
        device = next(x.device for x in inputs.values() if isinstance(x, Tensor))
        with float32_products("highest", device), torch.set_grad_enabled(self.differentiated):
            self.values = differentiable_values(plan, self.model, inputs, wanted, self.switch)
