"""Rules named as Zennit's give Zennit's numbers, on every kind of linear layer, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relprop import rules
from relprop.backends.reference import linear as reference
from relprop.functional import conv_relevance, linear_relevance

zennit = pytest.importorskip("zennit.rules", reason="Zennit is not installed")

LAYERS: dict[str, tuple[type[nn.Module], dict[str, Any], tuple[int, ...]]] = {
    "linear": (nn.Linear, {"in_features": 7, "out_features": 5}, (3, 7)),
    "linear time": (nn.Linear, {"in_features": 5, "out_features": 3}, (2, 4, 5)),
    "conv1d": (nn.Conv1d, {"kernel_size": 3, "padding": 1}, (2, 4, 9)),
    "conv1d stride": (nn.Conv1d, {"kernel_size": 2, "stride": 3}, (2, 4, 8)),
    "conv1d same": (nn.Conv1d, {"kernel_size": 4, "padding": "same"}, (1, 4, 7)),
    "conv2d": (nn.Conv2d, {"kernel_size": 3, "padding": 1}, (2, 4, 5, 7)),
    "conv2d stride": (nn.Conv2d, {"kernel_size": (3, 2), "stride": (2, 3)}, (2, 4, 7, 8)),
    "conv2d dilation": (nn.Conv2d, {"kernel_size": 2, "dilation": (2, 3)}, (1, 4, 5, 6)),
    "conv2d groups": (nn.Conv2d, {"kernel_size": 3, "groups": 2, "padding": 2}, (2, 4, 4, 3)),
    "conv2d depthwise": (nn.Conv2d, {"kernel_size": 3, "groups": 4, "padding": 1}, (1, 4, 4, 5)),
    "conv3d": (nn.Conv3d, {"kernel_size": (2, 3, 2), "padding": (0, 1, 1)}, (1, 4, 3, 4, 2)),
    "transposed1d": (
        nn.ConvTranspose1d,
        {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
        (2, 4, 5),
    ),
    "transposed2d": (
        nn.ConvTranspose2d,
        {"kernel_size": (3, 2), "stride": (2, 1), "output_padding": (1, 0)},
        (2, 4, 3, 4),
    ),
    "transposed2d gaps": (nn.ConvTranspose2d, {"kernel_size": 2, "stride": 3}, (1, 4, 3, 2)),
    "transposed2d groups": (
        nn.ConvTranspose2d,
        {"kernel_size": 3, "groups": 2, "dilation": 2, "padding": 1},
        (1, 4, 3, 3),
    ),
    "transposed3d": (nn.ConvTranspose3d, {"kernel_size": 2, "stride": (2, 1, 2)}, (1, 4, 2, 3, 2)),
}

# The bounds are float32 numbers: Zennit rounds a bound to the default dtype, relprop does not.
RULES: dict[str, tuple[rules.LinearRule, Any]] = {
    "epsilon": (rules.Epsilon(), lambda: zennit.Epsilon()),
    "epsilon 0.25": (rules.Epsilon(0.25), lambda: zennit.Epsilon(0.25)),
    "epsilon, no bias": (
        rules.Epsilon(zero_params="bias"),
        lambda: zennit.Epsilon(zero_params="bias"),
    ),
    "z+": (rules.ZPlus(), lambda: zennit.ZPlus()),
    "z+, no bias": (
        rules.ZPlus(1e-3, zero_params="bias"),
        lambda: zennit.ZPlus(1e-3, zero_params="bias"),
    ),
    "alpha2 beta1": (rules.AlphaBeta(), lambda: zennit.AlphaBeta()),
    "alpha1 beta0": (rules.AlphaBeta(1, 0), lambda: zennit.AlphaBeta(1, 0)),
    "alpha1.5 beta0.5, no bias": (
        rules.AlphaBeta(1.5, 0.5, zero_params="bias"),
        lambda: zennit.AlphaBeta(1.5, 0.5, zero_params="bias"),
    ),
    "gamma": (rules.Gamma(), lambda: zennit.Gamma()),
    "gamma 2, no bias": (
        rules.Gamma(2, zero_params="bias"),
        lambda: zennit.Gamma(2, zero_params="bias"),
    ),
    "box": (rules.ZBox(-3.25, 2.75), lambda: zennit.ZBox(-3.25, 2.75)),
    "box, no bias": (
        rules.ZBox(-3.25, 2.75, zero_params="bias"),
        lambda: zennit.ZBox(-3.25, 2.75, zero_params="bias"),
    ),
    "w^2": (rules.WSquare(), lambda: zennit.WSquare()),
    "w^2, no bias": (
        rules.WSquare(zero_params="bias"),
        lambda: zennit.WSquare(zero_params="bias"),
    ),
    "flat": (rules.Flat(), lambda: zennit.Flat()),
}


def _layer(name: str, bias: bool) -> tuple[nn.Module, tuple[int, ...]]:
    kind, options, shape = LAYERS[name]
    if kind is not nn.Linear:
        options = {"in_channels": 4, "out_channels": 8, **options}
    return kind(bias=bias, **options).double(), shape


def _zennit(layer: nn.Module, rule: Any, x: Tensor, relevance: Tensor | None) -> Any:
    handle = rule.register(layer)
    try:
        x = x.clone().requires_grad_()
        output = layer(x)
        relevance = torch.randn_like(output) if relevance is None else relevance
        return torch.autograd.grad(output, x, relevance)[0], relevance
    finally:
        handle.remove()


def _ours(layer: nn.Module, rule: rules.Rule, x: Tensor, r: Tensor, backend: str) -> Tensor:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.Linear):
        return linear_relevance(x, weight, layer.bias, r, rule, backend=backend)
    geometry: dict[str, Any] = {
        name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")
    }
    if "Transpose" in type(layer).__name__:
        geometry.update(transposed=True, output_padding=layer.output_padding)
    return conv_relevance(x, weight, bias, r, rule, backend=backend, **geometry)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", LAYERS)
def test_same_numbers(name: str, rule: str) -> None:
    ours, peer = RULES[rule]
    for bias in (True, False):
        layer, shape = _layer(name, bias)
        for x in (torch.randn(shape).double(), torch.randn(shape).double().relu()):
            expected, relevance = _zennit(layer, peer(), x, None)
            for backend in ("aten", "reference"):
                found = _ours(layer, ours, x, relevance, backend)
                torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-8)


def test_box_by_channel() -> None:
    layer, shape = _layer("conv2d", True)
    low, high = -2 - torch.rand(4, 1, 1).double(), 2 + torch.rand(4, 1, 1).double()
    x = torch.randn(shape).double()
    peer = zennit.ZBox(low.expand(shape), high.expand(shape))
    expected, relevance = _zennit(layer, peer, x, None)
    for backend in ("aten", "reference"):
        found = _ours(layer, rules.ZBox(low, high), x, relevance, backend)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 5), (3, 5)),
        (nn.Conv2d(3, 3, 3, padding=1), (2, 3, 4, 5)),
    ],
    ids=["linear", "conv2d"],
)
def test_pass(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer, x = layer.double(), torch.randn(shape).double()
    expected, relevance = _zennit(layer, zennit.Pass(), x, None)
    assert torch.equal(_ours(layer, rules.Pass(), x, relevance, "aten"), expected)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.AvgPool1d(3, 2, padding=1), (2, 3, 8)),
        (nn.AvgPool2d((2, 3), stride=1), (1, 2, 5, 7)),
        (nn.AvgPool3d(2), (1, 2, 4, 5, 2)),
        (nn.AdaptiveAvgPool2d((3, 2)), (2, 3, 7, 5)),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 2, 3, 4)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
def test_norm(layer: nn.Module, shape: tuple[int, ...], epsilon: float) -> None:
    x = torch.randn(shape).double()
    expected, relevance = _zennit(layer, zennit.Norm(epsilon), x, None)
    found = reference.norm_relevance(layer, x, relevance, epsilon)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-8)
