"""Layers below a ReLU, and convolutions with their pointwise work fused, against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from relprop import rules
from relprop.backends import LinearCall, get
from relprop.backends.aten import onednn, products
from relprop.graph.maps import Conv, LinearMap
from tables import LAYERS, RULES, TOLERANCES, Layer

ATEN, NAIVE = get("aten"), get("reference")

OF_INTEREST = [
    "dense", "conv2d", "conv2d 1x1", "conv2d 3x2, no padding", "conv2d dilation",
    "conv2d padding beyond kernel", "conv2d strided", "conv2d one-sided padding",
    "conv2d few a group", "depthwise, two outputs each", "conv3d, stride 1",
    "transposed 2d, stride 1",
]  # fmt: skip
"""A layer for each condition of a fused convolution."""

CASES = {
    f"{layer}-{rule}": (i + j, LAYERS[layer], RULES[rule])
    for i, layer in enumerate(OF_INTEREST)
    for j, rule in enumerate(RULES)
    if LAYERS[layer].takes(RULES[rule])
}


def _of(name: str) -> tuple[LinearMap, tuple[int, ...], tuple[int, ...]]:
    """Map of a layer, shapes of its input and weight."""
    layer = LAYERS[name]
    return layer.map, layer.a, layer.w


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


@pytest.mark.parametrize(("number", "layer", "rule"), CASES.values(), ids=CASES.keys())
def test_rectified_layers_equal_the_reference(
    number: int, layer: Layer, rule: rules.LinearRule
) -> None:
    """The type and the sign of the input are drawn by the pair's number."""
    dtype = (torch.float32, torch.float64)[number % 2]
    nonnegative = number // 2 % 2 == 0
    a, w = torch.randn(layer.a).double(), torch.randn(layer.w).double()
    a = a.relu() if nonnegative else a
    for k, biased in ((1, True), (3, False)):
        b = torch.randn(layer.outputs).double() if biased else None
        call = LinearCall(layer.map, rule, nonnegative, rectified=True)
        expected_z, kept = NAIVE.forward(call, a, w, b)
        r = torch.randn(k, *expected_z.shape).double() * (expected_z > 0)
        expected = NAIVE.relevance(call, kept, r)
        operands = [None if t is None else _last(t.to(dtype)) for t in (a, w, b)]
        z, saved = ATEN.forward(call, *operands)  # type: ignore[arg-type]
        before = z.clone()
        found = ATEN.relevance(call, saved, r.to(dtype))
        assert torch.equal(z, before)
        tolerance = TOLERANCES[dtype]
        for one, other in ((z, expected_z), (found, expected)):
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
    linear_map, shape, weight = _of("conv2d")
    a, w = _last(torch.rand(shape)), _last(torch.randn(weight))
    call = LinearCall(linear_map, rule, True, rectified=True)
    z, saved = ATEN.forward(call, a, w, torch.randn(len(w)))
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


@pytest.mark.parametrize(
    "name", ["conv2d strided", "conv2d one-sided padding", "transposed 2d, stride 1", "dense"]
)
def test_other_layers_are_left_to_the_library(name: str, served: list[str]) -> None:
    linear_map, shape, weight = _of(name)
    a, w = _last(torch.rand(shape)), torch.randn(weight)
    call = LinearCall(linear_map, rules.Epsilon(), True)
    z, saved = ATEN.forward(call, a, w, None)
    ATEN.relevance(call, saved, torch.rand(1, *z.shape))
    assert served == []


def test_unserved_operands_are_left_to_the_library(served: list[str]) -> None:
    """Channels outermost; float64; a batch of none."""
    linear_map, shape, weight = _of("conv2d")
    call = LinearCall(linear_map, rules.Epsilon(), True, rectified=True)
    a, w = torch.rand(shape), torch.randn(weight)
    for one, other in ((a, w), (_last(a.double()), w.double()), (_last(a[:0]), w)):
        z, saved = ATEN.forward(call, one, other, None)
        assert ATEN.relevance(call, saved, torch.rand(1, *z.shape).to(z)).shape == (1, *one.shape)
    assert served == []


def test_widened_weights_are_kept_with_the_frozen_ones() -> None:
    linear_map, shape, weight = _of("conv2d")
    call = LinearCall(linear_map, rules.ZPlus(), nonnegative=False)
    a, w, cache = torch.randn(shape), torch.randn(weight), {}  # type: ignore[var-annotated]
    z, saved = ATEN.forward(call, a, w, None, cache)
    ATEN.relevance(call, saved, torch.rand(1, *z.shape))
    wide = cache["widened"]
    assert isinstance(wide, products.Products) and wide.w.shape == (5, 6, 3, 3)
    assert torch.equal(wide.w[:, 3:], -w) and wide.cache
    ATEN.relevance(call, ATEN.forward(call, a, w, None, cache)[1], torch.rand(1, *z.shape))
    assert cache["widened"] is wide


def test_nothing_derived_is_kept_between_the_passes_unless_frozen() -> None:
    linear_map, shape, weight = _of("conv2d")
    call = LinearCall(linear_map, rules.AlphaBeta(), nonnegative=True)
    _, saved = ATEN.forward(call, torch.rand(shape), torch.randn(weight), None)
    assert saved.layer.cache == {} and saved.layer.products.cache == {}
