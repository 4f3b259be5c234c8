"""Forms of rules in the ATen backend: any rule is evaluated, from its terms alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from relprop import backends, rules
from relprop.backends import LinearCall
from relprop.graph.maps import Dense
from relprop.rules.terms import NEGATIVE
from tables import RULES

LIKE_ALL = [
    "epsilon 0.1", "z+", "alpha3 beta2 epsilon 0.3", "gamma", "gamma 10, no bias", "w^2", "box",
    "flat",
]  # fmt: skip


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("rule", [RULES[name] for name in LIKE_ALL], ids=LIKE_ALL)
def test_a_rule_without_a_form_of_its_own(rule: rules.LinearRule, nonnegative: bool) -> None:
    @dataclass(frozen=True, init=False)
    class Other(type(rule)):  # type: ignore[misc]
        """The same terms under another type, hence evaluated group by group."""

    other = object.__new__(Other)
    for name, value in vars(rule).items():
        object.__setattr__(other, name, value)
    w, b = torch.randn(4, 6).double(), torch.randn(4).double()
    a, r = torch.randn(5, 6).double(), torch.randn(2, 5, 4).double()
    a = a.relu() if nonnegative else a
    found = []
    for each in (rule, other):
        call = LinearCall(Dense(), each, nonnegative=nonnegative)
        z, saved = backends.get("aten").forward(call, a, w, b)
        found.append(backends.get("aten").relevance(call, saved, r))
        assert_close(z, a @ w.T + b)
    assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)


def test_terms_that_are_known_to_be_empty_give_nothing() -> None:
    @dataclass(frozen=True)
    class Inhibition(rules.LinearRule):
        """Negative inputs only."""

        def terms(self) -> tuple[rules.Group, ...]:
            return (rules.Group((rules.Term(NEGATIVE, NEGATIVE),)),)

    call = LinearCall(Dense(), Inhibition(), nonnegative=True)
    a, w, r = torch.rand(5, 6).double(), torch.randn(4, 6).double(), torch.randn(3, 5, 4).double()
    _, saved = backends.get("aten").forward(call, a, w, None)
    assert torch.equal(
        backends.get("aten").relevance(call, saved, r), torch.zeros(3, 5, 6).double()
    )
