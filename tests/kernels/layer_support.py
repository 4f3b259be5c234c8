"""Layers of every kind, operands inside buffers of NaN, a check within a running error bound."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from relprop import kernels, reference
from relprop.maps import Conv, Dense, LinearMap
from relprop.reference import modify
from relprop.rules import LinearRule

UNIT = 2.0**-24
UNBOUNDED = 1e30


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


def inside_nan(values: Tensor) -> Tensor:
    """The values within a buffer that holds NaN everywhere else, its last axis dense."""
    buffer = values.new_full([size + 2 for size in values.shape], torch.nan)
    view = buffer[tuple(slice(1, 1 + size) for size in values.shape)]
    return view.copy_(values)


def guarded(tensor: Tensor, layout: str) -> Tensor:
    """The tensor's values inside a buffer of NaN, in a memory layout."""
    if layout == "sliced":
        return inside_nan(tensor)
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
