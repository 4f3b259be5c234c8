"""Bases of the rules of linear modules: a stabilizer, parameters left out, relprop's products."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from zennit.core import Stabilizer

from relprop import rules
from relprop.errors import InputError
from relprop.integrations.zennit.hook import RuleHook
from relprop.integrations.zennit.layers import linear_module
from relprop.operations.base import quotient
from relprop.rules.bounds import bound_tensor

__all__ = ["AnyModuleHook", "LinearHook", "Stabilizing", "ZeroParams"]

Stabilizing = float | Callable[[Tensor], Tensor]
ZeroParams = str | Sequence[str] | None


def _stabilizer(owner: str, value: Any) -> tuple[float, Callable[[Tensor], Tensor] | None]:
    """The epsilon of a plain stabilizer, or a callable in its place."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value), None
    if type(value) is Stabilizer and not value.clip and not value.norm_scale:
        return float(value.epsilon), None
    if callable(value):
        return 0.0, value
    raise TypeError(
        f"{owner}: the stabilizer is {value!r}; expected a number, or a function of the denominator"
    )


def _zeroed(owner: str, zero_params: ZeroParams) -> frozenset[str]:
    names = [zero_params] if isinstance(zero_params, str) else list(zero_params or ())
    unknown = sorted(set(names) - {"weight", "bias"})
    if unknown:
        raise InputError(f"{owner}: zero_params has {unknown}; expected 'weight' or 'bias'")
    return frozenset(names)


class LinearHook(RuleHook):
    """Base of the rules of linear modules.

    Attributes:
        stabilize: replaces the rule's epsilon; None where that is a number.
    """

    def __init__(self, stabilizer: Stabilizing, zero_params: ZeroParams, **others: Any) -> None:
        super().__init__(stabilizer=stabilizer, zero_params=zero_params, **others)
        self._prepare()

    def _prepare(self) -> None:
        name = type(self).__name__
        self.epsilon, self.stabilize = _stabilizer(name, self.parameters["stabilizer"])
        self._zeroed = _zeroed(name, self.parameters["zero_params"])
        self.rule_for(None)

    def copy(self) -> LinearHook:
        """A hook of the same rule for another module."""
        copied = super().copy()
        assert isinstance(copied, LinearHook)
        copied._prepare()
        return copied

    @property
    def zero_bias(self) -> str | None:
        """relprop's spelling of a bias that is left out."""
        return "bias" if "bias" in self._zeroed else None

    @property
    def zero_weight(self) -> bool:
        """Whether the weight is left out, which leaves no relevance at all."""
        return "weight" in self._zeroed

    @abstractmethod
    def rule_for(self, shape: torch.Size | None) -> rules.LinearRule:
        """The rule for an input of that shape; None: for inputs of any."""

    def relevance(self, module: nn.Module, x: Tensor, r: Tensor, g: Tensor | None) -> Tensor:
        """See `RuleHook.relevance`."""
        layer = linear_module(module, x, r.shape)
        if layer is None:
            return self._of_others(module, x, r)
        if self.zero_weight:
            return torch.zeros_like(x)
        rule = self.rule_for(x.shape)
        if isinstance(rule, rules.ZBox):
            rule = _padded(rule, layer.pad, x)
        return layer.relevance(r, rule, self.stabilize)

    def _of_others(self, module: nn.Module, x: Tensor, r: Tensor) -> Tensor:
        raise InputError(
            f"{self.where(module)}: no linear layer or convolution of torch.nn with the forward "
            "pass of its class; give it Pass, Norm or Epsilon"
        )


def _padded(rule: rules.ZBox, pad: Callable[[Tensor], Tensor], x: Tensor) -> rules.ZBox:
    """The box around an input that the module pads with its own values."""
    bounds = [bound_tensor(bound) for bound in (rule.low, rule.high)]
    if all(bound.ndim == 0 for bound in bounds) or pad(x).shape == x.shape:
        return rule
    low, high = (pad(bound.to(x.device).expand(x.shape)) for bound in bounds)
    return rules.ZBox(low, high, rule.epsilon, rule.zero_params)


class AnyModuleHook(LinearHook):
    """Base of the rules that need nothing of the module but its gradient."""

    def _of_others(self, module: nn.Module, x: Tensor, r: Tensor) -> Tensor:
        if self._zeroed:
            return super()._of_others(module, x, r)
        graphed = torch.is_grad_enabled()
        with torch.enable_grad():
            a = x if graphed and x.requires_grad else x.detach().requires_grad_()
            z = module.forward(a.view_as(a).clone())
            stabilized = quotient(r, z, self.epsilon)
            if self.stabilize is not None:
                stabilized = r / self.stabilize(z)
            (share,) = torch.autograd.grad(z, a, stabilized, create_graph=graphed)
        return x * share
