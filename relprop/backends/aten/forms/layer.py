"""A layer at work: its products, its bias, and what is known of its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from relprop.backends.aten.products import Products
from relprop.rules import LinearRule
from relprop.rules.terms import IDENTITY

__all__ = ["Layer", "Tensors"]

Tensors = tuple[Tensor, ...]
"""What the pass forward leaves to the pass back."""

R = TypeVar("R", bound=LinearRule)
T = TypeVar("T")


@dataclass(frozen=True)
class Layer(Generic[R]):
    """A layer at work.

    Attributes:
        rule: its rule.
        products: its products.
        b: its bias, a vector over output features, or None.
        shape: of its input.
        nonnegative: whether the input is known to be >= 0.
        cache: for what depends on the weights and on shapes alone.
        rectified: see `relprop.operations.protocol.LinearCall`.
        known: W a + b, where a forward pass shared with other rules has computed it.
    """

    rule: R
    products: Products
    b: Tensor | None
    shape: torch.Size
    nonnegative: bool
    cache: dict[Any, Any]
    rectified: bool = False
    known: Tensor | None = None

    @property
    def kept_bias(self) -> Tensor | None:
        """The bias, as far as it enters denominators."""
        return self.b if self.rule.zero_params is None else None

    def plus_bias(self, c: Tensor) -> Tensor:
        """A contraction plus the bias: `c` itself if there is none; rectified if so asked."""
        z = c if self.b is None else c + self.products.map.align(self.b)
        return z.relu_() if self.rectified else z

    def output(self, a: Tensor) -> Tensor:
        """W a + b; rectified if so asked."""
        if self.known is not None:
            return self.known.relu() if self.rectified else self.known
        return self.products.contraction(a, IDENTITY, self.b, rectify=self.rectified)

    def stable_bias(self, stabilizer: float) -> Tensor:
        """The bias' part of the stabilizer's sign, plus the stabilizer."""
        b = self.kept_bias
        if b is None:
            return self.products.w.new_full((self.products.features,), stabilizer)
        part = b.clamp(min=0) if stabilizer > 0 else b.clamp(max=0)
        return part.add_(stabilizer)

    def cached(self, key: Any, make: Callable[[], T]) -> T:
        """What depends on the weights and on shapes alone, made once."""
        if key not in self.cache:
            self.cache[key] = make()
        made: T = self.cache[key]
        return made

    @property
    def widens(self) -> bool:
        """Whether the input has both signs and `widened` gives it one."""
        return not self.nonnegative and self.products.widens

    def widened(self) -> Layer[R]:
        """The same layer as one of [a+, |a-|], both non-negative: W a = [W, -W] [a+, |a-|].

        Its sign parts are the summands' sign parts, in half as many products, and a convolution
        of few channels costs no more for twice as many.
        """
        products = self.cached("widened", self.products.widened)
        shape = list(self.shape)
        shape[products.map.feature_axis] *= 2
        return replace(
            self,
            products=products,
            shape=torch.Size(shape),
            nonnegative=True,
            cache=products.cache,
        )

    def halves(self, a: Tensor) -> Tensor:
        """[a+, |a-|] along the features."""
        axis = self.products.map.feature_axis
        return torch.cat([a.clamp(min=0), a.clamp(max=0).neg_()], axis)

    def folded(self, r: Tensor) -> Tensor:
        """Relevance of a from that of its halves."""
        first, second = r.chunk(2, self.products.map.feature_axis)
        return first + second
