"""Compiled kernels, their PTX executed: every kernel file, rule, type and precision.

Each result is the float64 reference's within the running error bound.  `make ptx`.
"""

from __future__ import annotations

from typing import Any

import pytest
import test_plan
import test_pool
import test_recurrent
import test_recurrent_models
import torch
from layer_support import check, guarded

from relprop import kernels
from relprop.backends.reference import linear as reference
from relprop.graph.maps import Conv, Dense
from relprop.rules import AlphaBeta, Epsilon, Flat, Gamma, LinearRule, WSquare, ZBox, ZPlus
from tables import KERNELS_LAYERS, Layer, pads

RULES: dict[str, LinearRule] = {
    "epsilon": Epsilon(1e-2),
    "z+": ZPlus(1e-3),
    "alphabeta": AlphaBeta(2, 1, epsilon=1e-3),
    "gamma": Gamma(0.25),
    "zB": ZBox(-1.0, 1.5),
    "w2": WSquare(),
}
FORMATS = {
    "float32": (torch.float32, "highest"),
    "float32 high": (torch.float32, "high"),
    "float32 medium": (torch.float32, "medium"),
    "bfloat16": (torch.bfloat16, "highest"),
    "float16": (torch.float16, "highest"),
}
SAME = Conv((1, 1), pads(1, 1), (1, 1))
LAYERS = {
    # even: whole rows by cp.async, wgmma; odd: element by element
    "dense": [
        Layer("even", Dense(), (70, 144), (80, 144)),
        Layer("odd", Dense(), (67, 45), (71, 45)),
        Layer("tokens", Dense(), (2, 3, 17), (7, 17)),
    ],
    "conv": [
        Layer("even", SAME, (2, 32, 9, 7), (48, 32, 3, 3)),
        Layer("odd", Conv((2, 1), pads(1, 0), (1, 2)), (2, 3, 9, 7), (5, 3, 3, 2)),
        KERNELS_LAYERS["conv2d 1x1"],
    ],
}
KINDS = (
    "depthwise", "depthwise strided", "conv2d grouped", "transposed 2d", "conv1d dilated",
    "conv3d", "conv2d few a group", "conv2d stride = dilation",
)  # fmt: skip
MATRIX = [(kind, rule, name) for kind in LAYERS for name in FORMATS for rule in RULES]
both = pytest.mark.ptx(80, 90)
hopper = pytest.mark.ptx(90)


def marked(cases: list[Any], some: int) -> list[Any]:
    """Every so many-th of the cases for both architectures, the others for one."""
    return [
        pytest.param(
            *case, marks=hopper if number % some else both, id="-".join(map(str, case))
        )
        for number, case in enumerate(cases)
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "rule", "name"), marked(MATRIX, 5))
def test_every_rule_and_format(kind: str, rule: str, name: str) -> None:
    dtype, precision = FORMATS[name]
    number = MATRIX.index((kind, rule, name))
    layer = LAYERS[kind][(number + number // 6) % 3]
    layout = "channels last" if number % 2 else "contiguous"
    nonnegative = rule in ("z+", "alphabeta") and number % 4 < 3
    check(
        layer, RULES[rule], layout,
        dtype=dtype, precision=precision, nonnegative=nonnegative, targets=1 + number % 2,
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), marked(list(zip(KINDS, 2 * list(FORMATS))), 4))
def test_every_kind_of_layer(kind: str, name: str) -> None:
    dtype, precision = FORMATS[name]
    rule = list(RULES)[KINDS.index(kind) % len(RULES)]
    check(KERNELS_LAYERS[kind], RULES[rule], "contiguous", dtype=dtype, precision=precision)


@hopper
def test_flat() -> None:
    layer, rule = KERNELS_LAYERS["conv2d asymmetric"], Flat(1e-3)
    a, w, b = torch.randn(layer.a), torch.randn(layer.w), torch.randn(layer.outputs)
    y = layer.map.contraction(a, w)
    r = torch.randn(1, *y.shape)
    found = kernels.flat_relevance(layer.map, rule, guarded(a, "channels last"), w, r)
    exact = a.double(), w.double(), b.double(), r[0].double()
    expected = reference.linear_relevance(layer.map, *exact, rule)
    torch.testing.assert_close(found[0].double(), expected, rtol=2e-6, atol=2e-6)


POOLS = [
    ("max", test_pool.MAX_CASES[3], torch.float32),
    ("max", test_pool.MAX_CASES[2], torch.bfloat16),
    ("average", test_pool.AVERAGE_CASES[3], torch.float32),
    ("average", test_pool.AVERAGE_CASES[4], torch.float16),
]


@pytest.mark.parametrize(("name", "case", "dtype"), POOLS, ids=str)
@both
def test_pooling(name: str, case: Any, dtype: torch.dtype) -> None:
    tests = {
        "max": test_pool.test_max_pool_first_of_equal_elements,
        "average": test_pool.test_average_pool,
    }
    tests[name](case, "channels last", dtype)


@hopper
def test_pooling_to_a_size_and_resampling() -> None:
    test_pool.test_adaptive_average_pool((2, 3, 7, 5), [3, 4], "contiguous", torch.float32)
    test_pool.test_linear_resampling(((1, 2, 4, 3), (7, 5), False, None), "sliced", torch.float32)


@hopper
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_residual_sum(dtype: torch.dtype) -> None:
    test_pool.test_residual_split((2, 3, 5, 7), "sliced", dtype)


SCANS = [
    ("lstm", "held", "high"),
    ("lstm", "streamed", "highest"),
    ("lstm", "stepped", "highest"),
    ("gru", "held", "high"),
    ("gru", "streamed", "highest"),
    ("rnn_tanh", "stepped", "highest"),
]


@pytest.mark.parametrize(("kind", "form", "precision"), marked(SCANS, 3))
def test_recurrent_layers(kind: str, form: str, precision: str) -> None:
    case = test_recurrent.Case(kind, 4, 3, 19, ways=2, targets=2, lengths=[4, 1, 3])
    test_recurrent.assert_equal(case, test_recurrent.form(form, 19), precision)


@pytest.mark.parametrize("method", ["lrp_alpha2_beta1", "epsilon_plus"])
@both
def test_a_small_cnn_by_the_public_interface(method: str) -> None:
    model, x = test_plan.Residual().eval(), torch.randn(2, 2, 6, 6)
    found = test_plan.explained(model, x, method, "triton")
    expected = test_plan.explained(model, x, method, "reference")
    limit = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=limit)


@hopper
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_recurrent_network_by_the_public_interface(kind: str) -> None:
    options = {"num_layers": 2, "bidirectional": True} if kind == "lstm" else {}
    tokens = torch.randint(0, 11, (3, 4))
    test_recurrent_models.assert_reference(
        test_recurrent_models.Words(kind, "state", **options), tokens
    )
