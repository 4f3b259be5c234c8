"""Every rule on every layer kind against the float64 reference, within a running error bound."""

from __future__ import annotations

import pytest
import torch
from layer_support import DTYPES, KINDS, LAYERS, LAYOUTS, check, check_all, name, tolerance

from relprop import kernels
from relprop.backends.reference import linear as reference
from relprop.graph.maps import Conv, Dense, LinearMap
from relprop.rules import AlphaBeta, Epsilon, Gamma, Joint, LinearRule, ZPlus
from tables import KERNELS_RULES as RULES
from tables import Layer, pads

CASES = [(layer, rule) for layer in LAYERS for rule in RULES if layer.takes(rule)]


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


Shapes = tuple[tuple[int, ...], tuple[int, ...]]
GEOMETRIES: dict[str, tuple[LinearMap, Shapes, Shapes]] = {
    # a layer kind with the axes of its input after the batch, and of its weight: prime and odd
    "dense": (Dense(), ((13,), (11, 13)), ((9, 63), (35, 63))),
    "conv1d": (Conv((2,), pads(1), (1,)), ((5, 11), (3, 5, 3)), ((9, 15), (21, 9, 3))),
    "conv2d": (
        Conv((1, 1), pads(1, 1), (1, 1)),
        ((3, 7, 5), (5, 3, 3, 3)),
        ((9, 5, 9), (21, 9, 1, 3)),
    ),
    "conv3d": (
        Conv((1, 2, 1), pads(1, 1, 0), (1, 1, 1)),
        ((3, 3, 5, 3), (2, 3, 3, 3, 1)),
        ((9, 1, 9, 3), (15, 9, 1, 3, 1)),
    ),
    "transposed": (
        Conv((2, 1), pads(1, 0), (1, 1), 1, True),
        ((3, 3, 5), (3, 2, 3, 2)),
        ((9, 3, 9), (9, 15, 3, 1)),
    ),
    "grouped": (
        Conv((1, 1), pads(1, 1), (1, 1), 3),
        ((9, 5, 3), (6, 3, 3, 3)),
        ((27, 3, 9), (15, 9, 1, 3)),
    ),
    "depthwise": (
        Conv((2, 1), pads(1, 1), (1, 1), 5),
        ((5, 7, 3), (5, 1, 3, 3)),
        ((5, 5, 9), (15, 1, 3, 1)),
    ),
}
SIZES = ["one", "prime", "odd", "empty"]
WIDE = [
    (kind, size, rule)
    for kind in GEOMETRIES
    for size in SIZES
    for rule in RULES
    if not isinstance(rule, Joint) or (size in ("prime", "odd") and kind != "depthwise")
]
COVERING = range(0, len(WIDE), 11)
"""'make test' takes every eleventh: all kinds, sizes, layouts and types, and most rules."""


def sized(kind: str, size: str) -> Layer:
    """A layer of the kind: one of everything, prime numbers, odd ones, or no sample."""
    linear_map, prime, odd = GEOMETRIES[kind]
    sample, w = odd if size == "odd" else prime
    if size != "one":
        batch = {"prime": 3, "odd": 1, "empty": 0}[size]
        return Layer(f"{kind} {size}", linear_map, (batch, *sample), w)
    if isinstance(linear_map, Conv):  # a single group, a single tap that sees the single position
        axes = linear_map.spatial
        unit = Conv((1,) * axes, pads(*(0,) * axes), (1,) * axes, 1, linear_map.transposed)
        return Layer(f"{kind} one", unit, (1,) * len((0, *sample)), (1,) * len(w))
    return Layer(f"{kind} one", linear_map, (1, 1), (1, 1))


@pytest.mark.parametrize("index", COVERING, ids=["{}-{}-{}".format(*WIDE[i]) for i in COVERING])
def test_some_rules_kinds_and_sizes(index: int) -> None:
    kind, size, rule = WIDE[index]
    turn = index // COVERING.step
    check(
        sized(kind, size), rule, LAYOUTS[turn // 3 % len(LAYOUTS)],
        nonnegative=turn % 2 == 0, dtype=DTYPES[turn % 3], targets=1 + turn % 3, bias=turn % 5 > 0,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(WIDE)), ids=["{}-{}-{}".format(*c) for c in WIDE])
def test_every_rule_kind_and_size_in_every_layout_and_type(index: int) -> None:
    kind, size, rule = WIDE[index]
    check_all(
        sized(kind, size), rule,
        nonnegative=index % 2 == 0, targets=1 + index % 3, bias=index % 5 > 0,
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
