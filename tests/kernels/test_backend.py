"""The Triton backend behind a whole plan, and which kernels it launches."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

import relprop
from relprop import backends, rules
from relprop.backends import LinearCall
from relprop.errors import InputError
from relprop.graph.maps import Conv, Dense

CONV = Conv((1, 1), ((1, 1), (1, 1)), (1, 1))


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 9, 5),
    ).eval()


@pytest.mark.parametrize(
    "method",
    [
        "lrp_alpha2_beta1",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("lrp_epsilon", "lrp_zplus", "lrp_gamma", "epsilon_plus_flat")
        ),
    ],
)
def test_plan_of_a_small_cnn(method: str, launches: Counter[str]) -> None:
    model, x = small_cnn(), torch.rand(2, 1, 14, 14)
    target = torch.tensor([1, 4])
    explain = relprop.Explainer(model, method, backend="triton")
    found = explain(x, target=target)
    expected = relprop.Explainer(model, method, backend="reference")(x, target=target)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())
    assert launches["conv_contraction"] >= 2 and launches["dense_contraction"] >= 1
    assert launches["conv_adjoint"] == 2 and launches["dense_adjoint"] == 1


@pytest.mark.parametrize(
    ("rule", "contractions"),
    [
        (rules.Epsilon(), 1),
        (rules.ZPlus(), 1),
        (rules.AlphaBeta(), 1),
        (rules.Gamma(), 1),
        (rules.ZBox(-1, 1), 1),
        (rules.WSquare(), 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_launch_a_layer_and_direction(
    rule: rules.LinearRule, contractions: int, launches: Counter[str]
) -> None:
    backend = backends.get("triton")
    call = LinearCall(Conv((2, 2), ((1, 1), (1, 1)), (1, 1)), rule, nonnegative=True)
    a, w, b = torch.rand(2, 3, 6, 6), torch.randn(4, 3, 3, 3), torch.randn(4)
    cache: dict[object, object] = {}
    z, saved = backend.forward(call, a, w, b, cache)
    backend.relevance(call, saved, torch.randn(3, *z.shape))
    launches.pop("modified_weights", None)
    assert launches == {"conv_contraction": contractions, "quotient": 1, "conv_adjoint": 1}
    launches.clear()
    backend.forward(call, a, w, b, cache)
    assert launches == {"conv_contraction": 1}


def test_flat_launches_no_product_of_its_own(launches: Counter[str]) -> None:
    backend = backends.get("triton")
    a, w = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
    z, saved = backend.forward(LinearCall(CONV, rules.Flat()), a, w, None)
    torch.testing.assert_close(z, CONV.contraction(a, w), rtol=1e-5, atol=1e-5)
    launches.clear()
    r = backend.relevance(LinearCall(CONV, rules.Flat()), saved, torch.randn(1, *z.shape))
    assert r.shape == (1, *a.shape)
    assert launches == {"flat_quotient": 1, "conv_adjoint": 1}


def test_float64_is_refused() -> None:
    call = LinearCall(Dense(), rules.Epsilon(), path="head")
    with pytest.raises(InputError, match=r"head: the input is float64.*backend='aten'"):
        backends.get("triton").forward(call, torch.randn(2, 3).double(), torch.randn(4, 3), None)
