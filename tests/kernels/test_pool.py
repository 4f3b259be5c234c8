"""Pooling, the split of a sum: against the library's forward and the float64 reference."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layer_support import DTYPES, LAYOUTS, guarded

from relprop import kernels
from relprop.backends.reference import linear as reference

MAX_CASES: list[tuple[tuple[int, ...], list[int], list[int], list[int], list[int], bool]] = [
    ((2, 3, 7), [3], [2], [1], [1], False),
    ((2, 3, 7, 5), [2, 2], [2, 2], [0, 0], [1, 1], False),
    ((2, 3, 7, 5), [3, 3], [2, 1], [1, 1], [1, 1], True),
    ((1, 2, 9, 8), [2, 3], [3, 2], [1, 0], [2, 1], True),
    ((1, 2, 4, 5, 3), [2, 2, 2], [2, 1, 1], [0, 1, 1], [1, 1, 1], False),
    ((0, 2, 4, 4), [2, 2], [2, 2], [0, 0], [1, 1], False),
]


QUICK = {("channels last", torch.float32), ("sliced", torch.bfloat16)}
stored = pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        pytest.param(*each, marks=() if each in QUICK else pytest.mark.slow)
        for each in product(LAYOUTS, DTYPES)
    ],
    ids=str,
)
"""Every memory layout, inside a buffer of NaN, with every type."""


def operand(values: torch.Tensor, layout: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The values in a layout and type, and what they are there in float32."""
    a = guarded(values.to(dtype), layout)
    return a, a.float().contiguous()


@stored
@pytest.mark.parametrize("case", MAX_CASES, ids=str)
def test_max_pool_first_of_equal_elements(case: Any, layout: str, dtype: torch.dtype) -> None:
    shape, kernel, stride, padding, dilation, ceil = case
    a, own = operand(torch.randint(-2, 2, shape).float(), layout, dtype)
    spatial = len(kernel)
    function = getattr(F, f"max_pool{spatial}d")

    def pool(x: torch.Tensor) -> Any:
        return function(x, kernel, stride, padding, dilation, ceil, return_indices=True)

    expected, indices = pool(own)
    y, winners = kernels.max_pool(a, kernel, stride, padding, dilation, ceil)
    assert torch.equal(y, expected) and torch.equal(winners.long(), indices)
    r = torch.randn(3, *y.shape)
    relevance = kernels.max_pool_relevance(r, winners, a.shape, kernel, stride, padding, dilation)
    for target in range(3):
        exact = reference.winner_relevance(lambda x: pool(x)[0], a.double(), r[target].double())
        torch.testing.assert_close(relevance[target].double(), exact, rtol=1e-6, atol=1e-6)


def test_max_pool_keeps_nan_and_minus_infinity() -> None:
    a = torch.tensor([[[-torch.inf, -torch.inf, 1.0, torch.nan]]])
    y, winners = kernels.max_pool(a, [2], [2], [0], [1])
    assert y[0, 0, 0] == -torch.inf and y[0, 0, 1].isnan()
    assert winners.flatten().tolist() == [0, 3]


AVERAGE_CASES = [
    ((2, 3, 7), [3], [2], [1], False, True, None),
    ((2, 3, 7, 5), [2, 2], [2, 2], [0, 0], False, True, None),
    ((2, 3, 7, 5), [3, 3], [2, 1], [1, 1], True, True, None),
    ((2, 3, 7, 5), [3, 3], [2, 2], [1, 1], True, False, None),
    ((1, 2, 6, 5), [3, 2], [1, 3], [1, 0], False, False, 1),
    ((1, 2, 4, 5, 3), [2, 3, 2], [2, 1, 2], [1, 1, 0], False, True, 5),
]


@stored
@pytest.mark.parametrize("case", AVERAGE_CASES, ids=str)
def test_average_pool(case: Any, layout: str, dtype: torch.dtype) -> None:
    shape, kernel, stride, padding, ceil, padded, divisor = case
    a, own = operand(1 + torch.rand(shape), layout, dtype)
    options = [kernel, stride, padding, ceil, padded] + ([divisor] if len(kernel) > 1 else [])

    def pool(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = getattr(F, f"avg_pool{len(kernel)}d")(x, *options)
        return result

    y = kernels.average_pool(a, kernel, stride, padding, ceil, padded, divisor)
    torch.testing.assert_close(y, pool(own))
    r = torch.randn(2, *y.shape)
    relevance = kernels.average_pool_relevance(
        r, y, a, 0.1, kernel, stride, padding, padded, divisor
    )
    for target in range(2):
        exact = reference.norm_relevance(pool, a.double(), r[target].double(), 0.1)
        torch.testing.assert_close(relevance[target].double(), exact, rtol=2e-6, atol=2e-6)


@stored
@pytest.mark.parametrize(
    ("shape", "extents"),
    [
        ((2, 3, 7), [3]),
        ((2, 3, 7, 5), [1, 1]),
        ((2, 3, 7, 5), [3, 4]),
        ((1, 2, 3, 2), [7, 5]),
        ((1, 2, 4, 5, 3), [2, 5, 2]),
    ],
    ids=str,
)
def test_adaptive_average_pool(
    shape: tuple[int, ...], extents: list[int], layout: str, dtype: torch.dtype
) -> None:
    a, own = operand(1 + torch.rand(shape), layout, dtype)

    def pool(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = getattr(F, f"adaptive_avg_pool{len(extents)}d")(x, extents)
        return result

    y = kernels.adaptive_average_pool(a, extents)
    torch.testing.assert_close(y, pool(own))
    r = torch.randn(2, *y.shape)
    relevance = kernels.adaptive_average_pool_relevance(r, y, a, 0.1)
    for target in range(2):
        exact = reference.norm_relevance(pool, a.double(), r[target].double(), 0.1)
        torch.testing.assert_close(relevance[target].double(), exact, rtol=2e-6, atol=2e-6)


@stored
@pytest.mark.parametrize("shape", [(1,), (2, 3), (2, 3, 5, 7), (0, 3)], ids=str)
def test_residual_split(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    a, b = (operand(torch.randn(shape), layout, dtype)[0] for _ in range(2))
    r = torch.randn(3, *shape)
    shares = kernels.residual_split(a, b, r, 0.1)
    for target in range(3):
        exact = reference.sum_relevance(a.double(), b.double(), r[target].double(), 0.1)
        for share, expected in zip(shares, exact):
            torch.testing.assert_close(share[target].double(), expected, rtol=1e-5, atol=1e-6)


def test_residual_split_of_mixed_layouts_and_of_zero() -> None:
    a = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    b, r = torch.randn(2, 3, 4, 5), torch.randn(1, 2, 3, 4, 5)
    left, right = kernels.residual_split(a, b, r, 0.0)
    torch.testing.assert_close(left + right, r)
    left, right = kernels.residual_split(a, -a, r, 0.0)
    assert torch.equal(left, torch.zeros_like(r)) and torch.equal(right, torch.zeros_like(r))


RESAMPLED: list[tuple[tuple[int, ...], tuple[int, ...], bool, tuple[float, ...] | None]] = [
    ((2, 3, 5), (10,), False, None),
    ((2, 3, 5, 4), (10, 12), False, (2.0, 3.0)),
    ((2, 3, 5, 4), (9, 7), True, None),
    ((1, 2, 7, 5), (3, 4), False, None),
    ((1, 2, 3, 3), (1, 11), True, None),
    ((1, 2, 1, 6), (4, 6), False, None),
    ((1, 2, 4, 5), (9, 12), False, (2.3, 2.5)),
    ((1, 2, 2, 3, 2), (3, 7, 4), False, None),
    ((0, 2, 3, 3), (6, 6), False, None),
]


@stored
@pytest.mark.parametrize("case", RESAMPLED, ids=str)
def test_linear_resampling(case: Any, layout: str, dtype: torch.dtype) -> None:
    shape, extents, corners, factors = case
    a, own = operand(1 + torch.rand(shape), layout, dtype)
    name = {1: "linear1d", 2: "bilinear2d", 3: "trilinear3d"}[len(extents)]

    def resample(x: torch.Tensor) -> torch.Tensor:
        function = getattr(torch.ops.aten, f"upsample_{name}")
        result: torch.Tensor = function(x, extents, corners, *(factors or [None] * len(extents)))
        return result

    y = kernels.linear_resample(a, extents, corners, factors)
    torch.testing.assert_close(y, resample(own))
    r = torch.randn(2, *y.shape)
    relevance = kernels.linear_resample_relevance(r, y, a, 0.1, corners, factors)
    for target in range(2):
        exact = reference.norm_relevance(resample, a.double(), r[target].double(), 0.1)
        torch.testing.assert_close(relevance[target].double(), exact, rtol=2e-6, atol=2e-6)
