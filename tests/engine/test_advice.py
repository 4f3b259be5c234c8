"""What an error advises where operations have no rule: each piece of advice is followed."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relprop
from plans import Function
from relprop import rules
from relprop.composites import Composite, lrp_epsilon
from relprop.errors import PlanningError

Operation = Callable[[Tensor], Tensor]

PASS, HALF, LEFT = rules.Pass(), rules.Product("half"), rules.Product("left")


def attend(x: Tensor) -> Tensor:
    q, k, v = ((x + i).view(-1, 1, 2, 3) for i in range(3))
    return F.scaled_dot_product_attention(q, k, v).flatten(1)


REFUSED: dict[str, tuple[Operation, list[rules.Rule]]] = {
    "cumulative sum": (lambda x: x.cumsum(1), [PASS]),
    "cumulative product": (lambda x: x.cumprod(1), [PASS]),
    "softmax": (lambda x: x.softmax(1), [PASS]),
    "log softmax": (lambda x: x.log_softmax(1), [PASS]),
    "logsumexp": (lambda x: x.logsumexp(1, keepdim=True), []),
    "product of the elements": (lambda x: x.prod(1, keepdim=True), []),
    "product": (lambda x: (x + 2) * x.flip(1), [HALF]),
    "products": (lambda x: (x + 2) * (x.flip(1) * (x + 3)), [HALF]),
    "product of gates": (lambda x: x.sigmoid() * x.flip(1).sigmoid(), [HALF]),
    "quotient": (lambda x: (x + 2) / (x.flip(1) + 3), [LEFT]),
    "both": (lambda x: ((x + 2) / (x.flip(1) + 3)).cumsum(1), [PASS, LEFT]),
    "rounded quotient": (lambda x: torch.div(x + 2, x.flip(1) + 3, rounding_mode="floor"), []),
    "denominator": (lambda x: torch.arange(1.0, 7.0) / (x + 3), []),
    "gram matrix": (lambda x: x.unsqueeze(2) @ x.unsqueeze(1), []),
    "einsum": (lambda x: torch.einsum("bi,bj->bij", x, x + 1), [HALF]),
    "attention": (attend, []),
    "outer": (lambda x: torch.atan2(x, x.flip(1) + 3), []),
    "generated weight": (lambda x: F.linear(x, x), []),
    "generated slope": (lambda x: F.prelu(x, x.mean().view(1)), []),
    "a softmax twice": (lambda x: x.softmax(1).softmax(1), [PASS]),
}
"""Operations that have no rule, and the rules that are advised."""


class Inner(nn.Module):
    def __init__(self, function: Operation) -> None:
        super().__init__()
        self.of = Function(function)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.of(self.last(x).repeat(1, 3)).flatten(1)


def places(function: Operation) -> dict[str, nn.Module]:
    """The operation in the model itself, in a module of a module, and in several."""
    inner = Inner(function)
    return {
        "itself": Function(lambda x: function(x).flatten(1)),
        "inner": nn.Sequential(nn.Linear(6, 6), inner),
    }


def refusal(model: nn.Module, x: Tensor, method: Composite) -> str:
    with pytest.raises(PlanningError) as caught:
        relprop.explain(model, x, target=0, method=method)
    return str(caught.value)


@pytest.mark.parametrize("part", range(4))
def test_advice_is_followed(part: int) -> None:
    for name in list(REFUSED)[part::4]:
        follow(*REFUSED[name])


def follow(function: Operation, expected: list[rules.Rule]) -> None:
    x = torch.rand(6, 6, dtype=torch.float64)
    for where, model in places(function).items():
        message = refusal(model.double(), x, lrp_epsilon())
        calls = re.findall(r"^  (\.with_rule\(.*\))$", message, re.MULTILINE)
        found = eval(f"composite{''.join(calls)}", {"composite": lrp_epsilon(), "rules": rules})
        assert sorted(map(repr, {rule for _, rule in found.overrides})) == sorted(
            map(repr, expected)
        ), (where, message)
        if "No rule fits" in message:
            assert "'gradient_x_input'" in message
            relevance = relprop.explain(model, x, target=0, method="gradient_x_input")
            assert calls == [] or "\n" in refusal(model, x, found)
        else:
            relevance = relprop.explain(model, x, target=0, method=found)
        assert relevance.shape == x.shape and torch.isfinite(relevance).all()
        lacking = relprop.check(model, x).unsupported
        assert sorted(f"aten.{op}" for _, op in lacking) == sorted(
            set(re.findall(r"(aten\.\w+)", message.partition("\nThese")[0].partition("\nNo")[0]))
        )


def test_advice_changes_no_rule_that_is_there() -> None:
    class Mixed(nn.Module):
        """A layer, a gated product and a product of signals in one module."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            y = F.linear(x, self.weight)
            return (y * x.sigmoid()).cumsum(1) + y

    model, x = nn.Sequential(Mixed(), nn.Linear(4, 2)), torch.rand(3, 4)
    message = refusal(model, x, lrp_epsilon())
    assert ".with_rule('aten.cumsum', rules.Pass())" in message
    composite = lrp_epsilon().with_rule("aten.cumsum", rules.Pass())
    explainer = relprop.Explainer(model, composite)
    explainer(x, target=0)
    assert "Epsilon" in str(explainer.plan)
