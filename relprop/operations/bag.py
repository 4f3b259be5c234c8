"""Bags of embedded tokens: sums, means and maxima over stretches of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from relprop.graph import map_refs
from relprop.graph.bags import coefficients, places, winners
from relprop.operations.base import Engine, Operation, Step, quotient, register, wide
from relprop.rules import Norm, Rule

__all__ = ["Bag"]


@register("bag")
class Bag(Operation):
    """Sums and means in proportion to what is summed; of a maximum the first one takes all."""

    kind = "avg_pool"
    carry = "bag"
    averages = True

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        rows, *given = (map_refs(argument, values.__getitem__) for argument in step.node.args)
        if given[2] == "max":
            return winners(rows, out, *given), None, None, len(rows)
        summands = wide(rows) * coefficients(*given).to(rows)[:, None]
        return places(given[0], given[1], given[4]), summands, out, len(rows)

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        where, summands, out, count = saved
        if summands is None:
            result = r.new_zeros(r.shape[0], count + 1, r.shape[2])
            result.scatter_(1, where.expand(r.shape), r)
            return (result[:, :count],)
        assert isinstance(step.rule, Norm) and step.rule.epsilon is not None
        return (quotient(r, out, step.rule.epsilon)[:, where] * summands,)

    def accepts(self, rule: Rule) -> bool:
        return isinstance(rule, Norm)

    def default_rule(self, epsilon: float) -> Rule:
        return Norm(epsilon)
