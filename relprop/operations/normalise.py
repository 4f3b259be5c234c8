"""Layer, group, instance and RMS norm: statistics are constants, Epsilon on what remains.

With the standard deviation held constant, y = gain * (x - mean(x)) / sigma + shift is linear in x;
the shift absorbs its share.  Achtibat et al. 2024 (AttnLRP), identity rule on the normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.graph import Node, Ref
from relprop.operations.base import Engine, Operation, Step, quotient, register, wide
from relprop.rules import Norm, Pass, Rule

__all__ = ["GroupNorm", "LayerNorm"]


class _Normalisation(Operation):
    """Base: groups of elements share a mean and a standard deviation."""

    carry = "normalisation"

    def centred(self, node: Node) -> bool:
        """Whether the mean is subtracted."""
        return node.op != "rms_norm"

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        x = wide(values[step.inputs[0]])
        return x, out, self.slope(step.node, x, values)

    def slope(self, node: Node, x: Tensor, values: Mapping[str, Any]) -> Tensor:
        """gain / sigma, broadcasting against x."""
        raise TypeError(type(self).__name__)

    def grouped(self, node: Node, x: Tensor) -> Tensor:
        """A view of x whose last axis holds the elements that share statistics."""
        raise TypeError(type(self).__name__)

    def gain(self, node: Node, x: Tensor, values: Mapping[str, Any]) -> Tensor | None:
        """The gain, shaped to broadcast against x."""
        raise TypeError(type(self).__name__)

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        x, out, slope = saved
        if isinstance(step.rule, Pass):
            return (r,)
        assert isinstance(step.rule, Norm) and step.rule.epsilon is not None
        u = quotient(r, out, step.rule.epsilon).mul_(slope)
        if self.centred(step.node):
            for row in u:
                groups = self.grouped(step.node, row.contiguous())
                row.copy_((groups - groups.mean(-1, keepdim=True)).view(row.shape))
        return (u.mul_(x),)

    def default_rule(self, epsilon: float) -> Rule:
        return Norm(epsilon)

    def accepts(self, rule: Rule) -> bool:
        return isinstance(rule, (Norm, Pass))


def _given(value: Any, values: Mapping[str, Any]) -> Any:
    return values[value.name] if isinstance(value, Ref) else value


@register("layer_norm", "rms_norm")
class LayerNorm(_Normalisation):
    """Statistics over the trailing axes of each position."""

    kind = "layer_norm"

    def _size(self, node: Node) -> int:
        return math.prod(node.args[1])

    def grouped(self, node: Node, x: Tensor) -> Tensor:
        return x.reshape(-1, self._size(node))

    def gain(self, node: Node, x: Tensor, values: Mapping[str, Any]) -> Tensor | None:
        gain = _given(node.argument(2, "weight", None), values)
        return None if gain is None else wide(gain)

    def slope(self, node: Node, x: Tensor, values: Mapping[str, Any]) -> Tensor:
        groups = self.grouped(node, x)
        if node.op == "rms_norm":
            epsilon = node.argument(3, "eps", None)
            epsilon = torch.finfo(x.dtype).eps if epsilon is None else epsilon
            inverse = groups.square().mean(-1).add_(epsilon).rsqrt_()
        else:
            epsilon = node.argument(4, "eps", 1e-5)
            inverse = groups.var(-1, correction=0).add_(epsilon).rsqrt_()
        axes = len(node.args[1])
        inverse = inverse.view(*x.shape[: x.ndim - axes], *(1,) * axes)
        gain = self.gain(node, x, values)
        return inverse if gain is None else inverse * gain


@register("group_norm", "instance_norm")
class GroupNorm(_Normalisation):
    """Statistics over groups of channels of each sample."""

    kind = "group_norm"

    def _groups(self, node: Node, x: Tensor) -> int:
        return x.shape[1] if node.op == "instance_norm" else int(node.args[1])

    def grouped(self, node: Node, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0] * self._groups(node, x), -1)

    def gain(self, node: Node, x: Tensor, values: Mapping[str, Any]) -> Tensor | None:
        position = 1 if node.op == "instance_norm" else 2
        gain = _given(node.argument(position, "weight", None), values)
        return None if gain is None else wide(gain).view(-1, *(1,) * (x.ndim - 2))

    def slope(self, node: Node, x: Tensor, values: Mapping[str, Any]) -> Tensor:
        epsilon = node.argument(7 if node.op == "instance_norm" else 4, "eps", 1e-5)
        inverse = self.grouped(node, x).var(-1, correction=0).add_(epsilon).rsqrt_()
        groups = self._groups(node, x)
        inverse = inverse.view(x.shape[0], groups, 1).expand(-1, -1, x.shape[1] // groups)
        inverse = inverse.reshape(x.shape[0], x.shape[1], *(1,) * (x.ndim - 2))
        gain = self.gain(node, x, values)
        return inverse if gain is None else inverse * gain
