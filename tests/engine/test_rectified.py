"""A ReLU that writes over its input, or whose work the layer below does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plans import everywhere, recorded
from relprop import rules
from relprop.engine.plan import Plan


class Chain(nn.Module):
    """Dense, ReLU, something else, dense."""

    def __init__(self, between: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(5, 6), nn.Linear(6, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        h = self.below(x).relu()
        return self.above(h if self.between is None else self.between(h))


def overwrites(plan: Plan) -> bool:
    """Whether the ReLU of the plan writes over its input, or the layer below does its work."""
    (step,) = [step for step in plan.steps.values() if step.node.op == "relu"]
    return bool(step.options.get("inplace") or step.options.get("rectified"))


@pytest.mark.parametrize(
    ("rule", "between", "expected"),
    [
        (rules.Epsilon(), None, True),
        (rules.AlphaBeta(), None, True),
        (rules.Gamma(), None, True),
        (rules.Flat(), None, False),
        (rules.WSquare(), None, False),
        (rules.ZBox(-1, 1), None, False),
        (rules.Epsilon(), lambda h: F.avg_pool1d(h, 3, 1, 1), True),
        (rules.Epsilon(), lambda h: F.leaky_relu(h), True),
        (rules.Epsilon(), lambda h: h + torch.arange(6), True),
        (rules.Flat(), lambda h: F.max_pool1d(h, 3, 1, 1), False),
        (rules.Flat(), lambda h: h.flip(-1), False),
        (rules.Epsilon(), lambda h: h.flip(-1), True),
        (rules.Epsilon(), lambda h: h.sigmoid(), False),
    ],
)
def test_a_relu_overwrites_only_what_no_rule_reads(
    rule: rules.LinearRule, between: Callable[[Tensor], Tensor] | None, expected: bool
) -> None:
    model, x = Chain(between).double(), torch.randn(3, 5).double()
    assert overwrites(recorded(model, x, everywhere(rule, 1e-6))) is expected
