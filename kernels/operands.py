"""What the launchers of every layer kind take: prepared weights, boxes, calls, adjoint passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relprop.errors import InputError
from relprop.graph.maps import LinearMap
from relprop.kernels.program import Product, Program
from relprop.kernels.tiling import Choice
from relprop.rules.bounds import Bound

__all__ = [
    "AdjointCall",
    "ContractionCall",
    "LeftBox",
    "Lower",
    "Pass",
    "Weight",
    "lower_numbers",
]


@dataclass(frozen=True)
class Weight:
    """The modified weights of a program.

    Attributes:
        tensor: `[parts, *weight.shape]`; the modified weights, or the weight itself (one part).
        atoms: the modifiers still to be applied in registers, one for each weight of the program;
            None if they have been applied.
        source: dtype in which the operands enter the products.
    """

    tensor: Tensor
    atoms: list[str] | None
    source: torch.dtype

    @property
    def parts(self) -> int:
        """Weights in memory."""
        return self.tensor.shape[0]

    def of(self, products: Sequence[Product]) -> Weight:
        """Those that the products use, where they are in memory one by one."""
        if self.atoms is not None:
            return self
        last = max(product.weight for product in products)
        return Weight(self.tensor[: last + 1], None, self.source)


@dataclass(frozen=True)
class LeftBox:
    """Bounds of the input, `[2, *sample shape]`, and the features they bound.

    An unbounded input has `boxed` false and an empty tensor.
    """

    tensor: Tensor
    start: int
    stop: int
    boxed: bool

    @classmethod
    def of(cls, program: Program, a: Tensor, feature_axis: int) -> LeftBox:
        """The box of a program for an input `[batch, *sample shape]`."""
        features = a.shape[feature_axis]
        if program.box is None:
            return cls(a.new_empty(0), 0, 0, False)
        sample = a.shape[1:] if a.dim() > 1 else a.shape
        start, stop = program.channels or (0, features)
        axis = feature_axis + len(sample)
        target = list(sample)
        target[axis] = stop - start
        low, high = (_bound(value, target, a) for value in program.box)
        both = torch.stack(torch.broadcast_tensors(low, high))
        both = both.reshape(2, *(1,) * (len(target) + 1 - both.dim()), *both.shape[1:])
        if program.channels is None:
            return cls(both.expand(2, *sample), start, stop, True)
        full = both.new_zeros(2, *sample)
        full.narrow(axis + 1, start, stop - start).copy_(both)
        return cls(full, start, stop, True)


def _bound(value: float | Bound, sample: list[int], a: Tensor) -> Tensor:
    # neither waits for the device once a bound is there, so that a CUDA graph can hold this
    if isinstance(value, Bound):
        bound = value.on(a.device)
    else:
        bound = torch.full((), value, device=a.device, dtype=torch.float32)
    if bound.dim() > len(sample) and bound.shape[0] == 1:
        bound = bound[0]
    try:
        bound.expand(sample)
    except RuntimeError:
        raise InputError(
            f"box: a bound of shape {tuple(bound.shape)} does not broadcast against the input's "
            f"shape without its batch axis, {tuple(sample)}; pass a number or such a tensor"
        ) from None
    return bound


@dataclass(frozen=True)
class ContractionCall:
    """One contraction: `[batch, ...]` input to `z`, `[saved, batch, ...]`, and output `y`.

    `z` None saves nothing; `output` names the accumulators that make up `y` (see `Program`).
    """

    map: LinearMap
    program: Program
    a: Tensor
    weight: Weight
    bias: Tensor | None
    z: Tensor | None
    y: Tensor | None
    output: str | None
    activation: str | None
    precision: str
    tile: Choice | None

    @property
    def products(self) -> tuple[Product, ...]:
        """Those that z takes, and what `y` takes beside them."""
        return self.program.products + (self.program.completion if self.output else ())


@dataclass(frozen=True)
class Lower:
    """The layer below, when its quotient is fused into this adjoint.

    Attributes:
        program: of the layer below.
        z: what its contraction saved, `[saved, *a.shape]` of this layer's input.
        feature_axis: of the layer's output, from the end.
    """

    program: Program
    z: Tensor
    feature_axis: int

    def mode(self, a: Tensor) -> str:
        """The quotient's mode; "input" where the one denominator is the input `a` above itself."""
        z = self.z[0]
        same = a.untyped_storage()._cdata == z.untyped_storage()._cdata
        same = same and a.storage_offset() == z.storage_offset() and a.stride() == z.stride()
        return "input" if same and self.program.mode == "one" else self.program.mode


def lower_numbers(lower: Lower | None) -> tuple[float, float, float]:
    """Stabilizer and scales of the quotient of the layer below; unused if there is none."""
    return (0.0, 1.0, 1.0) if lower is None else lower.program.numbers


@dataclass(frozen=True)
class Pass:
    """One launch of an adjoint: at most two input factors."""

    factors: tuple[str, ...]
    products: tuple[Product, ...]
    add: bool
    stacked: bool
    lower: str | None

    @property
    def quotients(self) -> int:
        """Quotients of the layer below that the epilogue takes."""
        return 0 if self.lower is None else 1 if self.lower in ("one", "input") else 2

    @property
    def reads(self) -> bool:
        """Whether the factors, or the quotient of the layer below, need the input's values."""
        return self.lower == "input" or any(factor != "one" for factor in self.factors)


@dataclass(frozen=True)
class AdjointCall:
    """One adjoint: `[quotients, targets * batch, ...]` to `[parts, targets * batch, ...]`.

    `out` has one part, or as many as the lower layer's rule has quotients.
    """

    map: LinearMap
    program: Program
    s: Tensor
    a: Tensor
    weight: Weight
    out: Tensor
    lower: Lower | None
    precision: str
    tile: Choice | None

    def passes(self) -> Iterator[Pass]:
        """The launches, in order; only the last one divides by the lower layer's z."""
        factors = self.program.factors
        for first in range(0, len(factors), 2):
            last = first + 2 >= len(factors)
            products = tuple(
                Product(p.accumulator - first, p.left, p.factor, p.weight)
                for p in self.program.adjoint
                if first <= p.accumulator < first + 2
            )
            pairs = [(p.accumulator, p.left, p.weight) for p in products]
            stacked = self.weight.parts == 2 and pairs == [(0, 0, 0), (0, 1, 1)]
            yield Pass(
                factors=factors[first : first + 2],
                products=products[:1] if stacked else products,
                add=first > 0,
                stacked=stacked,
                lower=self.lower.mode(self.a) if self.lower and last else None,
            )
