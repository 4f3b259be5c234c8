"""Joint: one layer that is fed by pixels and by a state."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from relprop.backends.aten.forms.constants import ZBoxForm
from relprop.backends.aten.forms.layer import Layer, Tensors
from relprop.backends.aten.products import Products
from relprop.graph.maps import CHANNELS_LAST, is_channels_last
from relprop.operations.arithmetic import divide, new_like, one_where_zero
from relprop.rules import Joint, ZBox
from relprop.rules.terms import IDENTITY, POSITIVE

__all__ = ["JointForm"]


class JointForm:
    """Pixels and state each through its own part of the weight, instead of masked copies of both.

    The pixels' box joins the state's first group.  A state of both signs is taken as [h+, |h-|].
    """

    def forward(self, layer: Layer[Joint], a: Tensor) -> tuple[Tensor, Tensors]:
        pixels, state = _layers(layer)
        x, h = _parts(layer, state, a)
        c = pixels.products.contraction(x, IDENTITY)
        positive, negative = state.products.pair(h)
        z = layer.plus_bias(positive + negative + c)
        bracket = ZBoxForm().bracket(pixels, *ZBoxForm().bounds(pixels, c))
        return z, (a, positive.add_(c).sub_(bracket), negative)

    def relevance(self, layer: Layer[Joint], saved: Tensors, r: Tensor) -> Tensor:
        a, first, second = saved
        pixels, state = _layers(layer)
        x, h = _parts(layer, state, a)
        rule, pair = layer.rule, state.products.pair_like(r)
        own = one_where_zero(second, rule.state.alpha)
        divide(r, first, rule.epsilon, scale=own, out=pair.first)
        if rule.state.beta:
            divide(r, second, rule.epsilon, sign=-1, scale=-rule.state.beta, out=pair.second)
            r_h = state.products.pair_adjoint(pair, state.shape, times=h)
        else:
            r_h = state.products.adjoint(pair.first, POSITIVE, state.shape, times=h)
        r_h = r_h if layer.nonnegative else layer.folded(r_h)
        r_x = ZBoxForm().share(pixels, x, pair.first)
        before, after = r_h.tensor_split([rule.span[0]], layer.products.map.feature_axis)
        result = new_like(r, (len(r), *layer.shape))
        return torch.cat([before, r_x, after], layer.products.map.feature_axis, out=result)


def _layers(layer: Layer[Joint]) -> tuple[Layer[ZBox], Layer[Joint]]:
    """The layer of the pixels alone, and that of the state, as `_parts` gives it."""
    start, stop = layer.rule.span
    if "joint" not in layer.cache:
        own, others = layer.products.split(start, stop)
        layer.cache["joint"] = own, others if layer.nonnegative else others.widened()
    made: tuple[Products, Products] = layer.cache["joint"]
    axis = layer.products.map.feature_axis
    shapes = [list(layer.shape), list(layer.shape)]
    shapes[0][axis] = stop - start
    shapes[1][axis] = (shapes[1][axis] - stop + start) * (1 if layer.nonnegative else 2)
    pixels = Layer(layer.rule.pixel, made[0], None, torch.Size(shapes[0]), False, made[0].cache)
    return pixels, replace(layer, products=made[1], shape=torch.Size(shapes[1]))


def _parts(layer: Layer[Joint], state: Layer[Joint], a: Tensor) -> Tensors:
    """The pixels, and the state as its layer takes it, in the memory format of the input."""
    axis = layer.products.map.feature_axis
    before, x, after = a.to(layer.products.w.dtype).tensor_split(layer.rule.span, axis)
    h = torch.cat([before, after], axis)
    layout = CHANNELS_LAST[a.ndim] if is_channels_last(a) else torch.contiguous_format
    h = h if layer.nonnegative else state.halves(h)
    return x.contiguous(memory_format=layout), h.contiguous(memory_format=layout)
