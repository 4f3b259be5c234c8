"""The ATen backend against the naive reference: every rule on every kind of linear layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from relprop import rules
from relprop.backends import LinearCall, get
from relprop.backends.reference import linear as reference
from relprop.graph.maps import Dense, LinearMap
from relprop.operations import arithmetic
from tables import LAYERS, RULES, TOLERANCES, Layer

ATEN, NAIVE = get("aten"), get("reference")

needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="this CPU has no bfloat16 instructions (AVX-512 at least), so medium is float32 here",
)


class Case(NamedTuple):
    """Tensors of one layer."""

    a: Tensor
    w: Tensor
    b: Tensor | None
    r: Tensor


def _case(layer: Layer, nonnegative: bool, biased: bool, k: int = 1) -> Case:
    a, w = torch.randn(layer.a).double(), torch.randn(layer.w).double()
    a = a.relu() if nonnegative else a
    b = torch.randn(layer.outputs).double() if biased else None
    z = layer.map.contraction(a, w)
    return Case(a, w, b, torch.randn(k, *z.shape).double())


def _relevance(backend: Any, call: LinearCall, case: Case, **operands: Tensor) -> Tensor:
    case = case._replace(**operands)
    _, saved = backend.forward(call, case.a, case.w, case.b)
    result: Tensor = backend.relevance(call, saved, case.r)
    return result


def _assert_near(found: Tensor, expected: Tensor, rtol: float = TOLERANCES[torch.float64]) -> None:
    """Elementwise, with the largest relevance as the scale of what may cancel."""
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * scale)


CENTRAL = "dense", "conv2d", "transposed 2d"
"""Layers that meet every rule; each other one meets a quarter of them, the next layer the next."""


def _pairs() -> Iterator[tuple[str, str]]:
    """Names of layers and of rules that the layer can take."""
    for i, layer in enumerate(LAYERS):
        for j, rule in enumerate(RULES):
            if (layer in CENTRAL or (i + j) % 4 == 0) and LAYERS[layer].takes(RULES[rule]):
                yield layer, rule


def _in_turn(*names: str) -> pytest.MarkDecorator:
    """Every rule, on one of the named layers each."""
    pairs = [(names[i % len(names)], rule) for i, rule in enumerate(RULES)]
    return _named(pairs)


def _named(pairs: Iterable[tuple[str, str]]) -> pytest.MarkDecorator:
    pairs = list(pairs)
    values = [(LAYERS[layer], RULES[rule]) for layer, rule in pairs]
    return pytest.mark.parametrize(("layer", "rule"), values, ids=["-".join(p) for p in pairs])


every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


@_named(_pairs())
def test_aten_equals_reference(layer: Layer, rule: rules.LinearRule) -> None:
    for nonnegative, biased, k in [(0, 1, 3), (1, 1, 1), (0, 0, 1), (1, 0, 2)]:
        case = _case(layer, bool(nonnegative), bool(biased), k)
        call = LinearCall(layer.map, rule, bool(nonnegative))
        z, saved = ATEN.forward(call, case.a, case.w, case.b)
        expected_z, naive = NAIVE.forward(call, case.a, case.w, case.b)
        _assert_near(z, expected_z, 1e-13)
        expected = NAIVE.relevance(call, naive, case.r)
        assert torch.isfinite(expected).all()
        _assert_near(ATEN.relevance(call, saved, case.r), expected)


@_in_turn("dense", "conv2d asymmetric", "depthwise, two outputs each", "transposed 2d gaps")
def test_relevance_is_conserved_with_what_is_absorbed(layer: Layer, rule: rules.LinearRule) -> None:
    for nonnegative, biased in [(False, True), (True, False)]:
        a, w, b, r = _case(layer, nonnegative, biased)
        a.flatten()[: a.numel() // 2] = 0
        found = _relevance(ATEN, LinearCall(layer.map, rule, nonnegative), Case(a, w, b, r))
        lost = reference.absorbed(layer.map, a, w, b, r[0], rule)
        scale = found.abs().sum() + lost.abs().sum() + r.abs().sum()
        assert abs(found.sum() + lost.sum() - r.sum()) <= 1e-10 * scale


@_in_turn("dense", "conv2d", "conv2d few a group", "transposed 2d")
def test_float32_stays_within_its_error_bound(layer: Layer, rule: rules.LinearRule) -> None:
    for nonnegative in (False, True):
        case = _case(layer, nonnegative, biased=True)
        case = Case(*(t.float() for t in case if t is not None))
        wide = Case(*(t.double() for t in case if t is not None))
        call = LinearCall(layer.map, rule, nonnegative)
        found = _relevance(ATEN, call, case)
        assert found.dtype is torch.float32
        error = (found.double() - _relevance(NAIVE, call, wide)).abs()
        assert (error <= _error_bound(layer.map, wide, rule, unit=2.0**-24)).all()


def _error_bound(linear_map: LinearMap, case: Case, rule: rules.LinearRule, unit: float) -> Tensor:
    """First-order bound: magnitudes of all products, times what the division by z amplifies."""
    a, w, b, r = case
    fan = w[0].numel() + w.shape[0] + 8
    bound = torch.zeros_like(a)
    for group in rule.groups:
        terms = [
            (
                reference.modify(t.input, a, linear_map, rule),
                reference.modify(t.weight, w, linear_map, rule),
            )
            for t in group.terms
        ]
        z = sum(linear_map.contraction(f, g) for f, g in terms)
        size = sum(linear_map.contraction(f.abs(), g.abs()) for f, g in terms)
        if b is not None:
            part = linear_map.align(reference.modify(group.bias, b, linear_map, rule))
            z, size = z + part, size + part.abs()
        denominator = reference.stabilize(z, rule.epsilon).abs()
        open_ = denominator > 0
        scale = max(abs(group.scale), 1.0)
        s = torch.where(open_, scale * r[0].abs() / denominator, 0.0)
        s = s * (1 + torch.where(open_, size / denominator, 0.0))
        for f, g in terms:
            bound += f.abs() * linear_map.adjoint(s, g.abs(), a.shape)
    return fan * unit * bound


@_in_turn("dense", "conv2d", "depthwise, two outputs each", "conv3d", "transposed 2d")
def test_layout_and_mode_change_nothing(layer: Layer, rule: rules.LinearRule) -> None:
    case = _case(layer, nonnegative=False, biased=True, k=2)
    call = LinearCall(layer.map, rule)
    expected = _relevance(ATEN, call, case)
    for layout in (_sliced, _channels_last):
        moved = Case(layout(case.a), layout(case.w), case.b, _strided(case.r))
        kept = Case(*(t.clone() for t in moved if t is not None))
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            found = _relevance(ATEN, call, moved)
        _assert_near(found, expected, 1e-12)
        for tensor, copy in zip(moved, kept, strict=True):
            assert tensor is not None and torch.equal(tensor, copy)
    row = case.a[:1].expand_as(case.a)
    _assert_near(
        _relevance(ATEN, call, case, a=row), _relevance(ATEN, call, case, a=row.clone()), 1e-12
    )


def _sliced(t: Tensor) -> Tensor:
    """The same values as every second element of a larger tensor full of NaN."""
    host = t.new_full((*t.shape[:-1], 2 * t.shape[-1]), float("nan"))
    host[..., ::2] = t
    return host[..., ::2]


def _channels_last(t: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return t.contiguous(memory_format=formats[t.ndim]) if t.ndim in formats else t.mT.clone().mT


def _strided(r: Tensor) -> Tensor:
    return r.transpose(0, -1).contiguous().transpose(0, -1)


@every_rule
def test_channels_last_stays_channels_last(rule: rules.LinearRule) -> None:
    layer = LAYERS["conv2d"]
    a, w, b, r = (_channels_last(t) if t is not None and t.ndim == 4 else t
                  for t in _case(layer, nonnegative=False, biased=True))  # fmt: skip
    call = LinearCall(layer.map, rule)
    z, saved = ATEN.forward(call, a, w, b)
    assert z.is_contiguous(memory_format=torch.channels_last)
    found = ATEN.relevance(call, saved, _channels_last(r[0]).unsqueeze(0))
    assert found[0].is_contiguous(memory_format=torch.channels_last)


@_in_turn("dense", "conv2d", "conv2d asymmetric", "transposed 2d")
def test_empty_batch(layer: Layer, rule: rules.LinearRule) -> None:
    case = _case(layer, nonnegative=False, biased=True, k=2)
    call = LinearCall(layer.map, rule)
    z, saved = ATEN.forward(call, case.a[:0], case.w, case.b)
    assert z.shape == (0, *case.r.shape[2:])
    assert ATEN.relevance(call, saved, case.r[:, :0]).shape == (2, 0, *case.a.shape[1:])


@every_rule
@pytest.mark.parametrize("backend", [ATEN, NAIVE], ids=["aten", "reference"])
def test_saved_tensors_survive_and_targets_are_independent(
    backend: Any, rule: rules.LinearRule
) -> None:
    layer = LAYERS["conv2d strided"]
    case = _case(layer, nonnegative=False, biased=True, k=3)
    call = LinearCall(layer.map, rule)
    z, saved = backend.forward(call, case.a, case.w, case.b)
    kept = z.clone()
    first = backend.relevance(call, saved, case.r)
    assert torch.equal(backend.relevance(call, saved, case.r), first)
    assert torch.equal(z, kept)
    for k in range(3):
        _assert_near(backend.relevance(call, saved, case.r[k : k + 1])[0], first[k], 1e-12)


@every_rule
def test_cache_serves_other_inputs_and_sizes(rule: rules.LinearRule) -> None:
    layer, cache = LAYERS["conv2d"], {}  # type: ignore[var-annotated]
    case = _case(layer, nonnegative=False, biased=True)
    call = LinearCall(layer.map, rule)
    for a in (case.a, case.a + 1, case.a[..., :4], case.a):
        z, saved = ATEN.forward(call, a, case.w, case.b, cache)
        r = torch.randn(1, *z.shape).double()
        expected = _relevance(NAIVE, call, Case(a, case.w, case.b, r))
        _assert_near(ATEN.relevance(call, saved, r), expected)


@every_rule
def test_all_zero_input_is_finite(rule: rules.LinearRule) -> None:
    for name, nonnegative in product(("dense", "conv2d"), (False, True)):
        layer = LAYERS[name]
        case = _case(layer, nonnegative, biased=False)
        case.a[0] = 0
        call = LinearCall(layer.map, rule, nonnegative)
        found = _relevance(ATEN, call, case)
        assert torch.isfinite(found).all()
        _assert_near(found, _relevance(NAIVE, call, case))


@pytest.mark.parametrize("backend", [ATEN, NAIVE], ids=["aten", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("bias", "sign"), [(-1.0, 1), (-1.0 - 2**-23, -1), (-1.0 + 2**-23, 1), (-2.0, -1), (1.0, 1)]
)
def test_sign_of_the_stabilizer(backend: Any, dtype: torch.dtype, bias: float, sign: int) -> None:
    """z = 1 + bias: zero, just below zero, just above, -1 and 2."""
    a, w, b = torch.ones(1, 1), torch.ones(1, 1), torch.tensor([bias])
    case = Case(*(t.to(dtype) for t in (a, w, b, torch.ones(1, 1, 1))))
    found = _relevance(backend, LinearCall(Dense(), rules.Epsilon(1e-3)), case)
    expected = torch.full((1, 1, 1), 1 / (1 + bias + sign * 1e-3), dtype=dtype)
    torch.testing.assert_close(found, expected)


def test_negative_zero_counts_as_positive() -> None:
    z = torch.tensor([0.0, -0.0, 1e-30, -1e-30])
    assert reference.stabilize(z, 0.5).tolist() == [0.5, 0.5, 0.5, -0.5]
    assert arithmetic.stabilized(z, 0.5).tolist() == [0.5, 0.5, 0.5, -0.5]
    r = torch.ones(4)
    assert arithmetic.divide(r, z, 0.5).tolist() == [2.0, 2.0, 2.0, -2.0]
    assert arithmetic.divide(r, z[:2].repeat(2), 0.0).tolist() == [0.0] * 4
    assert reference.quotient(r, z, 0.5).tolist() == [2.0, 2.0, 2.0, -2.0]
    assert reference.quotient(r, z[:2].repeat(2), 0.0).tolist() == [0.0] * 4


@pytest.mark.parametrize("rule", [rules.Gamma(), rules.Gamma(epsilon=0), rules.Gamma(0.0)])
def test_gamma_carries_nothing_where_z_is_zero(rule: rules.Gamma) -> None:
    a, w = torch.ones(1, 2).double(), torch.tensor([[1.0, -1.0]]).double()
    found = _relevance(ATEN, LinearCall(Dense(), rule), Case(a, w, None, torch.ones(1, 1, 1)))
    assert found.tolist() == [[[0.0, 0.0]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_operands_are_computed_in_float32(dtype: torch.dtype) -> None:
    for rule in RULES.values():
        layer = LAYERS["conv2d"]
        case = Case(*(t.to(dtype) for t in _case(layer, True, True) if t is not None))
        wide = Case(*(t.float() for t in case if t is not None))
        call = LinearCall(layer.map, rule, nonnegative=True)
        found = _relevance(ATEN, call, case)
        assert found.dtype is torch.float32
        _assert_near(found, _relevance(ATEN, call, wide), 1e-6)


def test_float16_does_not_overflow() -> None:
    a, w = torch.ones(1, 2).half(), torch.tensor([[1.0, -1.0]]).half()
    case = Case(a, w, None, torch.full((1, 1, 1), 100.0))
    found = _relevance(ATEN, LinearCall(Dense(), rules.Epsilon(1e-6)), case)
    torch.testing.assert_close(found, torch.tensor([[[1e8, -1e8]]]))


@needs_bfloat16
@pytest.mark.parametrize(
    "rule", ["z+", "alpha2 beta1", "alpha3 beta2, conserving", "w^2", "flat", "box"]
)
def test_medium_precision_has_bfloat16_errors(rule: str) -> None:
    layer = LAYERS["conv2d"]
    case = Case(*(t.float() for t in _case(layer, True, True) if t is not None))
    wide = Case(*(t.double() for t in case if t is not None))
    call = LinearCall(layer.map, RULES[rule], nonnegative=True)
    found = _relevance(ATEN, LinearCall(layer.map, RULES[rule], True, "medium"), case)
    assert found.dtype is torch.float32
    error = (found.double() - _relevance(NAIVE, call, wide)).norm()
    error /= _relevance(NAIVE, call, wide).norm()
    assert error < 2e-2
    assert rule == "flat" or error > 1e-5


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_process_wide_precision_does_not_leak_in(precision: str) -> None:
    case = Case(torch.rand(64, 256), torch.randn(256, 256), None, torch.randn(1, 64, 256))
    call = LinearCall(Dense(), rules.AlphaBeta(), True, precision)
    expected = _relevance(ATEN, call, case)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(_relevance(ATEN, call, case), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_bounds_by_channel_and_by_position() -> None:
    layer = LAYERS["conv2d"]
    case = _case(layer, nonnegative=False, biased=True)
    low = -3 - torch.rand(3, 1, 1).double()
    by_channel = rules.ZBox(low, 3)
    everywhere = rules.ZBox(low.expand(3, 7, 5), torch.full((7, 5), 3.0))
    expected = _relevance(NAIVE, LinearCall(layer.map, everywhere), case)
    assert not torch.allclose(
        expected, _relevance(NAIVE, LinearCall(layer.map, rules.ZBox(-3, 3)), case), rtol=1e-3
    )
    for rule in (by_channel, everywhere):
        _assert_near(_relevance(ATEN, LinearCall(layer.map, rule), case), expected)
        _assert_near(_relevance(NAIVE, LinearCall(layer.map, rule), case), expected)


def test_reference_works_in_inference_mode_on_inference_tensors() -> None:
    with torch.inference_mode():
        case = _case(LAYERS["conv2d"], False, True)
        rule = rules.Gamma()
        found = reference.linear_relevance(
            LAYERS["conv2d"].map, case.a, case.w, case.b, case.r[0], rule
        )
    assert found.shape == case.a.shape and not found.requires_grad


@needs_bfloat16
@pytest.mark.parametrize(("rows", "exact"), [(3, True), (63, True), (64, False)])
def test_medium_precision_leaves_products_of_few_rows_in_float32(rows: int, exact: bool) -> None:
    """Bringing the weight to bfloat16 would cost more than the product; a frozen one has it."""
    a, w = torch.rand(rows, 40), torch.randn(30, 40)
    call = LinearCall(Dense(), rules.Epsilon(), precision="medium")
    z = torch.nn.functional.linear(a, w)

    def error(*cache: dict[str, Any]) -> float:
        return float((ATEN.forward(call, a, w, None, *cache)[0] - z).norm() / z.norm())

    assert (error() < 1e-6) == exact
    assert error({}) > 1e-4
