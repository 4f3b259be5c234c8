"""Every rule on every layer kind against the float64 reference, within a running error bound."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from relprop import kernels, reference
from relprop.errors import InputError
from relprop.maps import Conv, Dense, LinearMap
from relprop.reference import modify
from relprop.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Joint,
    LinearRule,
    WSquare,
    ZBox,
    ZPlus,
)

UNIT = 2.0**-24
UNBOUNDED = 1e30

RULES: list[LinearRule] = [
    Epsilon(1e-2),
    Epsilon(0.0),
    Epsilon(1e-3, zero_params="bias"),
    ZPlus(1e-3),
    ZPlus(zero_params="bias"),
    AlphaBeta(2, 1),
    AlphaBeta(1, 0),
    AlphaBeta(1.4, 0.4, conserve=True),
    Gamma(0.25),
    Gamma(10.0, epsilon=1e-2, zero_params="bias"),
    ZBox(-1.0, 1.5),
    WSquare(),
    Flat(1e-3),
    Joint(channels=(1, 2)),
]


@dataclass(frozen=True)
class Layer:
    """A layer's geometry with the shapes of its input and weight."""

    name: str
    map: LinearMap
    a: tuple[int, ...]
    w: tuple[int, ...]

    @property
    def outputs(self) -> int:
        """Output features."""
        wide = isinstance(self.map, Conv) and self.map.transposed
        return self.w[1] * self.map.groups if wide else self.w[0]  # type: ignore[attr-defined]


def pads(*sizes: int) -> tuple[tuple[int, int], ...]:
    return tuple((size, size) for size in sizes)


LAYERS = [
    Layer("dense", Dense(), (5, 37), (19, 37)),
    Layer("dense one", Dense(), (1, 3), (1, 3)),
    Layer("dense tokens", Dense(), (2, 3, 17), (7, 17)),
    Layer("conv1d", Conv((1,), pads(0), (1,)), (2, 3, 9), (5, 3, 3)),
    Layer("conv1d dilated", Conv((3,), pads(2), (2,)), (2, 3, 13), (2, 3, 3)),
    Layer("conv2d", Conv((1, 1), pads(1, 1), (1, 1)), (2, 3, 7, 5), (5, 3, 3, 3)),
    Layer("conv2d 1x1", Conv((1, 1), pads(0, 0), (1, 1)), (2, 17, 3, 5), (19, 17, 1, 1)),
    Layer("conv2d 1x1 stride 2", Conv((2, 2), pads(0, 0), (1, 1)), (2, 3, 5, 5), (3, 3, 1, 1)),
    Layer("conv2d strided", Conv((2, 3), pads(1, 0), (1, 1)), (2, 3, 9, 7), (5, 3, 3, 2)),
    Layer("conv2d dilated", Conv((1, 2), pads(2, 1), (2, 3)), (1, 2, 9, 8), (3, 2, 3, 2)),
    Layer(
        "conv2d stride = dilation", Conv((2, 2), pads(1, 1), (2, 4)), (1, 2, 9, 11), (3, 2, 3, 3)
    ),
    Layer("conv2d asymmetric", Conv((2, 1), ((1, 2), (0, 1)), (1, 1)), (2, 3, 6, 5), (2, 3, 3, 3)),
    Layer("conv2d grouped", Conv((1, 1), pads(1, 1), (1, 1), 2), (2, 22, 4, 5), (6, 11, 3, 3)),
    Layer("conv2d few a group", Conv((1, 1), pads(1, 0), (1, 1), 2), (2, 4, 5, 4), (6, 2, 3, 3)),
    Layer("depthwise", Conv((1, 1), pads(1, 1), (1, 1), 7), (2, 7, 5, 3), (7, 1, 3, 3)),
    Layer("depthwise strided", Conv((2, 2), pads(1, 1), (1, 1), 3), (2, 3, 7, 5), (6, 1, 3, 3)),
    Layer("conv3d", Conv((2, 1, 1), pads(1, 1, 1), (1, 1, 2)), (1, 3, 4, 5, 5), (2, 3, 3, 2, 3)),
    Layer("transposed 1d", Conv((2,), pads(1), (1,), 1, True, (1,)), (2, 3, 5), (3, 5, 3)),
    Layer(
        "transposed 2d",
        Conv((2, 2), pads(1, 1), (1, 1), 1, True, (1, 0)),
        (2, 3, 4, 5),
        (3, 5, 3, 3),
    ),
    Layer(
        "transposed grouped",
        Conv((3, 1), pads(0, 1), (2, 1), 2, True),
        (1, 4, 3, 4),
        (4, 3, 2, 3),
    ),
]
QUICK = {
    "dense one",
    "dense tokens",
    "conv1d dilated",
    "conv2d 1x1 stride 2",
    "conv2d asymmetric",
    "conv2d few a group",
    "depthwise",
    "conv3d",
    "transposed 1d",
}
KINDS = [
    pytest.param(i, id=layer.name, marks=() if layer.name in QUICK else pytest.mark.slow)
    for i, layer in enumerate(LAYERS)
]
"""All layer kinds; 'make test' takes a covering few."""
LAYOUTS = ["contiguous", "channels last", "sliced", "expanded"]


def guarded(tensor: Tensor, layout: str) -> Tensor:
    """The tensor's values inside a buffer of NaN, in a memory layout."""
    if layout == "sliced":
        buffer = torch.full([size + 2 for size in tensor.shape], float("nan"), dtype=tensor.dtype)
        for axis, size in enumerate(tensor.shape):
            buffer = buffer.narrow(axis, 1, size)
        buffer.copy_(tensor)
        return buffer
    if layout == "expanded":
        return guarded(tensor[:1], "contiguous").expand_as(tensor)
    axes = list(range(tensor.dim()))
    if layout == "channels last" and tensor.dim() > 2:
        axes = [0, *axes[2:], 1]
    values = tensor.permute(axes)
    buffer = torch.full((tensor.numel() + 64,), float("nan"), dtype=tensor.dtype)
    inner = buffer[32 : 32 + tensor.numel()].view(values.shape)
    inner.copy_(values)
    return inner.permute(sorted(range(len(axes)), key=axes.__getitem__))


def operand_unit(dtype: torch.dtype) -> float:
    """Unit roundoff of product operands: s and modified weights are rounded to it on a GPU.

    The interpreter widens every operand to float32.
    """
    if kernels.interpreted() or dtype == torch.float32:
        return 0.0
    return torch.finfo(dtype).eps


def tolerance(
    layer: LinearMap,
    a: Tensor,
    w: Tensor,
    b: Tensor | None,
    r: Tensor,
    rule: LinearRule,
    operand: float = 0.0,
) -> Tensor:
    """What float32 sums may differ by: magnitudes times unit roundoff, through the division.

    Operands themselves may be rounded, by `operand`.

    An output whose z may have either sign, or none, is unbounded, and so is all it reaches.
    """
    length = w[0].numel() + w.numel() // w.shape[1] + 8
    unit = length * UNIT + operand
    bias = torch.zeros(1) if b is None else layer.align(b.abs())
    magnitude = layer.contraction(a.abs(), w.abs()) + bias
    own = layer.contraction(a, w) + (torch.zeros(1) if b is None else layer.align(b))
    result = torch.zeros_like(a)
    for group in rule.groups:
        z, size = torch.zeros_like(own), torch.zeros_like(own)
        for term in group.terms:
            f = modify(term.input, a, layer, rule)
            g = modify(term.weight, w, layer, rule)
            z += layer.contraction(f, g)
            size += layer.contraction(f.abs(), g.abs())
        if b is not None:
            part = layer.align(modify(group.bias, b, layer, rule))
            z, size = z + part, size + part.abs()
        if group.gate is not None:
            gamma = group.terms[0].weight.value
            size = (1 + gamma) * magnitude
        error = unit * size
        denominator = reference.stabilize(z, rule.epsilon).abs()
        s = group.scale * reference.quotient(r, z, rule.epsilon).abs()
        slack = s.abs() * (error / (denominator - error).clamp(min=1e-300) + 4 * UNIT)
        doubtful = (z.abs() <= error) & (error > 0)
        if group.gate is not None:
            closed = own < 0 if group.gate == "positive" else own > 0
            s, slack = s * ~closed, slack * ~closed
            doubtful = (doubtful & ~closed) | (own.abs() <= unit * magnitude)
        slack = torch.where(doubtful, UNBOUNDED, slack) + unit * s.abs()
        for term in group.terms:
            f = modify(term.input, a, layer, rule).abs()
            g = modify(term.weight, w, layer, rule).abs()
            result += f * layer.adjoint(slack, g, a.shape)
    return result


def check(
    layer: Layer,
    rule: LinearRule,
    layout: str,
    *,
    nonnegative: bool = False,
    dtype: torch.dtype = torch.float32,
    targets: int = 2,
    bias: bool = True,
    **options: object,
) -> None:
    """Output and relevance of a layer against float64."""
    a, w = torch.randn(layer.a).to(dtype), torch.randn(layer.w).to(dtype)
    a = guarded(a.relu() if nonnegative else a, layout)
    w = guarded(w, "sliced" if layout == "sliced" else "contiguous")
    b = torch.randn(layer.outputs).to(dtype) if bias else None
    exact = a.double(), w.double(), None if b is None else b.double()
    y = layer.map.contraction(*exact[:2])
    y = y if exact[2] is None else y + layer.map.align(exact[2])
    r = guarded(torch.randn(targets, *y.shape), "contiguous")
    saved = kernels.contraction(
        layer.map,
        rule,
        a,
        w,
        b,
        nonnegative=nonnegative,
        **options,  # type: ignore[arg-type]
    )
    assert saved.y is not None
    size = layer.map.contraction(exact[0].abs(), exact[1].abs())
    size = size if exact[2] is None else size + layer.map.align(exact[2].abs())
    limit = ((w.numel() // min(w.shape[:2]) + 8) * UNIT + operand_unit(dtype)) * size
    assert saved.y.shape == y.shape
    assert ((saved.y.double() - y).abs() <= limit).all()
    s = kernels.quotient(saved, r)
    relevance = kernels.adjoint(saved, s, tile=options.get("tile"))  # type: ignore[arg-type]
    assert relevance.shape == (targets, *a.shape) and relevance.dtype == torch.float32
    for target in range(targets):
        expected = reference.linear_relevance(layer.map, *exact, r[target].double(), rule)
        within = tolerance(layer.map, *exact, r[target].double(), rule, operand_unit(dtype))
        bounded = within < UNBOUNDED * 1e-6
        difference = (relevance[target].double() - expected).abs()
        assert (difference <= within)[bounded].all(), (difference / within)[bounded].max()
        assert relevance[target].isfinite().all()
        if rule.epsilon > 1e-4 and a.numel() > 1:
            assert bounded.double().mean() > 0.5


def name(value: object) -> str:
    return value.name if isinstance(value, Layer) else str(value)


def applies(layer: Layer, rule: LinearRule) -> bool:
    """A joint input needs a channel on either side."""
    features = layer.a[layer.map.feature_axis]
    return not isinstance(rule, Joint) or features > 2


CASES = [(layer, rule) for layer in LAYERS for rule in RULES if applies(layer, rule)]


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_every_rule(rule: LinearRule) -> None:
    check(LAYERS[2], rule, "contiguous")
    check(LAYERS[3], rule, "channels last", nonnegative=True)


@pytest.mark.parametrize("index", KINDS)
def test_every_layer_kind(index: int) -> None:
    layout = LAYOUTS[index % len(LAYOUTS)]
    rule = AlphaBeta(2, 1, epsilon=1e-3)
    check(LAYERS[index], rule, layout, nonnegative=index % 2 == 0, targets=1 + index % 2)


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{a.name}-{b}" for a, b in CASES])
def test_every_rule_on_every_layer(index: int) -> None:
    layer, rule = CASES[index]
    layout = LAYOUTS[index % len(LAYOUTS)]
    check(layer, rule, layout, bias=layout != "sliced", targets=1 if layout == "expanded" else 2)


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{a.name}-{b}" for a, b in CASES])
def test_half_precision_and_nonnegative_inputs(index: int) -> None:
    layer, rule = CASES[index]
    dtype = (torch.bfloat16, torch.float16)[index % 2]
    check(layer, rule, LAYOUTS[(index // 2) % len(LAYOUTS)], nonnegative=True, dtype=dtype)


@pytest.mark.parametrize("rule", [ZPlus(1e-3), AlphaBeta(2, 1), Gamma(), WSquare()], ids=name)
@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[3]], ids=name)
def test_modifying_weights_in_registers(layer: Layer, rule: LinearRule) -> None:
    check(layer, rule, "contiguous", in_registers=True)
    check(layer, rule, "contiguous", in_registers=True, nonnegative=True)


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


GEOMETRIES: dict[str, tuple[LinearMap, tuple[int, ...], tuple[int, ...]]] = {
    # a layer kind with the axes of its input after the batch, and of its weight
    "dense": (Dense(), (13,), (11, 13)),
    "conv1d": (Conv((2,), pads(1), (1,)), (5, 11), (3, 5, 3)),
    "conv2d": (Conv((1, 1), pads(1, 1), (1, 1)), (3, 7, 5), (5, 3, 3, 3)),
    "conv3d": (Conv((1, 2, 1), pads(1, 1, 0), (1, 1, 1)), (3, 3, 5, 3), (2, 3, 3, 3, 1)),
    "transposed": (Conv((2, 1), pads(1, 0), (1, 1), 1, True), (3, 3, 5), (3, 2, 3, 2)),
    "grouped": (Conv((1, 1), pads(1, 1), (1, 1), 3), (9, 5, 3), (6, 3, 3, 3)),
    "depthwise": (Conv((2, 1), pads(1, 1), (1, 1), 5), (5, 7, 3), (5, 1, 3, 3)),
}
SIZES = ["one", "prime", "empty"]
WIDE = [
    (kind, size, rule)
    for kind in GEOMETRIES
    for size in SIZES
    for rule in RULES
    if not isinstance(rule, Joint) or (size == "prime" and kind != "depthwise")
]
COVERING = range(0, len(WIDE), 11)
"""'make test' takes every eleventh: all kinds, sizes, layouts and types, and most rules."""


def sized(kind: str, size: str) -> Layer:
    """A layer of the kind: one of everything, prime numbers, or no sample."""
    linear_map, sample, w = GEOMETRIES[kind]
    if size == "prime":
        return Layer(f"{kind} prime", linear_map, (3, *sample), w)
    if size == "empty":
        return Layer(f"{kind} empty", linear_map, (0, *sample), w)
    if isinstance(linear_map, Conv):  # a single group, a single tap that sees the single position
        axes = linear_map.spatial
        unit = Conv((1,) * axes, pads(*(0,) * axes), (1,) * axes, 1, linear_map.transposed)
        return Layer(f"{kind} one", unit, (1,) * len((0, *sample)), (1,) * len(w))
    return Layer(f"{kind} one", linear_map, (1, 1), (1, 1))


@pytest.mark.parametrize(
    "index",
    [
        pytest.param(i, marks=() if i in COVERING else pytest.mark.slow, id=f"{k}-{s}-{r}")
        for i, (k, s, r) in enumerate(WIDE)
    ],
)
def test_every_rule_kind_and_size(index: int) -> None:
    kind, size, rule = WIDE[index]
    dtype = (torch.float32, torch.bfloat16, torch.float16)[index % 3]
    layout = LAYOUTS[(index // 3) % len(LAYOUTS)]
    check(
        sized(kind, size), rule, layout, nonnegative=index % 2 == 0, dtype=dtype,
        targets=1 + index % 3, bias=index % 5 > 0,
    )  # fmt: skip


MUTANTS = {
    "bias forgotten": lambda a, w, b: (a, w, torch.zeros_like(b)),
    "block dropped": lambda a, w, b: (a * (torch.arange(a.shape[-1]) < 32), w, b),
    "signs swapped": lambda a, w, b: (a, -w, -b),
    "one weight off": lambda a, w, b: (a, w + 1e-2 * (torch.arange(w.shape[-1]) == 3), b),
}


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("rule", [Epsilon(1e-2), ZPlus(), AlphaBeta(2, 1), Gamma()], ids=name)
def test_the_bound_rejects_wrong_results(rule: LinearRule, mutant: str) -> None:
    a, w, b = torch.randn(5, 37).abs(), torch.randn(19, 37), torch.randn(19)
    r = torch.randn(5, 19)
    exact = a.double(), w.double(), b.double()
    expected = reference.linear_relevance(Dense(), *exact, r.double(), rule)
    within = tolerance(Dense(), *exact, r.double(), rule)
    saved = kernels.contraction(Dense(), rule, *MUTANTS[mutant](a, w, b))
    s = kernels.quotient(saved, r[None])
    wrong = kernels.adjoint(saved, s)[0].double()
    if mutant == "signs swapped":
        wrong = -wrong
    assert not ((wrong - expected).abs() <= within).all()


def test_refuses_float64_and_unknown_channels() -> None:
    a, w = torch.randn(2, 3), torch.randn(4, 3)
    with pytest.raises(InputError, match="float64"):
        kernels.contraction(Dense(), Epsilon(), a.double(), w.double(), None)
    with pytest.raises(InputError, match="channels"):
        kernels.contraction(Dense(), Joint(), a, w, None)
