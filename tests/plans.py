"""Plans of small functions, made without an explainer: recorded, and run forth and back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from relprop import backends, rules
from relprop.capture.call import neutral_modes
from relprop.capture.record import record
from relprop.composites import Composite
from relprop.engine import run
from relprop.engine.plan import Plan
from relprop.graph.canonical import canonical


class Function(nn.Module):
    """A function of the input and of some parameters."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(torch.randn(shape).double() for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


def everywhere(rule: rules.LinearRule, stabilizer: float) -> Composite:
    """One rule for all linear maps."""
    kinds = "linear", "conv", "conv_transpose", "batch_norm"
    return Composite(stabilizer=stabilizer, defaults=[(kind, rule) for kind in kinds])


def recorded(model: nn.Module, x: Tensor, composite: Composite | None = None) -> Plan:
    """The plan of a recorded model, operations as they were called."""
    with neutral_modes():
        graph = canonical(record(model, (x,), {}, 0))
    name = graph.output_names[0]
    return Plan.make(
        graph, name, composite or Composite(), floating=graph.inputs, integer=[], backend="aten"
    )


def passed(plan: Plan, model: nn.Module, x: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and relevance of the input, of a plan."""
    engine = run.Engine(backends.get("aten"))
    with neutral_modes():
        forward = run.forward(plan, engine, model, {plan.graph.inputs[0]: x})
        found = run.relevance(plan, engine, forward, start.unsqueeze(0), plan.graph.inputs)
    return forward.output, found[plan.graph.inputs[0]].squeeze(0)
