"""The library's product with one pointwise kernel, in place of a fused kernel."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from layer_support import LAYERS, check, name

from relprop import kernels
from relprop.graph.maps import Conv, Dense
from relprop.rules import AlphaBeta, Epsilon, Gamma, LinearRule, ZPlus
from tables import Layer, pads


@pytest.mark.parametrize(
    ("rule", "layout"),
    [
        (Epsilon(1e-2), "contiguous"),
        (ZPlus(), "channels last"),
        (AlphaBeta(2, 1), "sliced"),
        (AlphaBeta(2, 1), "channels last"),
        (Gamma(), "contiguous"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "layer",
    [
        LAYERS[0],
        LAYERS[2],
        Layer("conv2d strided", Conv((2, 3), pads(1, 0), (1, 1)), (2, 3, 9, 7), (5, 3, 3, 2)),
        Layer("conv2d uneven", Conv((2, 1), ((1, 2), (0, 1)), (1, 1)), (2, 3, 6, 5), (2, 3, 3, 3)),
    ],
    ids=name,
)
def test_library_product_with_a_pointwise_kernel(
    layer: Layer, rule: LinearRule, layout: str, launches: Counter[str]
) -> None:
    check(layer, rule, layout, nonnegative=True, tile="library")
    launches.pop("modified_weights", None)
    assert launches == {"product_contraction": 1, "quotient": 1, "product_adjoint": 1}


@pytest.mark.parametrize("upper", [Epsilon(1e-2), AlphaBeta(2, 1)], ids=name)
@pytest.mark.parametrize("lower", [Epsilon(1e-2), AlphaBeta(2, 1, conserve=True)], ids=name)
def test_library_adjoint_takes_the_quotient_of_the_layer_below(
    lower: LinearRule, upper: LinearRule
) -> None:
    conv = Conv((1, 1), pads(1, 1), (1, 1))
    for layer, shape, w in [(Dense(), (3, 7), (7, 7)), (conv, (2, 4, 5, 3), (4, 4, 3, 3))]:
        weight, b = torch.randn(w), torch.randn(w[0])
        below = kernels.contraction(
            layer, lower, torch.randn(shape), weight, b, activation="relu", rectified=True
        )
        assert below.y is not None
        above = kernels.contraction(layer, upper, below.y, weight, None, nonnegative=True)
        assert above.y is not None
        s = kernels.quotient(above, torch.randn(2, *above.y.shape))
        under = kernels.below(below, above.a.shape)
        fused = kernels.adjoint(above, s, lower=under)
        found = kernels.adjoint(above, s, lower=under, tile="library")
        torch.testing.assert_close(found, fused, rtol=1e-4, atol=1e-4 * fused.abs().max().item())
