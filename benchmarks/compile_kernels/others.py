"""Kernels outside the linear layers to compile, and what joins two layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.compile_kernels.layers import label
from relprop import rules
from relprop.graph.maps import Conv, Dense, LinearMap

__all__ = ["cases"]

RULES: list[rules.LinearRule] = [
    rules.Epsilon(),
    rules.ZPlus(),
    rules.AlphaBeta(),
    rules.Gamma(),
]
"""Those of the cases that join steps."""


def cases() -> list[tuple[str, Callable[[], object]]]:
    """Name and call of each, on meta tensors."""
    from relprop import kernels

    a = torch.empty((64, 64, 112, 112), device="meta").to(memory_format=torch.channels_last)
    r = torch.empty((1, *a.shape), device="meta")
    small = torch.empty((1, 64, 64, 56, 56), device="meta")
    won = small[0].int().to(memory_format=torch.channels_last)
    two, one, no = [2, 2], [1, 1], [0, 0]
    conv = Conv((1, 1), ((1, 1), (1, 1)), (1, 1))
    w = torch.empty((64, 64, 3, 3), device="meta")
    wide = torch.empty((12608, 768), device="meta"), torch.empty((768, 768), device="meta")
    images = a, w.to(memory_format=torch.channels_last)

    def stack(rule: rules.LinearRule, layer: LinearMap, x: Tensor, w: Tensor, how: str) -> Any:
        """Two layers, the input of the upper one the float32 output of the lower."""
        b = torch.empty(len(w), device="meta", dtype=w.dtype)
        options: dict[str, Any] = {"nonnegative": True, "precision": how}
        below = kernels.contraction(layer, rule, x, w, b, activation="relu", **options)
        assert below.y is not None
        above = kernels.contraction(layer, rule, below.y, w, b, **options)
        assert above.y is not None
        return (
            below,
            above,
            kernels.quotient(above, torch.empty((1, *above.y.shape), device="meta")),
        )

    def fused(rule: rules.LinearRule, layer: LinearMap, how: str) -> None:
        """An adjoint that takes the quotient of the layer below."""
        x, v = wide if isinstance(layer, Dense) else images
        below, above, s = stack(rule, layer, x, v, how)
        kernels.adjoint(above, s, lower=kernels.below(below, x.shape), precision=how)

    def fused_others(rule: rules.LinearRule) -> None:
        """Adjoints of pooling and sums that do."""
        below, _, _ = stack(rule, conv, *images, "high")
        lower = kernels.below(below, a.shape)
        kernels.max_pool_relevance(small, won, a.shape, two, two, no, one, lower=lower)
        kernels.average_pool_relevance(small, small[0], a, 1e-6, two, two, no, lower=lower)
        kernels.residual_split(a, a, r, 1e-6, lower=(lower, lower))

    def library(rule: rules.LinearRule) -> None:
        """What follows the library's products."""
        x, v = a.to(torch.float32), w.to(torch.float32)
        options: dict[str, Any] = {"nonnegative": True, "tile": "library"}
        below = kernels.contraction(conv, rule, x, v, None, activation="relu", **options)
        assert below.y is not None
        above = kernels.contraction(conv, rule, below.y, v, None, **options)
        assert above.y is not None
        s = kernels.quotient(above, torch.empty((1, *above.y.shape), device="meta"))
        kernels.adjoint(above, s, lower=kernels.below(below, a.shape), tile="library")

    return [
        ("residual split", lambda: kernels.residual_split(a, a, r, 1e-6)),
        ("residual sum", lambda: kernels.residual_sum(a, a, (1.0, 1.0), "relu")),
        ("resampling", lambda: kernels.linear_resample(a, [224, 224])),
        (
            "resampling",
            lambda: kernels.linear_resample_relevance(
                small[..., :28, :28], small[0, ..., :28, :28], a[..., :14, :14], 1e-6
            ),
        ),
        ("max pool", lambda: kernels.max_pool(a, two, two, no, one)),
        (
            "max pool",
            lambda: kernels.max_pool_relevance(small, won, a.shape, two, two, no, one),
        ),
        ("adaptive max pool", lambda: kernels.adaptive_max_pool(a, [7, 7])),
        (
            "adaptive max pool",
            lambda: kernels.adaptive_max_pool_relevance(
                small[..., :7, :7], won[..., :7, :7], a.shape
            ),
        ),
        ("average pool", lambda: kernels.average_pool(a, two, two, no)),
        (
            "average pool",
            lambda: kernels.average_pool_relevance(small, small[0], a, 1e-6, two, two, no),
        ),
        ("adaptive pool", lambda: kernels.adaptive_average_pool(a, [7, 7])),
        (
            "adaptive pool",
            lambda: kernels.adaptive_average_pool_relevance(
                small[..., :7, :7], small[0, ..., :7, :7], a, 1e-6
            ),
        ),
        *((f"library {label(rule)}", lambda rule=rule: library(rule)) for rule in RULES),
        *(
            (
                f"fused {kind} {how} {label(rule)}",
                lambda rule=rule, layer=layer, how=how: fused(rule, layer, how),
            )
            for rule in RULES
            for how in ("highest", "high", "medium")
            for kind, layer in (("dense", Dense()), ("conv", conv))
        ),
        *((f"fused pool {label(rule)}", lambda rule=rule: fused_others(rule)) for rule in RULES),
        ("flat conv", lambda: kernels.flat_relevance(conv, rules.Flat(), a, w, r)),
        (
            "flat dense",
            lambda: kernels.flat_relevance(Dense(), rules.Flat(), a[0, 0], w[0, 0], r[0, 0, :1]),
        ),
    ]
