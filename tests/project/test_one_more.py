"""One more of each kind of thing, as CONTRIBUTING.md says: a toy registered where a real one goes.

Every toy lies in as many places as a real one takes files; the registries are put back afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import relprop
from plans import Function, passed, recorded
from relprop import kernels, rules
from relprop.composites import Composite
from relprop.composites import selectors as kinds
from relprop.functional import linear_relevance
from relprop.graph import spellings
from relprop.operations import base
from relprop.rules.terms import IDENTITY, POSITIVE, ZERO


@dataclass(frozen=True)
class Upward(rules.LinearRule):
    """Positive weights alone, whatever the sign of the input."""

    def terms(self) -> tuple[rules.Group, ...]:
        return (rules.Group((rules.Term(IDENTITY, POSITIVE),), bias=ZERO),)


@pytest.mark.parametrize("backend", ["aten", "reference"])
def test_a_rule_is_its_terms(backend: str) -> None:
    # z = (1, -4), s = (10, -3.5); positive weights into input 0: 3; into input 1: 1 and 2
    w = torch.tensor([[3.0, 1.0], [-1.0, 2.0]]).double()
    x, r = torch.tensor([1.0, -2.0]).double(), torch.tensor([10.0, 14.0]).double()
    found = linear_relevance(x, w, None, r, Upward(0), backend=backend)
    assert_close(found, torch.tensor([30.0, -6.0]).double(), rtol=1e-14, atol=0)


def test_a_rule_is_a_program_of_the_kernels() -> None:
    program = kernels.compile_rule(Upward(0.25))
    assert program.weights[0] == POSITIVE and program.mode == "one" and program.epsilon == 0.25


def test_a_composite_takes_the_rule_by_a_kind_of_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3).double()
    composite = Composite(defaults=[("linear", Upward(1e-3))])
    found, expected = (
        relprop.Explainer(model, composite, backend=backend).explain(x, target=0).relevance
        for backend in ("aten", "reference")
    )
    assert found.abs().max() > 1e-3
    assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two operations that relprop does not know: twice(x) and tenth(x)."""
    monkeypatch.setattr(base, "_OPERATIONS", dict(base._OPERATIONS))
    monkeypatch.setattr(spellings, "_SPELLINGS", dict(spellings._SPELLINGS))
    monkeypatch.setattr(kinds, "_RULES_OF_KIND", dict(kinds._RULES_OF_KIND))
    library = torch.library.Library("relprop_toys", "DEF")
    for name, factor in (("twice", 2.0), ("tenth", 0.1)):
        library.define(f"{name}(Tensor x) -> Tensor")
        library.impl(name, _scaled(factor), "CompositeExplicitAutograd")
    yield torch.ops.relprop_toys
    library._destroy()


def _scaled(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x * factor


def test_a_spelling_is_one_entry(toys: Any) -> None:
    def spell(graph: Any, node: Any, fixed: Any) -> list[Any]:
        function = torch.ops.aten.mul.Tensor
        return [replace(node, op="mul", function=function, args=(node.args[0], 2.0))]

    spellings._SPELLINGS["twice"] = spell
    x, start = torch.randn(3, 5).double(), torch.randn(3, 5).double()
    model = Function(lambda x: toys.twice(x))
    output, found = passed(recorded(model, x), model, x, start)
    assert_close(output, 2 * x, rtol=1e-14, atol=0)
    assert_close(found, start, rtol=1e-14, atol=0)


def test_an_operation_is_one_class(toys: Any) -> None:
    @base.register("tenth")
    class Tenth(base.Operation):
        """Hands on a tenth of what it is given."""

        kind, carry = "leak", "a tenth"

        def save(self, step: Any, values: Mapping[str, Any], out: Tensor) -> Any:
            return None

        def relevance(self, step: Any, saved: Any, r: Tensor, engine: Any) -> Sequence[Tensor]:
            return [r / 10]

    x, start = torch.randn(3, 5).double(), torch.randn(3, 5).double()
    model = Function(lambda x: toys.tenth(x))
    output, found = passed(recorded(model, x), model, x, start)
    assert_close(output, x / 10, rtol=1e-14, atol=0)
    assert_close(found, start / 10, rtol=1e-14, atol=0)


def test_a_kind_of_layer_is_one_entry_of_the_rules_it_takes(toys: Any) -> None:
    kinds._RULES_OF_KIND["leak"] = (rules.Norm,)
    assert kinds.fits(rules.Norm(), "leak") and not kinds.fits(rules.Pass(), "leak")
    assert kinds.allowed_rules("leak") == "Norm"
