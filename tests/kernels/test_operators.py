"""Layers' relevance under torch.compile: one operator a layer kind, the rule as a string."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from relprop import functional, operators, rules
from relprop.errors import InputError

LOW = torch.tensor([[[-1.0]], [[-2.0]]])
RULES: list[rules.LinearRule] = [
    rules.Epsilon(0.1),
    rules.ZPlus(1e-3, zero_params="bias"),
    rules.AlphaBeta(1.4, 0.4, conserve=True),
    rules.Gamma(0.3),
    rules.ZBox(-1, 1.5),
    rules.ZBox(LOW, LOW + 4),
    rules.WSquare(),
    rules.Flat(),
    rules.Joint(rules.ZBox(LOW[:1], 1), rules.AlphaBeta(2, 1), channels=(0, 1)),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_rule_survives_its_string(rule: rules.LinearRule) -> None:
    text, tensors = operators.encoded(rule)
    again = operators.decoded(text, tensors)
    assert type(again) is type(rule) and operators.encoded(again)[0] == text
    assert str(again) == str(rule)


@pytest.mark.parametrize(
    "text", ["", "Epsilon", "Epsilon(epsilon=1)", "Rule()", "__import__('os')", "1", "Tensor(0)"]
)
def test_other_strings_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="rule "):
        operators.decoded(text)


class Own(rules.Epsilon):
    """A rule of somebody's own."""


def test_a_rule_of_ones_own_is_refused() -> None:
    with pytest.raises(InputError, match=r"relprop's own linear rules, got Own"):
        operators.encoded(Own())


def dense(rule: rules.Rule, backend: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    def relevance(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
        return functional.linear_relevance(2 * x, w, b, r, rule, backend=backend)

    return relevance, (torch.randn(3, 5), torch.randn(4, 5), torch.randn(4), torch.randn(3, 4))


def conv(rule: rules.Rule, backend: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    def relevance(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
        options: dict[str, Any] = {"stride": 2, "padding": 1, "backend": backend}
        return functional.conv_relevance(2 * x, w, b, r, rule, **options)

    x = torch.randn(2, 2, 5, 6).to(memory_format=torch.channels_last)
    return relevance, (x, torch.randn(4, 2, 3, 3), torch.randn(4), torch.randn(2, 4, 3, 3))


@pytest.mark.parametrize("rule", RULES[:1] + RULES[2:3] + RULES[5:6], ids=str)
@pytest.mark.parametrize("backend", ["triton", "aten"])
@pytest.mark.parametrize("layer", [dense, conv])
def test_compiled_without_a_break(layer: Any, backend: str, rule: rules.LinearRule) -> None:
    if layer is dense and isinstance(rule, rules.ZBox):
        rule = rules.ZBox(LOW[0, 0], LOW[0, 0] + 4)
    torch._dynamo.reset()
    function, operands = layer(rule, backend)
    expected = function(*operands)
    found = torch.compile(function, fullgraph=True, backend="aot_eager")(*operands)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert found.stride() == torch.empty(found.shape).stride()
    operands[0].requires_grad_()
    again = torch.compile(function, fullgraph=True, backend="aot_eager")(*operands)
    assert not again.requires_grad


def test_a_rule_made_inside_the_compiled_function() -> None:
    def function(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
        return functional.linear_relevance(x, w, None, r, rules.Gamma(0.3), backend="triton")

    operands = torch.randn(3, 5), torch.randn(4, 5), torch.randn(3, 4)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*operands), function(*operands))


@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_opcheck(backend: str) -> None:
    text, tensors = operators.encoded(rules.AlphaBeta(2, 1))
    _, operands = dense(rules.Epsilon(), backend)
    torch.library.opcheck(
        operators.linear_relevance, (*operands[:2], None, operands[3], text, tensors, backend)
    )
    text, tensors = operators.encoded(RULES[5])
    _, operands = conv(rules.Epsilon(), backend)
    geometry = [2, 2], [1, 1, 1, 1], [1, 1], 1, False, [0, 0]
    torch.library.opcheck(operators.conv_relevance, (*operands, text, tensors, *geometry, backend))
