"""Layers of every kind, operands inside buffers of NaN, a check within a running error bound."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from relprop import kernels
from relprop.backends.reference import linear as reference
from relprop.backends.reference.linear import modify
from relprop.graph.maps import LinearMap
from relprop.rules import LinearRule
from tables import KERNELS_LAYERS, Layer

UNIT = 2.0**-24
UNBOUNDED = 1e30
SMALLEST = 2.0**-14
"""From here on float16 holds what bfloat16 holds."""


LAYERS = list(KERNELS_LAYERS.values())
QUICK = {
    "dense one",
    "dense tokens",
    "conv1d dilated",
    "conv2d 1x1 stride 2",
    "conv2d 1x1 padded",
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
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


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


def operand_unit(dtype: torch.dtype, precision: str = "highest") -> float:
    """Unit roundoff of product operands: s and modified weights are rounded to it on a GPU.

    The interpreter widens every operand to float32.
    """
    narrow = torch.bfloat16 if precision == "medium" else dtype
    if kernels.interpreted() or narrow == torch.float32:
        return 0.0
    return torch.finfo(narrow).eps


EXACT = {"identity", "positive", "negative", "absolute", "one"}
"""Atoms that a type holds wherever it holds their argument."""


def contraction_unit(rule: LinearRule, operand: float) -> float:
    """Unit roundoff of the contraction's operands, made of numbers that their type holds."""
    program = kernels.compile_rule(rule)
    atoms = {w.kind for w in program.weights} | {p.factor for p in program.products}
    return 0.0 if program.box is None and atoms <= EXACT else operand


def tolerance(
    layer: LinearMap,
    a: Tensor,
    w: Tensor,
    b: Tensor | None,
    r: Tensor,
    rule: LinearRule,
    operand: float = 0.0,
    contracted: float = 0.0,
) -> Tensor:
    """What float32 sums may differ by: magnitudes times unit roundoff, through the division.

    Operands themselves may be rounded, by `operand`; those of the contraction by `contracted`.

    An output whose z may have either sign, or none, is unbounded, and so is all it reaches.
    """
    length = w[0].numel() + w.numel() // w.shape[1] + 8
    unit = length * UNIT + contracted
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
        slack = torch.where(doubtful, UNBOUNDED, slack) + (length * UNIT + operand) * s.abs()
        for term in group.terms:
            f = modify(term.input, a, layer, rule).abs()
            g = modify(term.weight, w, layer, rule).abs()
            result += f * layer.adjoint(slack, g, a.shape)
    return result


@dataclass(frozen=True)
class Truth:
    """A layer's output and relevance in float64, and what a kernel may differ by."""

    layer: Layer
    rule: LinearRule
    a: Tensor
    w: Tensor
    b: Tensor | None
    r: Tensor
    operand: float

    @property
    def contracted(self) -> float:
        """Unit roundoff of the contraction's operands."""
        return contraction_unit(self.rule, self.operand)

    @cached_property
    def output(self) -> tuple[Tensor, Tensor]:
        """The output and its tolerance."""
        own = self.layer.map.contraction(self.a, self.w)
        size = self.layer.map.contraction(self.a.abs(), self.w.abs())
        if self.b is not None:
            own = own + self.layer.map.align(self.b)
            size = size + self.layer.map.align(self.b.abs())
        length = self.w.numel() // min(self.w.shape[:2]) + 8
        return own, (length * UNIT + self.contracted) * size

    @cached_property
    def relevance(self) -> list[tuple[Tensor, Tensor]]:
        """The input's relevance and its tolerance, for each target."""
        of = self.layer.map, self.a, self.w, self.b
        return [
            (
                reference.linear_relevance(*of, r, self.rule),
                tolerance(*of, r, self.rule, self.operand, self.contracted),
            )
            for r in self.r
        ]

    def check(
        self, layout: str, dtype: torch.dtype, *, nonnegative: bool = False, **options: Any
    ) -> None:
        """The kernels' output and relevance, their operands of a type and in a memory layout."""
        a = guarded(self.a.to(dtype), layout)
        w = guarded(self.w.to(dtype), "sliced" if layout == "sliced" else "contiguous")
        saved = kernels.contraction(
            self.layer.map,
            self.rule,
            a,
            w,
            None if self.b is None else self.b.to(dtype),
            nonnegative=nonnegative,
            **options,
        )
        y, limit = self.output
        assert saved.y is not None and saved.y.shape == y.shape
        assert ((saved.y.double() - y).abs() <= limit).all()
        s = kernels.quotient(saved, guarded(self.r.float(), "contiguous"))
        relevance = kernels.adjoint(saved, s, **options)
        assert relevance.shape == (len(self.r), *a.shape) and relevance.dtype == torch.float32
        for found, (expected, within) in zip(relevance, self.relevance, strict=True):
            bounded = within < UNBOUNDED * 1e-6
            difference = (found.double() - expected).abs()
            assert (difference <= within)[bounded].all(), (difference / within)[bounded].max()
            assert found.isfinite().all()
            if self.rule.epsilon > 1e-4 and a.numel() > 1:
                assert bounded.double().mean() > 0.5


def drawn(
    layer: Layer,
    rule: LinearRule,
    dtype: torch.dtype,
    *,
    nonnegative: bool = False,
    targets: int = 2,
    bias: bool = True,
    expanded: bool = False,
    precision: str = "highest",
) -> Truth:
    """Random numbers that a type holds exactly, and what is true of them."""

    def draw(*shape: int) -> Tensor:
        values = torch.randn(shape).to(dtype).double()
        return torch.where(values.abs() < SMALLEST, SMALLEST, values)

    a, w = draw(*layer.a), draw(*layer.w)
    a = a.relu() if nonnegative else a
    a = a[:1].expand_as(a) if expanded else a
    b = draw(layer.outputs) if bias else None
    r = torch.randn(targets, *layer.map.contraction(a, w).shape).double()
    return Truth(layer, rule, a, w, b, r, operand_unit(dtype, precision))


def check(
    layer: Layer,
    rule: LinearRule,
    layout: str,
    *,
    nonnegative: bool = False,
    dtype: torch.dtype = torch.float32,
    targets: int = 2,
    bias: bool = True,
    precision: str = "highest",
    **options: Any,
) -> None:
    """Output and relevance of a layer against float64."""
    truth = drawn(
        layer, rule, torch.bfloat16 if precision == "medium" else dtype,
        nonnegative=nonnegative, targets=targets, bias=bias, expanded=layout == "expanded",
        precision=precision,
    )  # fmt: skip
    truth.check(layout, dtype, nonnegative=nonnegative, precision=precision, **options)


def check_all(layer: Layer, rule: LinearRule, **drawing: Any) -> None:
    """Output and relevance of a layer against float64: every memory layout with every type."""
    for expanded in (False, True):
        # both of the short types hold these numbers, so that what is true is worked out once
        truth = drawn(layer, rule, torch.bfloat16, expanded=expanded, **drawing)
        for dtype, layout in product(DTYPES, LAYOUTS):
            if (layout == "expanded") == expanded:
                unit = operand_unit(dtype)
                own = truth if unit == truth.operand else replace(truth, operand=unit)
                own.check(layout, dtype, nonnegative=drawing.get("nonnegative", False))


def name(value: object) -> str:
    return value.name if isinstance(value, Layer) else str(value)
