"""How the ATen backend evaluates each rule: the cheapest exact form known.

A form is a pair: `forward` gives the layer's output and the tensors that `relevance` needs.
`GeneralForm` walks the groups of any rule; the others are derived in their docstrings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from relprop.backends.pointwise import divide, new_like, one_where_zero, quotient
from relprop.backends.products import ABSOLUTE, Products, modified
from relprop.maps import Conv
from relprop.reference import modify
from relprop.rules import (
    IDENTITY,
    NEGATIVE,
    POSITIVE,
    SQUARE,
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Group,
    Joint,
    LinearRule,
    Modifier,
    Term,
    WSquare,
    ZBox,
    ZPlus,
    bound_tensor,
)

__all__ = ["Form", "Layer", "form_of"]

R = TypeVar("R", bound=LinearRule)
Tensors = tuple[Tensor, ...]


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
        rectified: see `relprop.backends.LinearCall`.
    """

    rule: R
    products: Products
    b: Tensor | None
    shape: torch.Size
    nonnegative: bool
    cache: dict[Any, Any]
    rectified: bool = False

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
        return self.products.contraction(a, IDENTITY, self.b, rectify=self.rectified)

    def biases(self, epsilon: float) -> tuple[Tensor, Tensor]:
        """b+ plus the stabilizer and b- minus it."""
        b = self.kept_bias
        b = self.products.w.new_zeros(self.products.features) if b is None else b
        return b.clamp(min=0).add_(epsilon), b.clamp(max=0).sub_(epsilon)

    @property
    def widens(self) -> bool:
        """Whether the input has both signs and `widened` gives it one."""
        return not self.nonnegative and self.products.widens

    def widened(self) -> Layer[R]:
        """The same layer as one of [a+, |a-|], both non-negative: W a = [W, -W] [a+, |a-|].

        Its sign parts are the summands' sign parts, in half as many products, and a convolution
        of few channels costs no more for twice as many.
        """
        if "widened" not in self.cache:
            self.cache["widened"] = self.products.widened()
        products: Products = self.cache["widened"]
        shape = list(self.shape)
        shape[products.map.feature_axis] *= 2
        return replace(
            self,
            products=products,
            shape=torch.Size(shape),
            nonnegative=True,
            cache=products.cache,
        )


def _halves(layer: Layer[Any], a: Tensor) -> Tensor:
    """[a+, |a-|] along the features."""
    axis = layer.products.map.feature_axis
    return torch.cat([a.clamp(min=0), a.clamp(max=0).neg_()], axis)


def _folded(layer: Layer[Any], r: Tensor) -> Tensor:
    """Relevance of a from that of its two halves."""
    first, second = r.chunk(2, layer.products.map.feature_axis)
    return first + second


class Form(Protocol[R]):
    """One way to evaluate a rule."""

    def forward(self, layer: Layer[R], a: Tensor) -> tuple[Tensor, Tensors]:
        """The layer's output and the tensors that `relevance` needs."""
        ...

    def relevance(self, layer: Layer[R], saved: Tensors, r: Tensor) -> Tensor:
        """Relevance of the input, `[K, *input shape]`, a new tensor."""
        ...


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


class ZPlusForm:
    """One group of positive summands, formed when relevance comes, so that only `a` is kept."""

    def forward(self, layer: Layer[LinearRule], a: Tensor) -> tuple[Tensor, Tensors]:
        return layer.output(a), (a,)

    def relevance(self, layer: Layer[LinearRule], saved: Tensors, r: Tensor) -> Tensor:
        (a,) = saved
        if layer.widens:
            wide = layer.widened()
            return _folded(layer, self.relevance(wide, (_halves(layer, a),), r))
        products, b = layer.products, layer.kept_bias
        if layer.nonnegative and layer.rule.epsilon:
            stable = products.contraction(a, POSITIVE, layer.biases(layer.rule.epsilon)[0])
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
        if layer.widens:
            z, (_, *groups) = self.forward(layer.widened(), _halves(layer, a))
            return z, (a, *groups)
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
        if layer.widens:
            saved = (_halves(layer, a), positive, negative)
            return _folded(layer, self.relevance(layer.widened(), saved, r))
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
    """Below a ReLU: of the two groups only the negative one is kept, st(z-).

    Relevance arrives only where z = z+ + z- > 0, and there st(z+) = z - st(z-) adds numbers of one
    sign, so nothing cancels.  The stabilizer rides on the biases, alpha and beta on the weights.
    """

    def forward(self, layer: Layer[AlphaBeta], a: Tensor) -> tuple[Tensor, Tensors]:
        if layer.widens:
            z, (_, *kept) = self.forward(layer.widened(), _halves(layer, a))
            return z, (a, *kept)
        above, below = layer.biases(layer.rule.epsilon)
        negative = layer.products.contraction(a, NEGATIVE, below)
        z = layer.products.contraction(a, POSITIVE, above, add=negative, rectify=True)
        return z, (a, z, negative)

    def relevance(self, layer: Layer[AlphaBeta], saved: Tensors, r: Tensor) -> Tensor:
        a, z, negative = saved
        if layer.widens:
            saved = (_halves(layer, a), z, negative)
            return _folded(layer, self.relevance(layer.widened(), saved, r))
        pair = layer.products.pair_like(r)
        positive = torch.sub(z.unsqueeze(0), negative, out=pair.first if len(r) == 1 else None)
        torch.div(r, positive, out=pair.first)
        torch.div(r, negative, out=pair.second)
        scales = (layer.rule.alpha, -layer.rule.beta)
        return layer.products.pair_adjoint(pair, layer.shape, scales=scales, times=a)


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


class ZBoxForm:
    """D = W a - bracket with bracket = W+ low + W- high, which no input changes.

    R_in = (a - low) * W+^T s + (a - high) * W-^T s.
    """

    def forward(self, layer: Layer[ZBox], a: Tensor) -> tuple[Tensor, Tensors]:
        c = layer.products.contraction(a, IDENTITY)
        return layer.plus_bias(c), (a, c)

    def relevance(self, layer: Layer[ZBox], saved: Tensors, r: Tensor) -> Tensor:
        a, c = saved
        products = layer.products
        a = a.to(c.dtype)
        low, high = (self._bound(b, layer, c) for b in (layer.rule.low, layer.rule.high))
        s = divide(r, c - self._bracket(layer, low, high), layer.rule.epsilon)
        result = products.adjoint(s, POSITIVE, layer.shape).mul_(a - low)
        return result.addcmul_(products.adjoint(s, NEGATIVE, layer.shape), a - high)

    def _bound(self, bound: Any, layer: Layer[ZBox], like: Tensor) -> Tensor:
        return bound_tensor(bound).to(device=like.device, dtype=like.dtype)

    def _bracket(self, layer: Layer[ZBox], low: Tensor, high: Tensor) -> Tensor:
        key = ("bracket", layer.rule, layer.shape[1:], layer.products.dtype)
        if key not in layer.cache:
            one_sample = (1, *layer.shape[1:])
            below = layer.products.contraction(low.expand(one_sample), POSITIVE)
            above = layer.products.contraction(high.expand(one_sample), NEGATIVE)
            layer.cache[key] = below.add_(above)
        bracket: Tensor = layer.cache[key]
        return bracket


class WSquareForm:
    """The denominator depends on the weights and, because of padding, on the position alone."""

    def forward(self, layer: Layer[WSquare], a: Tensor) -> tuple[Tensor, Tensors]:
        return layer.output(a), ()

    def relevance(self, layer: Layer[WSquare], saved: Tensors, r: Tensor) -> Tensor:
        s = divide(r, self._denominator(layer), layer.rule.epsilon, sign=1)
        return layer.products.adjoint(s, SQUARE, layer.shape)

    def _denominator(self, layer: Layer[WSquare]) -> Tensor:
        key = ("w_square", layer.rule.zero_params, layer.shape[1:], layer.products.dtype)
        if key not in layer.cache:
            ones = layer.products.w.new_ones(1).expand(1, *layer.shape[1:])
            b = layer.kept_bias
            b = None if b is None else b.square()
            layer.cache[key] = layer.products.contraction(ones, SQUARE, b)
        denominator: Tensor = layer.cache[key]
        return denominator


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
            return s.expand(r.shape[0], *shape).contiguous()
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
        key = ("flat", layer.shape[1:])
        if key not in layer.cache:
            ones = layer.products.w.new_ones(1, 1, *layer.shape[2:])
            taps = replace(linear_map, groups=1).contraction(ones, self._box(layer, 1))
            layer.cache[key] = taps.mul_(layer.shape[1] // linear_map.groups)
        fan_in: Tensor = layer.cache[key]
        return fan_in


class GeneralForm:
    """Any rule, group by group; adjoints that meet the same modified input are added first."""

    def forward(self, layer: Layer[LinearRule], a: Tensor) -> tuple[Tensor, Tensors]:
        z = layer.output(a)
        return z, (a, z)

    def relevance(self, layer: Layer[LinearRule], saved: Tensors, r: Tensor) -> Tensor:
        a, z = saved
        rule, products = layer.rule, layer.products
        denominators = [self._denominator(layer, a, z, group) for group in rule.groups]
        sums: dict[Modifier, Tensor] = {}
        for group, d, scale in zip(
            rule.groups, denominators, _scales(rule, denominators), strict=True
        ):
            s = divide(r, d, rule.epsilon, scale=scale)
            if group.gate is not None:
                s.masked_fill_(z <= 0 if group.gate == "positive" else z >= 0, 0.0)
            for term in self._terms(layer, group):
                product = products.adjoint(s, term.weight, layer.shape)
                known = sums.get(term.input)
                sums[term.input] = product if known is None else known.add_(product)
        shares = [total.mul_(self._input(layer, a, m)) for m, total in sums.items()]
        return reduce(Tensor.add_, shares) if shares else r.new_zeros(r.shape[0], *layer.shape)

    def _denominator(self, layer: Layer[LinearRule], a: Tensor, z: Tensor, group: Group) -> Tensor:
        d = torch.zeros_like(z)
        for term in self._terms(layer, group):
            d.add_(layer.products.contraction(self._input(layer, a, term.input), term.weight))
        if layer.b is not None:
            d.add_(layer.products.map.align(modified(group.bias, layer.b)))
        return d

    def _terms(self, layer: Layer[LinearRule], group: Group) -> list[Term]:
        """The group's terms, without those whose input is known to be 0."""
        return [t for t in group.terms if not (layer.nonnegative and t.input.kind == "negative")]

    def _input(self, layer: Layer[LinearRule], a: Tensor, modifier: Modifier) -> Tensor:
        return modify(modifier, a.to(layer.products.w.dtype), layer.products.map, layer.rule)


def _scales(rule: LinearRule, denominators: list[Tensor]) -> list[Tensor | float]:
    """Lambda of every group; `Joint` gives all to the first where the second is empty."""
    scales: list[Tensor | float] = [group.scale for group in rule.groups]
    if isinstance(rule, Joint) and len(denominators) == 2:
        second = denominators[1]
        scales[0] = one_where_zero(second, rule.groups[0].scale)
    return scales


def _by_sign(a: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """`a` times one tensor where a > 0, times the other elsewhere; overwrites the first."""
    return above.mul_(a.clamp(min=0)).addcmul_(below, a.clamp(max=0))


_FORMS: dict[type[LinearRule], Form[Any]] = {
    Epsilon: EpsilonForm(),
    ZPlus: ZPlusForm(),
    AlphaBeta: AlphaBetaForm(),
    Gamma: GammaForm(),
    ZBox: ZBoxForm(),
    WSquare: WSquareForm(),
    Flat: FlatForm(),
}


def form_of(layer: Layer[Any]) -> Form[Any]:
    """The form that evaluates a layer's rule."""
    rule = layer.rule
    if isinstance(rule, AlphaBeta):
        if rule.beta == 0:
            return _FORMS[ZPlus]
        plain = rule.epsilon > 0 and not rule.conserve and rule.zero_params is None
        if plain and layer.rectified and (layer.nonnegative or layer.widens):
            return RectifiedAlphaBetaForm()
    return _FORMS.get(type(rule), GeneralForm())
