"""The ATen backend against the naive reference: every rule on every kind of linear layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from relprop import reference, rules
from relprop.backends import LinearCall, get
from relprop.layers import quotients
from relprop.maps import Conv, Dense, LinearMap

ATEN, NAIVE = get("aten"), get("reference")

needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="this CPU has no bfloat16 instructions (AVX-512 at least), so medium is float32 here",
)


class Geometry(NamedTuple):
    """A layer: its map, and the shapes of input, weight and output features."""

    map: LinearMap
    a: tuple[int, ...]
    w: tuple[int, ...]
    features: int


def _conv(
    a: tuple[int, ...],
    w: tuple[int, ...],
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    output_padding: Any = None,
) -> Geometry:
    n = len(w) - 2

    def each(value: Any) -> tuple[Any, ...]:
        return value if isinstance(value, tuple) else (value,) * n

    pads = tuple(p if isinstance(p, tuple) else (p, p) for p in each(padding))
    transposed = output_padding is not None
    extra = each(output_padding) if transposed else ()
    linear_map = Conv(each(stride), pads, each(dilation), groups, transposed, extra)
    return Geometry(linear_map, a, w, w[1] * groups if transposed else w[0])


GEOMETRIES = {
    "dense": Geometry(Dense(), (3, 7), (5, 7), 5),
    "dense 1x1": Geometry(Dense(), (1, 1), (1, 1), 1),
    "dense time": Geometry(Dense(), (2, 3, 11), (4, 11), 4),
    "conv1d": _conv((2, 3, 11), (4, 3, 3), padding=1),
    "conv1d same, even kernel": _conv((2, 3, 7), (4, 3, 4), padding=((1, 2),)),
    "conv1d stride over the end": _conv((1, 2, 11), (3, 2, 2), stride=4),
    "conv2d": _conv((2, 3, 5, 7), (4, 3, 3, 3), padding=1),
    "conv2d 1x1": _conv((3, 5, 3, 1), (7, 5, 1, 1)),
    "conv2d stride": _conv((2, 3, 7, 8), (4, 3, 3, 2), stride=(2, 3), padding=(1, 0)),
    "conv2d asymmetric": _conv((1, 3, 5, 4), (2, 3, 3, 3), stride=2, padding=((0, 2), (1, 0))),
    "conv2d dilation": _conv((1, 2, 9, 8), (3, 2, 3, 2), dilation=(2, 3), padding=2),
    "conv2d groups": _conv((2, 6, 5, 5), (4, 3, 3, 3), padding=1, groups=2),
    "conv2d depthwise": _conv((2, 4, 5, 5), (8, 1, 3, 3), padding=1, groups=4),
    "conv2d padding beyond kernel": _conv((1, 2, 2, 2), (3, 2, 2, 2), padding=3),
    "conv3d": _conv((1, 2, 3, 4, 5), (3, 2, 2, 3, 2), stride=(1, 2, 1), padding=(1, 0, 1)),
    "conv3d groups": _conv((2, 2, 3, 3, 3), (2, 1, 2, 2, 2), groups=2, dilation=(1, 2, 1)),
    "transposed1d": _conv((2, 3, 5), (3, 4, 3), stride=2, padding=1, output_padding=1),
    "transposed2d": _conv((2, 3, 3, 4), (3, 2, 3, 2), stride=(2, 1), output_padding=(1, 0)),
    "transposed2d gaps": _conv((1, 2, 3, 3), (2, 3, 2, 2), stride=3, output_padding=0),
    "transposed2d dilation, groups": _conv(
        (2, 4, 3, 3), (4, 3, 2, 3), dilation=(3, 1), padding=1, groups=2, output_padding=(2, 0)
    ),
    "transposed3d": _conv(
        (1, 2, 2, 3, 2), (2, 3, 2, 2, 3), stride=(2, 1, 2), padding=(0, 1, 1), output_padding=0
    ),
}

RULES = {
    "epsilon": rules.Epsilon(),
    "epsilon 0.1": rules.Epsilon(0.1),
    "lrp-0": rules.Epsilon(0),
    "epsilon, no bias": rules.Epsilon(zero_params="bias"),
    "z+": rules.ZPlus(),
    "z+, no bias": rules.ZPlus(zero_params="bias"),
    "alpha2 beta1": rules.AlphaBeta(),
    "alpha1.4 beta0.4 epsilon 0": rules.AlphaBeta(1.4, 0.4, epsilon=0),
    "alpha1 beta0": rules.AlphaBeta(1, 0),
    "alpha3 beta2, conserving": rules.AlphaBeta(3, 2, conserve=True),
    "alpha2 beta1, no bias": rules.AlphaBeta(zero_params="bias", conserve=True),
    "gamma": rules.Gamma(),
    "gamma 10, no bias": rules.Gamma(10, zero_params="bias"),
    "gamma, epsilon 0": rules.Gamma(1, epsilon=0),
    "box": rules.ZBox(-3, 2.5),
    "w^2": rules.WSquare(),
    "w^2, no bias": rules.WSquare(zero_params="bias"),
    "flat": rules.Flat(),
    "joint": rules.Joint(rules.ZBox(-3, 3), rules.AlphaBeta(2, 1), channels=(0, 1)),
    "joint, last": rules.Joint(rules.ZBox(-3, 3), rules.AlphaBeta(1, 0), channels=(1, 2)),
}


class Case(NamedTuple):
    """Tensors of one layer."""

    a: Tensor
    w: Tensor
    b: Tensor | None
    r: Tensor


def _case(geometry: Geometry, nonnegative: bool, biased: bool, k: int = 1) -> Case:
    a, w = torch.randn(geometry.a).double(), torch.randn(geometry.w).double()
    a = a.relu() if nonnegative else a
    b = torch.randn(geometry.features).double() if biased else None
    z = geometry.map.contraction(a, w)
    return Case(a, w, b, torch.randn(k, *z.shape).double())


def _relevance(backend: Any, call: LinearCall, case: Case, **operands: Tensor) -> Tensor:
    case = case._replace(**operands)
    _, saved = backend.forward(call, case.a, case.w, case.b)
    result: Tensor = backend.relevance(call, saved, case.r)
    return result


def _assert_near(found: Tensor, expected: Tensor, rtol: float = 1e-10) -> None:
    """Elementwise, with the largest relevance as the scale of what may cancel."""
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * scale)


def _fits(rule: rules.Rule, geometry: Geometry) -> bool:
    """Whether the layer has the input features that a joint rule takes for pixels."""
    features = geometry.a[geometry.map.feature_axis]
    return not isinstance(rule, rules.Joint) or rule.channels[1] <= features  # type: ignore[index]


every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def every_rule_on(*names: str) -> pytest.MarkDecorator:
    """Each rule on each of the named layers that can take it."""
    pairs = [(n, r) for n in names for r in RULES if _fits(RULES[r], GEOMETRIES[n])]
    values = [(GEOMETRIES[n], RULES[r]) for n, r in pairs]
    return pytest.mark.parametrize(("geometry", "rule"), values, ids=[f"{n}-{r}" for n, r in pairs])


@every_rule_on(*GEOMETRIES)
def test_aten_equals_reference(geometry: Geometry, rule: rules.LinearRule) -> None:
    for nonnegative, biased, k in [(0, 1, 3), (1, 1, 1), (0, 0, 1), (1, 0, 2)]:
        case = _case(geometry, bool(nonnegative), bool(biased), k)
        call = LinearCall(geometry.map, rule, bool(nonnegative))
        z, saved = ATEN.forward(call, case.a, case.w, case.b)
        expected_z, naive = NAIVE.forward(call, case.a, case.w, case.b)
        _assert_near(z, expected_z, 1e-13)
        expected = NAIVE.relevance(call, naive, case.r)
        assert torch.isfinite(expected).all()
        _assert_near(ATEN.relevance(call, saved, case.r), expected)


@every_rule_on("dense", "conv2d asymmetric", "conv2d depthwise", "transposed2d gaps")
def test_relevance_is_conserved_with_what_is_absorbed(
    geometry: Geometry, rule: rules.LinearRule
) -> None:
    for nonnegative, biased in [(False, True), (True, False)]:
        a, w, b, r = _case(geometry, nonnegative, biased)
        a.flatten()[: a.numel() // 2] = 0
        found = _relevance(ATEN, LinearCall(geometry.map, rule, nonnegative), Case(a, w, b, r))
        lost = reference.absorbed(geometry.map, a, w, b, r[0], rule)
        scale = found.abs().sum() + lost.abs().sum() + r.abs().sum()
        assert abs(found.sum() + lost.sum() - r.sum()) <= 1e-10 * scale


@every_rule_on("dense", "conv2d", "conv2d groups", "transposed2d")
def test_float32_stays_within_its_error_bound(geometry: Geometry, rule: rules.LinearRule) -> None:
    for nonnegative in (False, True):
        case = _case(geometry, nonnegative, biased=True)
        case = Case(*(t.float() for t in case if t is not None))
        wide = Case(*(t.double() for t in case if t is not None))
        call = LinearCall(geometry.map, rule, nonnegative)
        found = _relevance(ATEN, call, case)
        assert found.dtype is torch.float32
        error = (found.double() - _relevance(NAIVE, call, wide)).abs()
        assert (error <= _error_bound(geometry.map, wide, rule, unit=2.0**-24)).all()


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


@every_rule_on("dense", "conv2d", "conv2d depthwise", "conv3d", "transposed2d")
def test_layout_and_mode_change_nothing(geometry: Geometry, rule: rules.LinearRule) -> None:
    case = _case(geometry, nonnegative=False, biased=True, k=2)
    call = LinearCall(geometry.map, rule)
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
    geometry = GEOMETRIES["conv2d"]
    a, w, b, r = (_channels_last(t) if t is not None and t.ndim == 4 else t
                  for t in _case(geometry, nonnegative=False, biased=True))  # fmt: skip
    call = LinearCall(geometry.map, rule)
    z, saved = ATEN.forward(call, a, w, b)
    assert z.is_contiguous(memory_format=torch.channels_last)
    found = ATEN.relevance(call, saved, _channels_last(r[0]).unsqueeze(0))
    assert found[0].is_contiguous(memory_format=torch.channels_last)


@every_rule_on("dense", "conv2d", "conv2d asymmetric", "transposed2d")
def test_empty_batch(geometry: Geometry, rule: rules.LinearRule) -> None:
    case = _case(geometry, nonnegative=False, biased=True, k=2)
    call = LinearCall(geometry.map, rule)
    z, saved = ATEN.forward(call, case.a[:0], case.w, case.b)
    assert z.shape == (0, *case.r.shape[2:])
    assert ATEN.relevance(call, saved, case.r[:, :0]).shape == (2, 0, *case.a.shape[1:])


@every_rule
@pytest.mark.parametrize("backend", [ATEN, NAIVE], ids=["aten", "reference"])
def test_saved_tensors_survive_and_targets_are_independent(
    backend: Any, rule: rules.LinearRule
) -> None:
    geometry = GEOMETRIES["conv2d stride"]
    case = _case(geometry, nonnegative=False, biased=True, k=3)
    call = LinearCall(geometry.map, rule)
    z, saved = backend.forward(call, case.a, case.w, case.b)
    kept = z.clone()
    first = backend.relevance(call, saved, case.r)
    assert torch.equal(backend.relevance(call, saved, case.r), first)
    assert torch.equal(z, kept)
    for k in range(3):
        _assert_near(backend.relevance(call, saved, case.r[k : k + 1])[0], first[k], 1e-12)


@every_rule
def test_cache_serves_other_inputs_and_sizes(rule: rules.LinearRule) -> None:
    geometry, cache = GEOMETRIES["conv2d"], {}  # type: ignore[var-annotated]
    case = _case(geometry, nonnegative=False, biased=True)
    call = LinearCall(geometry.map, rule)
    for a in (case.a, case.a + 1, case.a[..., :4], case.a):
        z, saved = ATEN.forward(call, a, case.w, case.b, cache)
        r = torch.randn(1, *z.shape).double()
        expected = _relevance(NAIVE, call, Case(a, case.w, case.b, r))
        _assert_near(ATEN.relevance(call, saved, r), expected)


@every_rule
@pytest.mark.parametrize("nonnegative", [False, True])
def test_all_zero_input_is_finite(rule: rules.LinearRule, nonnegative: bool) -> None:
    for name in ("dense", "conv2d"):
        geometry = GEOMETRIES[name]
        case = _case(geometry, nonnegative, biased=False)
        case.a[0] = 0
        call = LinearCall(geometry.map, rule, nonnegative)
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
    assert quotients.stabilized(z, 0.5).tolist() == [0.5, 0.5, 0.5, -0.5]
    r = torch.ones(4)
    assert quotients.divide(r, z, 0.5).tolist() == [2.0, 2.0, 2.0, -2.0]
    assert quotients.divide(r, z[:2].repeat(2), 0.0).tolist() == [0.0] * 4
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
        geometry = GEOMETRIES["conv2d"]
        case = Case(*(t.to(dtype) for t in _case(geometry, True, True) if t is not None))
        wide = Case(*(t.float() for t in case if t is not None))
        call = LinearCall(geometry.map, rule, nonnegative=True)
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
    geometry = GEOMETRIES["conv2d"]
    case = Case(*(t.float() for t in _case(geometry, True, True) if t is not None))
    wide = Case(*(t.double() for t in case if t is not None))
    call = LinearCall(geometry.map, RULES[rule], nonnegative=True)
    found = _relevance(ATEN, LinearCall(geometry.map, RULES[rule], True, "medium"), case)
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
    geometry = GEOMETRIES["conv2d"]
    case = _case(geometry, nonnegative=False, biased=True)
    low = -3 - torch.rand(3, 1, 1).double()
    by_channel = rules.ZBox(low, 3)
    everywhere = rules.ZBox(low.expand(3, 5, 7), torch.full((5, 7), 3.0))
    expected = _relevance(NAIVE, LinearCall(geometry.map, everywhere), case)
    assert not torch.allclose(
        expected, _relevance(NAIVE, LinearCall(geometry.map, rules.ZBox(-3, 3)), case), rtol=1e-3
    )
    for rule in (by_channel, everywhere):
        _assert_near(_relevance(ATEN, LinearCall(geometry.map, rule), case), expected)
        _assert_near(_relevance(NAIVE, LinearCall(geometry.map, rule), case), expected)


def test_reference_works_in_inference_mode_on_inference_tensors() -> None:
    with torch.inference_mode():
        case = _case(GEOMETRIES["conv2d"], False, True)
        rule = rules.Gamma()
        found = reference.linear_relevance(
            GEOMETRIES["conv2d"].map, case.a, case.w, case.b, case.r[0], rule
        )
    assert found.shape == case.a.shape and not found.requires_grad


@needs_bfloat16
@pytest.mark.parametrize(("rows", "exact"), [(3, True), (63, True), (64, False)])
def test_medium_precision_leaves_products_of_few_rows_in_float32(rows: int, exact: bool) -> None:
    """Bringing the weight to bfloat16 would cost more than the product; a frozen one has it."""
    a, w = torch.rand(rows, 40), torch.randn(30, 40)
    call = LinearCall(Dense(), rules.Epsilon(), precision="medium")
    z = torch.nn.functional.linear(a, w)
    assert torch.equal(ATEN.forward(call, a, w, None)[0], z) == exact
    assert not torch.equal(ATEN.forward(call, a, w, None, {})[0], z)
