"""Layers that a propagation rule applies to: dense, convolution, batch norm as a scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from relprop.errors import PlanningError
from relprop.graph import Ref
from relprop.operations.base import Engine, Operation, Step, register
from relprop.operations.protocol import LinearCall
from relprop.rules import Epsilon, LinearRule, Pass, Rule

__all__ = ["LinearLayer"]


class LinearLayer(Operation):
    """Base: the node's arguments are the input, the weight, the bias or None."""

    carry = "linear"
    weighted = True

    def forward(self, step: Step, values: Mapping[str, Any], engine: Engine) -> tuple[Any, Any]:
        a, w, b = (values[x.name] if isinstance(x, Ref) else x for x in step.node.args)
        if isinstance(step.rule, Pass):
            call = LinearCall(step.node.attributes["map"], Epsilon(), path=step.node.path)
            z, _ = engine.backend.forward(call, a, w, b)
            if z.shape != a.shape:
                raise PlanningError(
                    f"{step.where}: rule Pass needs input and output of one shape, got "
                    f"{list(a.shape)} and {list(z.shape)}; give it another rule"
                )
            return z, None
        cache = engine.cache(step.name) if step.options["constant"] else None
        known = engine.known.get(step.name)
        return engine.backend.forward(step.options["call"], a, w, b, cache, known)

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        if isinstance(step.rule, Pass):
            return (r,)
        return (engine.backend.relevance(step.options["call"], saved, r),)

    def default_rule(self, epsilon: float) -> Rule:
        return Epsilon(epsilon)

    def accepts(self, rule: Rule) -> bool:
        return isinstance(rule, (LinearRule, Pass))


@register("dense_map")
class DenseLayer(LinearLayer):
    """A dense layer."""

    kind = "linear"


@register("product_map")
class ProductLayer(LinearLayer):
    """A product with a weight for each sample: a factor that does not depend on the input."""

    kind = "linear"
    needs_kernel = True


@register("conv_map")
class ConvolutionLayer(LinearLayer):
    """A convolution."""

    kind = "conv"


@register("conv_transpose_map")
class TransposedConvolutionLayer(LinearLayer):
    """A transposed convolution."""

    kind = "conv_transpose"


@register("diagonal_map")
class BatchNormLayer(LinearLayer):
    """A batch norm that no neighbouring linear layer could take in."""

    kind = "batch_norm"
    weighted = False  # each unit on its own
