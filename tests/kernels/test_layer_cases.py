"""Linear layers: options, empty tensors, exact cases of quotients, boxes, Flat, refusals."""

from __future__ import annotations

import pytest
import torch
from layer_support import KINDS, LAYERS, check, guarded, name

from relprop import kernels
from relprop.backends.reference import linear as reference
from relprop.errors import InputError
from relprop.graph.maps import Conv, Dense
from relprop.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Joint,
    LinearRule,
    WSquare,
    ZBox,
)
from tables import Layer, pads


@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[7]], ids=name)
def test_many_small_tiles(layer: Layer) -> None:
    tile = kernels.Tile(16, 16, 16, group=2)
    check(layer, AlphaBeta(2, 1, epsilon=1e-3), "contiguous", tile=tile, nonnegative=True)
    check(layer, ZBox(-1, 1), "contiguous", tile=tile)


@pytest.mark.parametrize(
    "layer",
    [
        Layer("no batch", Dense(), (0, 3), (2, 3)),
        Layer("no output", Dense(), (2, 3), (0, 3)),
        Layer("no input", Dense(), (2, 0), (3, 0)),
        Layer("no images", Conv((1, 1), pads(1, 1), (1, 1)), (0, 3, 4, 4), (2, 3, 3, 3)),
    ],
    ids=name,
)
@pytest.mark.parametrize("rule", [Epsilon(1e-2), AlphaBeta(2, 1), Gamma(), WSquare()], ids=name)
def test_empty(layer: Layer, rule: LinearRule) -> None:
    a, w = torch.randn(layer.a), torch.randn(layer.w)
    b = torch.randn(layer.outputs)
    saved = kernels.contraction(layer.map, rule, a, w, b)
    y = layer.map.contraction(a, w) + layer.map.align(b)
    assert saved.y is not None
    torch.testing.assert_close(saved.y, y)
    relevance = kernels.adjoint(saved, kernels.quotient(saved, torch.randn(3, *y.shape)))
    torch.testing.assert_close(relevance, torch.zeros(3, *a.shape))


@pytest.mark.parametrize("z", [0.0, -0.0, 1e-30, -1e-30, 2.0, -2.0])
@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.5])
def test_sign_of_the_stabilizer(z: float, epsilon: float) -> None:
    a, w = torch.tensor([[z]]), torch.ones(1, 1)
    saved = kernels.contraction(Dense(), Epsilon(epsilon), a, w, None)
    s = kernels.quotient(saved, torch.ones(1, 1, 1))
    stabilized = z + epsilon if z >= 0 else z - epsilon
    expected = 0.0 if stabilized == 0 else 1 / stabilized
    torch.testing.assert_close(s.flatten(), torch.tensor([expected]), rtol=1e-6, atol=0)


def test_gamma_gives_nothing_where_the_output_is_zero() -> None:
    a, w = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, -1.0]])
    saved = kernels.contraction(Dense(), Gamma(), a, w, None)
    relevance = kernels.adjoint(saved, kernels.quotient(saved, torch.ones(1, 1, 1)))
    assert torch.equal(relevance, torch.zeros(1, 1, 2))


def test_one_empty_sign_conserves() -> None:
    a, w = torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    rule = AlphaBeta(2, 1, conserve=True)
    saved = kernels.contraction(Dense(), rule, a, w, None)
    relevance = kernels.adjoint(saved, kernels.quotient(saved, torch.tensor([[[4.0, 8.0]]])))
    torch.testing.assert_close(relevance, torch.tensor([[[3.0, 9.0]]]))


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "silu", "gelu"])
@pytest.mark.parametrize("rule", [Epsilon(), AlphaBeta()], ids=name)
def test_activation_of_the_output(rule: LinearRule, activation: str) -> None:
    a, w, b = torch.randn(3, 5), torch.randn(4, 5), torch.randn(4)
    saved = kernels.contraction(Dense(), rule, a, w, b, activation=activation)
    function = getattr(torch.nn.functional, activation)
    torch.testing.assert_close(saved.y, function(torch.nn.functional.linear(a, w, b)))


@pytest.mark.parametrize("epsilon", [1e-3, pytest.param(1e-6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("index", KINDS)
def test_flat_by_counting(index: int, epsilon: float) -> None:
    layer, rule = LAYERS[index], Flat(epsilon)
    a = guarded(torch.randn(layer.a), "channels last")
    w, b = torch.randn(layer.w), torch.randn(layer.outputs)
    y = layer.map.contraction(a, w)
    r = guarded(torch.randn(2, *y.shape), "sliced")
    relevance = kernels.flat_relevance(layer.map, rule, a, w, r)
    for target in range(2):
        exact = a.double(), w.double(), b.double(), r[target].double()
        expected = reference.linear_relevance(layer.map, *exact, rule)
        torch.testing.assert_close(relevance[target].double(), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("bounds", "layout"),
    [("scalars", "contiguous"), ("channels", "channels last"), ("pixels", "channels last")],
)
def test_box_bounds_broadcast(bounds: str, layout: str) -> None:
    shape = {"scalars": (), "channels": (3, 1, 1), "pixels": (3, 6, 5)}[bounds]
    low, high = -1 - torch.rand(shape), 1 + torch.rand(shape)
    layer = Layer("", Conv((2, 1), pads(1, 1), (1, 1)), (2, 3, 6, 5), (4, 3, 3, 3))
    check(layer, ZBox(low, high, epsilon=1e-3), layout)
    tokens = {"scalars": (), "channels": (17,), "pixels": (3, 17)}[bounds]
    low, high = -1 - torch.rand(tokens), 1 + torch.rand(tokens)
    check(LAYERS[2], ZBox(low, high, epsilon=1e-3), layout)


def test_refuses_float64_and_unknown_channels() -> None:
    a, w = torch.randn(2, 3), torch.randn(4, 3)
    with pytest.raises(InputError, match="float64"):
        kernels.contraction(Dense(), Epsilon(), a.double(), w.double(), None)
    with pytest.raises(InputError, match="channels"):
        kernels.contraction(Dense(), Joint(), a, w, None)
