"""Two layers: the quotient of the one below taken in the adjoint of the one above, fused or not."""

from __future__ import annotations

import pytest
import torch
from layer_support import guarded, name

from relprop import kernels
from relprop.graph.maps import Conv, Dense
from relprop.rules import AlphaBeta, Epsilon, Gamma, Joint, LinearRule, WSquare, ZBox, ZPlus
from tables import pads

LOWER = [
    Epsilon(1e-2),
    ZPlus(),
    AlphaBeta(2, 1),
    AlphaBeta(2, 1, conserve=True),
    Gamma(),
    ZBox(-3, 3),
]


@pytest.mark.parametrize("upper", [ZPlus(), AlphaBeta(2, 1), Joint(channels=(1, 3))], ids=name)
@pytest.mark.parametrize("lower", LOWER, ids=name)
def test_fused_quotient_of_the_layer_below(lower: LinearRule, upper: LinearRule) -> None:
    below = kernels.contraction(
        Dense(), lower, torch.randn(3, 5), torch.randn(7, 5), torch.randn(7), activation="relu"
    )
    assert below.y is not None
    above = kernels.contraction(Dense(), upper, below.y, torch.randn(4, 7), torch.randn(4))
    s = kernels.quotient(above, torch.randn(2, 3, 4))
    expected = kernels.quotient(below, kernels.adjoint(above, s))
    fused = kernels.adjoint(above, s, lower=kernels.below(below, above.a.shape))
    torch.testing.assert_close(fused, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("upper", "tile"),
    [(WSquare(), None), (WSquare(), "library"), (Epsilon(), "library"), (ZPlus(), None)],
    ids=name,
)
def test_fused_quotient_by_the_input_itself(upper: LinearRule, tile: str | None) -> None:
    below = kernels.contraction(Dense(), Epsilon(1e-2), torch.randn(3, 5), torch.randn(7, 5), None)
    assert below.y is not None and below.z is not None
    assert below.y.data_ptr() == below.z.data_ptr()
    above = kernels.contraction(Dense(), upper, below.y, torch.randn(4, 7), None)
    s = kernels.quotient(above, torch.randn(2, 3, 4))
    expected = kernels.quotient(below, kernels.adjoint(above, s))
    fused = kernels.adjoint(above, s, lower=kernels.below(below, above.a.shape), tile=tile)
    torch.testing.assert_close(fused, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("lower", [LOWER[0], LOWER[3]], ids=name)
def test_fused_quotient_below_a_convolution(lower: LinearRule) -> None:
    a = guarded(torch.randn(2, 3, 6, 5), "channels last")
    below = kernels.contraction(
        Conv((1, 1), pads(1, 1), (1, 1)), lower, a, torch.randn(4, 3, 3, 3), None, activation="relu"
    )
    assert below.y is not None
    above = kernels.contraction(
        Conv((2, 2), pads(1, 1), (1, 1)),
        AlphaBeta(2, 1),
        below.y,
        torch.randn(5, 4, 3, 3),
        None,
        nonnegative=True,
    )
    assert above.y is not None
    s = kernels.quotient(above, torch.randn(2, *above.y.shape))
    expected = kernels.quotient(below, kernels.adjoint(above, s))
    fused = kernels.adjoint(above, s, lower=kernels.below(below, above.a.shape))
    torch.testing.assert_close(fused, expected, rtol=1e-6, atol=0)
