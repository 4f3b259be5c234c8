"""Rules, layers and tolerances that the tests share: each stated once.

`pytest` finds this module by `pythonpath` in pyproject.toml, from whatever folder a test lies in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from relprop import rules
from relprop.graph.maps import Conv, Dense, LinearMap

TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-4}
"""What a result in one type may differ by from the reference in float64."""

RULES: dict[str, rules.LinearRule] = {
    "epsilon": rules.Epsilon(),
    "epsilon 0.1": rules.Epsilon(0.1),
    "lrp-0": rules.Epsilon(0),
    "epsilon, no bias": rules.Epsilon(0.1, zero_params="bias"),
    "z+": rules.ZPlus(),
    "z+, epsilon 0": rules.ZPlus(epsilon=0),
    "z+, no bias": rules.ZPlus(0.2, zero_params="bias"),
    "alpha2 beta1": rules.AlphaBeta(),
    "alpha1.4 beta0.4 epsilon 0": rules.AlphaBeta(1.4, 0.4, epsilon=0),
    "alpha1 beta0": rules.AlphaBeta(1, 0),
    "alpha3 beta2 epsilon 0.3": rules.AlphaBeta(3, 2, epsilon=0.3),
    "alpha3 beta2, conserving": rules.AlphaBeta(3, 2, conserve=True),
    "alpha2 beta1, no bias": rules.AlphaBeta(zero_params="bias"),
    "alpha2 beta1, no bias, conserving": rules.AlphaBeta(zero_params="bias", conserve=True),
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

KERNELS_RULES: list[rules.LinearRule] = [
    rules.Epsilon(1e-2),
    rules.Epsilon(0.0),
    rules.Epsilon(1e-3, zero_params="bias"),
    rules.ZPlus(1e-3),
    rules.ZPlus(zero_params="bias"),
    rules.AlphaBeta(2, 1),
    rules.AlphaBeta(1, 0),
    rules.AlphaBeta(1.4, 0.4, conserve=True),
    rules.Gamma(0.25),
    rules.Gamma(10.0, epsilon=1e-2, zero_params="bias"),
    rules.ZBox(-1.0, 1.5),
    rules.WSquare(),
    rules.Flat(1e-3),
    rules.Joint(channels=(1, 2)),
]
"""Rules whose stabilizers keep most float32 quotients away from what rounding can turn over."""


@dataclass(frozen=True)
class Layer:
    """A layer: its geometry, and the shapes of its input and weight."""

    name: str
    map: LinearMap
    a: tuple[int, ...]
    w: tuple[int, ...]

    @property
    def outputs(self) -> int:
        """Output features."""
        wide = isinstance(self.map, Conv) and self.map.transposed
        return self.w[1] * self.map.groups if wide else self.w[0]  # type: ignore[attr-defined]

    def takes(self, rule: rules.Rule) -> bool:
        """Whether it has the input features that a joint rule takes for pixels, and others."""
        features = self.a[self.map.feature_axis]
        return not isinstance(rule, rules.Joint) or rule.span[1] <= features


def pads(*sizes: int) -> tuple[tuple[int, int], ...]:
    """The same padding before and after, for each spatial dimension."""
    return tuple((size, size) for size in sizes)


def _conv(
    a: tuple[int, ...],
    w: tuple[int, ...],
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    output_padding: Any = None,
) -> tuple[Conv, tuple[int, ...], tuple[int, ...]]:
    """Map and shapes; one number stands for every spatial dimension; transposed if padded after."""

    def each(value: Any) -> tuple[Any, ...]:
        return value if isinstance(value, tuple) else (value,) * (len(w) - 2)

    around = tuple(p if isinstance(p, tuple) else (p, p) for p in each(padding))
    transposed = output_padding is not None
    extra = each(output_padding) if transposed else ()
    return Conv(each(stride), around, each(dilation), groups, transposed, extra), a, w


KERNELS_LAYERS = {
    name: Layer(name, *layer)
    for name, layer in {
        "dense": (Dense(), (5, 37), (19, 37)),
        "dense one": (Dense(), (1, 3), (1, 3)),
        "dense tokens": (Dense(), (2, 3, 17), (7, 17)),
        "conv1d": _conv((2, 3, 9), (5, 3, 3)),
        "conv1d dilated": _conv((2, 3, 13), (2, 3, 3), stride=3, padding=2, dilation=2),
        "conv2d": _conv((2, 3, 7, 5), (5, 3, 3, 3), padding=1),
        "conv2d 1x1": _conv((2, 17, 3, 5), (19, 17, 1, 1)),
        "conv2d 1x1 stride 2": _conv((2, 3, 5, 5), (3, 3, 1, 1), stride=2),
        "conv2d strided": _conv((2, 3, 9, 7), (5, 3, 3, 2), stride=(2, 3), padding=(1, 0)),
        "conv2d dilated": _conv(
            (1, 2, 9, 8), (3, 2, 3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 3)
        ),
        "conv2d stride = dilation": _conv(
            (1, 2, 9, 11), (3, 2, 3, 3), stride=2, padding=1, dilation=(2, 4)
        ),
        "conv2d asymmetric": _conv(
            (2, 3, 6, 5), (2, 3, 3, 3), stride=(2, 1), padding=((1, 2), (0, 1))
        ),
        "conv2d grouped": _conv((2, 22, 4, 5), (6, 11, 3, 3), padding=1, groups=2),
        "conv2d few a group": _conv((2, 4, 5, 4), (6, 2, 3, 3), padding=(1, 0), groups=2),
        "depthwise": _conv((2, 7, 5, 3), (7, 1, 3, 3), padding=1, groups=7),
        "depthwise strided": _conv((2, 3, 7, 5), (6, 1, 3, 3), stride=2, padding=1, groups=3),
        "conv3d": _conv(
            (1, 3, 4, 5, 5), (2, 3, 3, 2, 3), stride=(2, 1, 1), padding=1, dilation=(1, 1, 2)
        ),
        "transposed 1d": _conv((2, 3, 5), (3, 5, 3), stride=2, padding=1, output_padding=1),
        "transposed 2d": _conv(
            (2, 3, 4, 5), (3, 5, 3, 3), stride=2, padding=1, output_padding=(1, 0)
        ),
        "transposed grouped": _conv(
            (1, 4, 3, 4), (4, 3, 2, 3),
            stride=(3, 1), padding=(0, 1), dilation=(2, 1), groups=2, output_padding=0,
        ),
        "conv2d 1x1 padded": _conv((2, 3, 3, 4), (5, 3, 1, 1), padding=((0, 1), (0, 2))),
    }.items()
}  # fmt: skip
"""Layers that between them take every branch of the kernels, a dimension past a tile among them."""

LAYERS = KERNELS_LAYERS | {
    name: Layer(name, *layer)
    for name, layer in {
        "dense 1x1": (Dense(), (1, 1), (1, 1)),
        "dense 63 of 100": (Dense(), (3, 100), (63, 100)),
        "conv1d same, even kernel": _conv((2, 3, 7), (4, 3, 4), padding=((1, 2),)),
        "conv1d stride over the end": _conv((1, 2, 11), (3, 2, 2), stride=4),
        "conv2d 3x2, no padding": _conv((1, 3, 6, 5), (4, 3, 3, 2)),
        "conv2d dilation": _conv((2, 3, 7, 6), (4, 3, 3, 3), padding=2, dilation=2),
        "conv2d one-sided padding": _conv((2, 3, 4, 4), (4, 3, 2, 2), padding=((0, 1), (1, 0))),
        "conv2d padding beyond kernel": _conv((2, 2, 3, 4), (3, 2, 2, 2), padding=3),
        "depthwise, two outputs each": _conv((2, 4, 5, 5), (8, 1, 3, 3), padding=1, groups=4),
        "conv3d, stride 1": _conv((2, 3, 4, 3, 5), (4, 3, 3, 3, 3), padding=1),
        "conv3d groups": _conv((2, 2, 3, 3, 3), (2, 1, 2, 2, 2), groups=2, dilation=(1, 2, 1)),
        "transposed 2d, stride 1": _conv(
            (2, 3, 4, 5), (3, 4, 3, 3), padding=1, output_padding=0
        ),
        "transposed 2d gaps": _conv((1, 2, 3, 3), (2, 3, 2, 2), stride=3, output_padding=0),
        "transposed 3d": _conv(
            (1, 2, 2, 3, 2), (2, 3, 2, 2, 3),
            stride=(2, 1, 2), padding=(0, 1, 1), output_padding=0,
        ),
    }.items()
}  # fmt: skip
"""Layers of every kind, with odd sizes."""
