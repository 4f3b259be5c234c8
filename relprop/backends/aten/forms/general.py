"""Any rule, from its groups alone."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from relprop.backends.aten.forms.layer import Layer, Tensors
from relprop.operations.arithmetic import divide, modified, modify, one_where_zero
from relprop.rules import Joint, LinearRule
from relprop.rules.terms import Group, Modifier, Term

__all__ = ["GeneralForm"]


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
