"""Where Captum's LRP means the same rule, it gives the same numbers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import rules
from relprop.functional import conv_relevance, linear_relevance

captum = pytest.importorskip("captum.attr", reason="Captum is not installed")
peer = pytest.importorskip("captum.attr._utils.lrp_rules", reason="Captum is not installed")

EPSILON = 1e-9
TARGET = 1


class Net(nn.Module):
    """Convolution, ReLU, dense: the rule under test is the convolution's."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=bias)
        self.relu = nn.ReLU()
        self.dense = nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.relu(self.conv(x)).flatten(1))  # type: ignore[no-any-return]


def _captum(net: Net, rule: Any, x: Tensor) -> Tensor:
    net.conv.rule = rule
    net.dense.rule = peer.EpsilonRule(EPSILON)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result: Tensor = captum.LRP(net).attribute(x.clone(), target=TARGET)
    return result


def _ours(net: Net, rule: rules.LinearRule, x: Tensor, backend: str) -> Tensor:
    pre = net.conv(x)
    hidden = pre.relu().flatten(1)
    output = net.dense(hidden)
    start = torch.zeros_like(output)
    start[:, TARGET] = output[:, TARGET]
    epsilon = rules.Epsilon(EPSILON)
    dense = net.dense
    r = linear_relevance(hidden, dense.weight, dense.bias, start, epsilon, backend=backend)
    return conv_relevance(
        x,
        net.conv.weight,
        net.conv.bias,
        r.view_as(pre),
        rule,
        stride=2,
        padding=1,
        backend=backend,
    )


CASES = {
    "epsilon": (rules.Epsilon(EPSILON), lambda: peer.EpsilonRule(EPSILON), True, False),
    "epsilon 0.1": (rules.Epsilon(0.1), lambda: peer.EpsilonRule(0.1), True, False),
    # Captum strengthens positive weights alone: the same where inputs and outputs are positive;
    # ReLU lets nothing reach the other outputs.  It leaves the bias as it is, hence none here.
    "gamma": (rules.Gamma(0.5, EPSILON), lambda: peer.GammaRule(0.5), False, True),
    "gamma, no bias": (
        rules.Gamma(0.5, EPSILON, zero_params="bias"),
        lambda: peer.GammaRule(0.5, set_bias_to_zero=True),
        True,
        True,
    ),
    "alpha1 beta0, no bias": (
        rules.ZPlus(EPSILON, zero_params="bias"),
        lambda: peer.Alpha1_Beta0_Rule(set_bias_to_zero=True),
        True,
        True,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", ["aten", "reference"])
def test_same_numbers(case: str, backend: str) -> None:
    ours, rule, bias, nonnegative = CASES[case]
    net = Net(bias).double()
    x = torch.randn(2, 2, 7, 5).double()
    x = x.abs() if nonnegative else x
    found = _ours(net, ours, x, backend)
    expected = _captum(net, rule(), x)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-7, atol=1e-9)


def test_identity() -> None:
    layer = nn.Linear(4, 4).double()
    layer.rule = peer.IdentityRule()  # type: ignore[assignment]
    x = torch.randn(3, 4).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = captum.LRP(nn.Sequential(layer)).attribute(x.clone(), target=TARGET)
    output = layer(x)
    start = torch.zeros_like(output)
    start[:, TARGET] = output[:, TARGET]
    found = linear_relevance(x, layer.weight, layer.bias, start, rules.Pass())
    torch.testing.assert_close(found, expected.detach())
