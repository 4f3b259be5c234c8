"""Rules whose denominators hold something that no input changes: ZBox, WSquare and Flat."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from relprop.backends.aten.forms.layer import Layer, Tensors
from relprop.graph.maps import Conv, unbroadcast
from relprop.operations.arithmetic import divide, new_like
from relprop.rules import Flat, WSquare, ZBox
from relprop.rules.bounds import bound_tensor
from relprop.rules.terms import IDENTITY, NEGATIVE, POSITIVE, SQUARE

__all__ = ["FlatForm", "WSquareForm", "ZBoxForm"]


class ZBoxForm:
    """D = W a - bracket with bracket = W+ low + W- high, which no input changes.

    R_in = (a - low) * W+^T s + (a - high) * W-^T s.
    """

    def forward(self, layer: Layer[ZBox], a: Tensor) -> tuple[Tensor, Tensors]:
        c = layer.products.contraction(a, IDENTITY)
        return layer.plus_bias(c), (a, c)

    def relevance(self, layer: Layer[ZBox], saved: Tensors, r: Tensor) -> Tensor:
        a, c = saved
        bracket = self.bracket(layer, *self.bounds(layer, c))
        return self.share(layer, a.to(c.dtype), divide(r, c - bracket, layer.rule.epsilon))

    def share(self, layer: Layer[ZBox], a: Tensor, s: Tensor) -> Tensor:
        """Relevance of the input `a` from the quotients `s`."""
        low, high = self.bounds(layer, a)
        result = layer.products.adjoint(s, POSITIVE, layer.shape).mul_(a - low)
        return result.addcmul_(layer.products.adjoint(s, NEGATIVE, layer.shape), a - high)

    def bounds(self, layer: Layer[ZBox], like: Tensor) -> tuple[Tensor, Tensor]:
        """The corners of the box, in dtype and on the device of `like`."""
        low, high = (bound_tensor(bound).to(like) for bound in (layer.rule.low, layer.rule.high))
        return low, high

    def bracket(self, layer: Layer[ZBox], low: Tensor, high: Tensor) -> Tensor:
        """W+ low + W- high."""

        def made() -> Tensor:
            one_sample = (1, *layer.shape[1:])
            below = layer.products.contraction(low.expand(one_sample), POSITIVE)
            return below.add_(layer.products.contraction(high.expand(one_sample), NEGATIVE))

        return layer.cached(("bracket", layer.rule, layer.shape[1:], layer.products.dtype), made)


class WSquareForm:
    """The denominator depends on the weights and, because of padding, on the position alone."""

    def forward(self, layer: Layer[WSquare], a: Tensor) -> tuple[Tensor, Tensors]:
        return layer.output(a), ()

    def relevance(self, layer: Layer[WSquare], saved: Tensors, r: Tensor) -> Tensor:
        s = divide(r, self._denominator(layer), layer.rule.epsilon, sign=1)
        return layer.products.adjoint(s, SQUARE, layer.shape)

    def _denominator(self, layer: Layer[WSquare]) -> Tensor:
        def made() -> Tensor:
            ones, b = layer.products.w.new_ones(1).expand(1, *layer.shape[1:]), layer.kept_bias
            return layer.products.contraction(ones, SQUARE, None if b is None else b.square())

        key = ("w_square", layer.rule.zero_params, layer.shape[1:], layer.products.dtype)
        return layer.cached(key, made)


class FlatForm:
    """No product with the weight: sums over output features, a box filter, the same for all inputs.

    n(q), the valid taps at output position q, gives the denominator n(q) C_in / groups.
    """

    def forward(self, layer: Layer[Flat], a: Tensor) -> tuple[Tensor, Tensors]:
        return layer.output(a), ()

    def relevance(self, layer: Layer[Flat], saved: Tensors, r: Tensor) -> Tensor:
        shape, linear_map = layer.shape, layer.products.map
        if not isinstance(linear_map, Conv):
            s = r.sum(-1, keepdim=True).div_(shape[-1] + layer.rule.epsilon)
            return unbroadcast(s.expand(*s.shape[:-1], shape[-1]), shape).contiguous()
        groups = linear_map.groups
        per_group = r.flatten(0, 1).unflatten(1, (groups, -1)).sum(2)
        s = divide(per_group, self._fan_in(layer, linear_map), layer.rule.epsilon, sign=1)
        one_channel = torch.Size((s.shape[0], groups, *shape[2:]))
        box = linear_map.adjoint(s, self._box(layer, groups), one_channel).unsqueeze(2)
        result = new_like(r, (r.shape[0], *shape))
        result.unflatten(2, (groups, -1)).copy_(box.unflatten(0, r.shape[:2]))
        return result

    def _box(self, layer: Layer[Flat], groups: int) -> Tensor:
        w = layer.products.w
        return w.new_ones(groups, 1, *w.shape[2:])

    def _fan_in(self, layer: Layer[Flat], linear_map: Conv) -> Tensor:
        def made() -> Tensor:
            ones = layer.products.w.new_ones(1, 1, *layer.shape[2:])
            taps = replace(linear_map, groups=1).contraction(ones, self._box(layer, 1))
            return taps.mul_(layer.shape[1] // linear_map.groups)

        return layer.cached(("flat", layer.shape[1:]), made)
