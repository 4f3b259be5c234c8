"""Rules whose relevance is a multiple of the input: one or two products each way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relprop.backends.aten.forms.layer import Layer, Tensors
from relprop.operations.arithmetic import divide, one_where_zero, quotient
from relprop.rules import AlphaBeta, Epsilon, Gamma, LinearRule
from relprop.rules.terms import ABSOLUTE, IDENTITY, NEGATIVE, POSITIVE

__all__ = [
    "AlphaBetaForm",
    "EpsilonForm",
    "GammaForm",
    "RectifiedAlphaBetaForm",
    "WidenedForm",
    "ZPlusForm",
]


class ZPlusForm:
    """One group of positive summands, formed when relevance comes, so that only `a` is kept."""

    def forward(self, layer: Layer[LinearRule], a: Tensor) -> tuple[Tensor, Tensors]:
        return layer.output(a), (a,)

    def relevance(self, layer: Layer[LinearRule], saved: Tensors, r: Tensor) -> Tensor:
        (a,) = saved
        products, b = layer.products, layer.kept_bias
        if layer.nonnegative and layer.rule.epsilon:
            stable = products.contraction(a, POSITIVE, layer.stable_bias(layer.rule.epsilon))
            return products.adjoint(quotient(r, stable), POSITIVE, layer.shape, times=a)
        b = None if b is None else b.clamp(min=0)
        z = products.contraction(a.clamp(min=0), POSITIVE, b)
        if layer.nonnegative:
            s = divide(r, z, layer.rule.epsilon, sign=1)
            return products.adjoint(s, POSITIVE, layer.shape, times=a)
        z.add_(products.contraction(a.clamp(max=0), NEGATIVE))
        s = divide(r, z, layer.rule.epsilon, sign=1)
        above = products.adjoint(s, POSITIVE, layer.shape)
        return _by_sign(a, above, products.adjoint(s, NEGATIVE, layer.shape))


class AlphaBetaForm:
    """Both groups at once; the output is their sum, so there is no product for it.

    Non-negative inputs need W+ and W- once each way, signed ones twice.
    """

    def forward(self, layer: Layer[AlphaBeta], a: Tensor) -> tuple[Tensor, Tensors]:
        if layer.nonnegative:
            positive, negative = layer.products.pair(a)
        else:
            positive, opposing = layer.products.pair(a.clamp(min=0))
            negative, agreeing = layer.products.pair(a.clamp(max=0))
            positive, negative = positive.add_(agreeing), negative.add_(opposing)
        if layer.b is None or layer.rule.zero_params is not None:
            return layer.plus_bias(positive + negative), (a, positive, negative)
        b = layer.products.map.align(layer.b)
        positive.add_(b.clamp(min=0))
        negative.add_(b.clamp(max=0))
        z = positive + negative
        return z.relu_() if layer.rectified else z, (a, positive, negative)

    def relevance(self, layer: Layer[AlphaBeta], saved: Tensors, r: Tensor) -> Tensor:
        a, positive, negative = saved
        rule, products = layer.rule, layer.products
        scales: tuple[float | Tensor, float | Tensor] = (rule.alpha, -rule.beta)
        if rule.conserve:
            scales = (one_where_zero(negative, rule.alpha), one_where_zero(positive, -rule.beta))
        pair = products.pair_like(r)
        divide(r, positive, rule.epsilon, sign=1, scale=scales[0], out=pair.first)
        divide(r, negative, rule.epsilon, sign=-1, scale=scales[1], out=pair.second)
        if layer.nonnegative:
            return products.pair_adjoint(pair, layer.shape, times=a)
        above = products.pair_adjoint(pair, layer.shape)
        return _by_sign(a, above, products.pair_adjoint(pair, layer.shape, swapped=True))


class RectifiedAlphaBetaForm:
    """Below a ReLU, for inputs >= 0: of the two groups only the negative one is kept, st(z-).

    Relevance arrives only where z = z+ + z- > 0, and there st(z+) = z - st(z-) adds numbers of one
    sign, so nothing cancels.  z has a product of its own: as z+ + z- it would carry the rounding of
    the larger z+, enough to let another element win a maximum above.  The stabilizer rides on the
    bias, alpha and beta on the weights.
    """

    def forward(self, layer: Layer[AlphaBeta], a: Tensor) -> tuple[Tensor, Tensors]:
        below = layer.stable_bias(-layer.rule.epsilon)
        z = layer.output(a)
        return z, (a, z, layer.products.contraction(a, NEGATIVE, below))

    def relevance(self, layer: Layer[AlphaBeta], saved: Tensors, r: Tensor) -> Tensor:
        a, z, negative = saved
        pair = layer.products.pair_like(r)
        positive = torch.sub(z.unsqueeze(0), negative, out=pair.first if len(r) == 1 else None)
        torch.div(r, positive, out=pair.first)
        torch.div(r, negative, out=pair.second)
        scales = (layer.rule.alpha, -layer.rule.beta)
        return layer.products.pair_adjoint(pair, layer.shape, scales=scales, times=a)


class WidenedForm:
    """Inputs of both signs as twice as many non-negative ones: see `Layer.widened`."""

    def __init__(self, form: ZPlusForm | AlphaBetaForm | RectifiedAlphaBetaForm) -> None:
        self.form = form

    def forward(self, layer: Layer[Any], a: Tensor) -> tuple[Tensor, Tensors]:
        if isinstance(self.form, ZPlusForm):  # keeps nothing but the input
            return self.form.forward(layer, a)
        z, (_, *kept) = self.form.forward(layer.widened(), layer.halves(a))
        return z, (a, *kept)

    def relevance(self, layer: Layer[Any], saved: Tensors, r: Tensor) -> Tensor:
        a, *kept = saved
        wide = self.form.relevance(layer.widened(), (layer.halves(a), *kept), r)
        return layer.folded(wide)


def _by_sign(a: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """`a` times one tensor where a > 0, times the other elsewhere; overwrites the first."""
    return above.mul_(a.clamp(min=0)).addcmul_(below, a.clamp(max=0))


class EpsilonForm:
    """The denominator is the output itself, or the output without its bias."""

    def forward(self, layer: Layer[Epsilon], a: Tensor) -> tuple[Tensor, Tensors]:
        if layer.rule.zero_params is None:
            z = layer.output(a)
            return z, (a, z)
        c = layer.products.contraction(a, IDENTITY)
        return layer.plus_bias(c), (a, c)

    def relevance(self, layer: Layer[Epsilon], saved: Tensors, r: Tensor) -> Tensor:
        a, c = saved
        rectified = layer.rectified and layer.rule.zero_params is None
        s = divide(r, c, layer.rule.epsilon, sign=1 if rectified else 0)
        return layer.products.adjoint(s, IDENTITY, layer.shape, times=a)


class GammaForm:
    """Two products each way for inputs of any sign.

    With A = |W||a| + |b| the group of the output's sign has the denominator
    D = (1 + gamma/2) z + (gamma/2) sgn(z) A, and with s = [z != 0] R / st(D)
    R_in = (1 + gamma/2) a * W^T s + (gamma/2) |a| * |W|^T (sgn(z) s).
    Here sgn(0) = 0, which is the gate.
    """

    def forward(self, layer: Layer[Gamma], a: Tensor) -> tuple[Tensor, Tensors]:
        if layer.rule.zero_params is None:
            z = layer.output(a)
            return z, (a, z, z)
        c = layer.products.contraction(a, IDENTITY)
        z = layer.plus_bias(c)
        return z, (a, c, z)

    def relevance(self, layer: Layer[Gamma], saved: Tensors, r: Tensor) -> Tensor:
        a, c, z = saved
        products, half = layer.products, layer.rule.gamma / 2
        size = a if layer.nonnegative else a.abs()
        sign = z.sign()
        b = layer.kept_bias
        d = products.contraction(size, ABSOLUTE, None if b is None else b.abs())
        d.mul_(sign).mul_(half).add_(c, alpha=1 + half)
        favouring = divide(r, d, layer.rule.epsilon).mul_(sign)
        favoured = products.adjoint(favouring, ABSOLUTE, layer.shape)
        s = favouring.mul_(sign)
        result = products.adjoint(s, IDENTITY, layer.shape).mul_(1 + half)
        if layer.nonnegative:
            return result.add_(favoured, alpha=half).mul_(a)
        return result.mul_(a).addcmul_(favoured, size, value=half)
