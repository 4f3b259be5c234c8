"""Layers below a ReLU, and convolutions with their pointwise work fused, against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from relprop import rules
from relprop.backends import LinearCall, get, onednn, products
from relprop.maps import Conv, Dense, LinearMap

ATEN, NAIVE = get("aten"), get("reference")

RULES = {
    "epsilon": rules.Epsilon(),
    "epsilon, no bias": rules.Epsilon(0.1, zero_params="bias"),
    "lrp-0": rules.Epsilon(0),
    "z+": rules.ZPlus(),
    "z+, epsilon 0": rules.ZPlus(epsilon=0),
    "z+, no bias": rules.ZPlus(0.2, zero_params="bias"),
    "alpha2 beta1": rules.AlphaBeta(),
    "alpha3 beta2 epsilon 0.3": rules.AlphaBeta(3, 2, epsilon=0.3),
    "alpha2 beta1, conserving": rules.AlphaBeta(conserve=True),
    "alpha2 beta1, no bias": rules.AlphaBeta(zero_params="bias"),
    "alpha2 beta1, epsilon 0": rules.AlphaBeta(epsilon=0),
    "gamma": rules.Gamma(),
    "gamma, no bias": rules.Gamma(zero_params="bias"),
    "box": rules.ZBox(-3, 2.5),
    "w^2": rules.WSquare(),
    "flat": rules.Flat(),
}


def _conv(padding: Any = 0, stride: Any = 1, dilation: int = 1, groups: int = 1) -> Conv:
    stride = (stride, stride) if isinstance(stride, int) else stride
    padding = padding if isinstance(padding, tuple) else ((padding, padding),) * 2
    return Conv(stride, padding, (dilation, dilation), groups)


LAYERS: dict[str, tuple[LinearMap, tuple[int, ...], tuple[int, ...]]] = {
    "dense": (Dense(), (3, 7), (5, 7)),
    "3x3": (_conv(1), (2, 3, 5, 6), (4, 3, 3, 3)),
    "1x1": (_conv(), (2, 5, 4, 3), (3, 5, 1, 1)),
    "3x2, no padding": (_conv(), (1, 3, 6, 5), (4, 3, 3, 2)),
    "dilation": (_conv(2, dilation=2), (2, 3, 7, 6), (4, 3, 3, 3)),
    "padding beyond the kernel": (_conv(3), (2, 2, 3, 4), (3, 2, 2, 2)),
    "stride": (_conv(1, stride=2), (2, 3, 7, 5), (4, 3, 3, 3)),
    "one-sided padding": (_conv(((0, 1), (1, 0))), (2, 3, 4, 4), (4, 3, 2, 2)),
    "groups": (_conv(1, groups=2), (2, 6, 5, 4), (4, 3, 3, 3)),
    "depthwise": (_conv(1, groups=4), (2, 4, 5, 5), (8, 1, 3, 3)),
    "3-d": (Conv((1,) * 3, ((1, 1),) * 3, (1,) * 3), (2, 3, 4, 3, 5), (4, 3, 3, 3, 3)),
    "transposed": (
        Conv((1, 1), ((1, 1),) * 2, (1, 1), transposed=True, output_padding=(0, 0)),
        (2, 3, 4, 5),
        (3, 4, 3, 3),
    ),
}


def _last(t: Tensor) -> Tensor:
    """Features innermost in memory."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return t.contiguous(memory_format=formats[t.ndim]) if t.ndim in formats else t


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fused operations that ran."""
    names: list[str] = []
    original: Callable[..., Tensor] = onednn._convolution

    def counted(*arguments: Any) -> Tensor:
        names.append("mul" if len(arguments) > 4 else "relu")
        return original(*arguments)

    monkeypatch.setattr(onednn, "_convolution", counted)
    return names


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rectified_layers_equal_the_reference(
    layer: tuple[LinearMap, tuple[int, ...], tuple[int, ...]],
    rule: rules.LinearRule,
    nonnegative: bool,
    dtype: torch.dtype,
) -> None:
    linear_map, shape, weight = layer
    a, w = torch.randn(shape).double(), torch.randn(weight).double()
    a = a.relu() if nonnegative else a
    for k, biased in ((1, True), (3, False)):
        features = linear_map.contraction(a, w).shape[linear_map.feature_axis]
        b = torch.randn(features).double() if biased else None
        call = LinearCall(linear_map, rule, nonnegative, rectified=True)
        expected_z, kept = NAIVE.forward(call, a, w, b)
        r = torch.randn(k, *expected_z.shape).double() * (expected_z > 0)
        expected = NAIVE.relevance(call, kept, r)
        operands = [None if t is None else _last(t.to(dtype)) for t in (a, w, b)]
        z, saved = ATEN.forward(call, *operands)  # type: ignore[arg-type]
        before = z.clone()
        found = ATEN.relevance(call, saved, r.to(dtype))
        assert torch.equal(z, before)
        exact = dtype is torch.float64
        for one, other in ((z, expected_z), (found, expected)):
            tolerance = 1e-10 if exact else 2e-4
            scale = other.abs().max().item()
            torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.skipif(not onednn._available(), reason="PyTorch was built without oneDNN")
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (rules.Epsilon(), ["relu", "mul"]),
        (rules.ZPlus(), ["relu", "mul"]),
        (rules.AlphaBeta(), ["relu", "mul", "mul"]),
    ],
)
def test_images_below_a_relu_take_fused_convolutions(
    rule: rules.LinearRule, expected: list[str], served: list[str]
) -> None:
    linear_map, shape, weight = LAYERS["3x3"]
    a, w = _last(torch.rand(shape)), _last(torch.randn(weight))
    call = LinearCall(linear_map, rule, True, rectified=True)
    z, saved = ATEN.forward(call, a, w, torch.randn(4))
    ATEN.relevance(call, saved, _last(torch.rand(z.shape)).unsqueeze(0))
    assert served == expected


@pytest.mark.parametrize("rule", [rules.ZPlus(), rules.AlphaBeta()], ids=str)
def test_activations_round_like_the_library_s(rule: rules.LinearRule) -> None:
    """z+ and -z- are 1e4 times z here: their sum would have lost four digits."""
    a, w = _last(torch.rand(2, 8, 9, 9)), torch.randn(4, 8, 3, 3) / 8
    a[:, 0], w[:, 0] = 1e2, torch.tensor([1e2, -1e2, 0.0])
    call = LinearCall(Conv((1, 1), ((0, 0), (0, 0)), (1, 1)), rule, True, rectified=True)
    z, _ = ATEN.forward(call, a, w, None)
    torch.testing.assert_close(z, torch.nn.functional.conv2d(a, w).relu(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["stride", "one-sided padding", "transposed", "dense"])
def test_other_layers_are_left_to_the_library(name: str, served: list[str]) -> None:
    linear_map, shape, weight = LAYERS[name]
    a, w = _last(torch.rand(shape)), torch.randn(weight)
    call = LinearCall(linear_map, rules.Epsilon(), True)
    z, saved = ATEN.forward(call, a, w, None)
    ATEN.relevance(call, saved, torch.rand(1, *z.shape))
    assert served == []


def test_unserved_operands_are_left_to_the_library(served: list[str]) -> None:
    """Channels outermost; float64; a batch of none."""
    linear_map, shape, weight = LAYERS["3x3"]
    call = LinearCall(linear_map, rules.Epsilon(), True, rectified=True)
    a, w = torch.rand(shape), torch.randn(weight)
    for one, other in ((a, w), (_last(a.double()), w.double()), (_last(a[:0]), w)):
        z, saved = ATEN.forward(call, one, other, None)
        assert ATEN.relevance(call, saved, torch.rand(1, *z.shape).to(z)).shape == (1, *one.shape)
    assert served == []


def test_widened_weights_are_kept_with_the_frozen_ones() -> None:
    linear_map, shape, weight = LAYERS["3x3"]
    call = LinearCall(linear_map, rules.ZPlus(), nonnegative=False)
    a, w, cache = torch.randn(shape), torch.randn(weight), {}  # type: ignore[var-annotated]
    z, saved = ATEN.forward(call, a, w, None, cache)
    ATEN.relevance(call, saved, torch.rand(1, *z.shape))
    wide = cache["widened"]
    assert isinstance(wide, products.Products) and wide.w.shape == (4, 6, 3, 3)
    assert torch.equal(wide.w[:, 3:], -w) and wide.cache
    ATEN.relevance(call, ATEN.forward(call, a, w, None, cache)[1], torch.rand(1, *z.shape))
    assert cache["widened"] is wide


def test_nothing_derived_is_kept_between_the_passes_unless_frozen() -> None:
    linear_map, shape, weight = LAYERS["3x3"]
    call = LinearCall(linear_map, rules.AlphaBeta(), nonnegative=True)
    _, saved = ATEN.forward(call, torch.rand(shape), torch.randn(weight), None)
    assert saved.layer.cache == {} and saved.layer.products.cache == {}
