"""Layers' relevance under torch.compile: one operator a layer kind, the rule by its key."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from relprop import functional, rules
from relprop.backends import operators
from relprop.errors import InputError
from relprop.rules.terms import IDENTITY

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


@dataclasses.dataclass(frozen=True)
class Own(rules.LinearRule):
    """A rule of somebody's own: a share of the positive weights, by a field of its own."""

    share: float = 0.5

    def terms(self) -> tuple[rules.Group, ...]:
        up = rules.Modifier("plus_positive", self.share)
        return (rules.Group((rules.Term(IDENTITY, up),), bias=up),)


@pytest.mark.parametrize("rule", [*RULES, Own(share=0.25)], ids=lambda rule: type(rule).__name__)
def test_a_key_stands_for_its_rule_and_no_other(rule: rules.LinearRule) -> None:
    key = operators.key_of(rule)
    assert operators.key_of(pickle.loads(pickle.dumps(rule))) == key
    assert operators.key_of(dataclasses.replace(rule, epsilon=0.7)) != key


def test_a_key_is_the_same_in_every_process() -> None:
    code = (
        "from relprop import rules; from relprop.backends import operators; "
        "print(operators.key_of(rules.Gamma(0.3, 1e-3)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == operators.key_of(rules.Gamma(0.3, 1e-3))


def test_a_class_defined_anew_does_not_take_its_forerunner_s_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def defined() -> str:
        kind = type("Anew", (rules.Epsilon,), {"__module__": __name__})
        monkeypatch.setattr(sys.modules[__name__], "Anew", kind, raising=False)
        return operators.key_of(kind())

    assert defined() != defined()


@pytest.mark.parametrize("key", ["", "Epsilon(epsilon=1)", pickle.dumps(Own()).hex(), "__import__"])
def test_operators_look_strings_up_and_do_no_more(key: str) -> None:
    _, (x, w, _, r) = dense(rules.Epsilon(), "aten")
    with pytest.raises(InputError, match="no rule of this process has the key"):
        torch.ops.relprop.linear_relevance(x, w, None, r, key, "aten")


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


@pytest.mark.parametrize("rule", [*RULES[:1], *RULES[2:3], *RULES[5:6], Own(share=0.25)], ids=str)
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


PIXEL = rules.ZBox(-4.0, 1.0)
MADE_INSIDE: list[Callable[[], rules.LinearRule]] = [
    lambda: rules.Gamma(0.3),
    lambda: Own(1e-3, share=0.25),
    lambda: rules.Joint(PIXEL, rules.AlphaBeta(1.4, 0.4), channels=(0, 2)),
]


@pytest.mark.parametrize("made", MADE_INSIDE)
def test_a_rule_made_inside_the_compiled_function(made: Callable[[], rules.LinearRule]) -> None:
    def function(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
        return functional.linear_relevance(x, w, None, r, made(), backend="aten")

    torch._dynamo.reset()
    operands = torch.rand(3, 5), torch.randn(4, 5), torch.randn(3, 4)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*operands), function(*operands))


CHANGES: list[tuple[list[rules.LinearRule], int]] = [
    ([rules.Gamma(gamma) for gamma in (0.1, 0.2, 0.1, 0.3, 2, 3, 2, 0.1)], 5),
    ([rules.Joint(PIXEL, channels=span) for span in ((0, 1), (0, 2), (1, 3), (0, 1))], 3),
    ([Own(share=0.1), rules.Gamma(0.1), Own(share=0.2), Own(share=0.1)], 3),
]


@pytest.mark.parametrize(("made", "different"), CHANGES, ids=["numbers", "spans", "classes"])
def test_a_rule_that_changes_between_calls(made: list[rules.LinearRule], different: int) -> None:
    """Equal rules share one compilation, whatever object they are; other numbers get theirs."""
    compilations = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        compilations.append(module)
        return module

    def function(rule: rules.LinearRule) -> Tensor:
        return functional.linear_relevance(x, w, None, r, rule)

    torch._dynamo.reset()
    x, w, r = torch.rand(3, 5), torch.randn(4, 5), torch.randn(3, 4)
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for rule in made:
        torch.testing.assert_close(compiled(rule), function(rule))
    assert len(compilations) == different


def local_rule() -> rules.LinearRule:
    class Local(rules.Epsilon):
        """A rule that no other process could find."""

    return Local()


def rule_with_a_function() -> rules.LinearRule:
    rule = Own()
    object.__setattr__(rule, "weight", lambda w: w)
    return rule


@pytest.mark.parametrize("made", [local_rule, rule_with_a_function])
def test_a_rule_that_cannot_be_pickled_is_named(made: Callable[[], rules.LinearRule]) -> None:
    rule = made()

    def function(x: Tensor) -> Tensor:
        return functional.linear_relevance(x, torch.ones(4, 5), None, torch.ones(3, 4), rule)

    torch._dynamo.reset()
    assert function(torch.ones(3, 5)).shape == (3, 5)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    name = type(rule).__qualname__
    with pytest.raises(InputError, match=rf"rule {name} cannot be pickled.*top level of a module"):
        compiled(torch.ones(3, 5))


@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_opcheck(backend: str) -> None:
    key = operators.key_of(rules.AlphaBeta(2, 1))
    _, operands = dense(rules.Epsilon(), backend)
    given = (*operands[:2], None, operands[3], key, backend)
    torch.library.opcheck(operators.linear_relevance, given)
    key = operators.key_of(RULES[5])
    _, operands = conv(rules.Epsilon(), backend)
    geometry = [2, 2], [1, 1, 1, 1], [1, 1], 1, False, [0, 0]
    torch.library.opcheck(operators.conv_relevance, (*operands, key, *geometry, backend))
