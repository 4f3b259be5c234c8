"""Every kernel where all sizes are 1, which Triton makes constants of: they must compile too."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from relprop import rules
from relprop.graph.maps import Conv, Dense, LinearMap

__all__ = ["cases"]

ONE, NO = [1], [0]
POINT = Conv((1,), ((0, 0),), (1,))


def cases() -> list[tuple[str, Callable[[], object]]]:
    """Name and call of each, on meta tensors; layers have one spatial axis."""
    from relprop import kernels

    a, r = _ones(3), _ones(4)
    transposed = Conv((1,), ((0, 0),), (1,), transposed=True)
    layers: list[tuple[str, LinearMap, rules.LinearRule]] = [
        ("dense", Dense(), rules.AlphaBeta()),
        ("dense gated", Dense(), rules.Gamma(1.0)),
        ("conv", POINT, rules.AlphaBeta()),
        ("conv boxed", POINT, rules.ZBox(-1, 1)),
        ("conv transposed", transposed, rules.AlphaBeta()),
    ]

    def maxima() -> None:
        _, winners = kernels.max_pool(a, ONE, ONE, NO, ONE)
        kernels.max_pool_relevance(r, winners, a.shape, ONE, ONE, NO, ONE)
        kernels.adaptive_max_pool(a, ONE)
        kernels.adaptive_max_pool_relevance(r, winners, a.shape)

    def means() -> None:
        for divisor in (None, 1):
            y = kernels.average_pool(a, ONE, ONE, NO, divisor=divisor)
            kernels.average_pool_relevance(r, y, a, 1e-6, ONE, ONE, NO, divisor=divisor)
        kernels.adaptive_average_pool(a, ONE)
        kernels.adaptive_average_pool_relevance(r, y, a, 1e-6)

    def resampled() -> None:
        for corners in (False, True):
            y = kernels.linear_resample(a, ONE, corners)
            kernels.linear_resample_relevance(r, y, a, 1e-6, corners)

    return [
        *((f"one {name}", lambda layer=layer: _layer(*layer)) for name, *layer in layers),
        ("one library", lambda: _layer(Dense(), rules.Epsilon(), "library")),
        ("one flat", lambda: kernels.flat_relevance(POINT, rules.Flat(), a, a, r)),
        ("one flat", lambda: kernels.flat_relevance(Dense(), rules.Flat(), _ones(2), _ones(2), a)),
        ("one max", maxima),
        ("one mean", means),
        ("one resampling", resampled),
        ("one sum", lambda: kernels.residual_sum(a, a)),
        ("one sum", lambda: kernels.residual_split(a, a, r, 1e-6)),
        *((f"one {kind}", lambda kind=kind: _recurrent(kind)) for kind in ("lstm", "gru")),
    ]


def _ones(axes: int) -> Tensor:
    return torch.empty((1,) * axes, device="meta")


def _layer(linear_map: LinearMap, rule: rules.LinearRule, tile: str | None = None) -> None:
    """The three passes of a layer."""
    from relprop import kernels

    axes = 3 if isinstance(linear_map, Conv) else 2
    saved = kernels.contraction(linear_map, rule, _ones(axes), _ones(axes), _ones(1), tile=tile)
    kernels.adjoint(saved, kernels.quotient(saved, _ones(axes + 1)), tile=tile)


def _recurrent(kind: str) -> None:
    """Both passes of a recurrent layer."""
    from relprop.graph.recurrent import CELLED, GATES
    from relprop.kernels.recurrent.launch import recurrent_forward, recurrent_relevance

    weight = torch.empty((1, GATES[kind], 1), device="meta")
    bias, state = weight[..., 0], _ones(3)
    cell = state if kind in CELLED else None
    *_, saved = recurrent_forward(
        kind, state, weight, weight, bias, bias, state, cell, epsilon=1e-6
    )
    recurrent_relevance(saved, _ones(4), None, None)
