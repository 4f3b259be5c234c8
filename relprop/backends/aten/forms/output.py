"""Rules whose denominators follow the sign of the output: Epsilon and Gamma."""

from __future__ import annotations

from torch import Tensor

from relprop.backends.aten.forms.layer import Layer, Tensors
from relprop.operations.quotients import divide
from relprop.rules import Epsilon, Gamma
from relprop.rules.terms import ABSOLUTE, IDENTITY

__all__ = ["EpsilonForm", "GammaForm"]


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
