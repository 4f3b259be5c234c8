"""Zennit's rules, under Zennit's names and with its arguments, on relprop's products.

Each is one of Zennit's hooks, for its composites and for hook-based code of one's own.  Numbers are
Zennit's, but for its errors: bounds given as Python numbers are not rounded to float32, 0/0 is 0, a
module may be called twice, weights are read with their parametrizations, and a misspelt
`zero_params` is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from zennit.core import Stabilizer

from relprop import rules
from relprop.errors import InputError
from relprop.integrations.zennit.bounds import fitted, for_any_batch
from relprop.integrations.zennit.hook import RuleHook
from relprop.integrations.zennit.layers import linear_module
from relprop.reference import quotient

__all__ = [
    "AlphaBeta",
    "Epsilon",
    "Flat",
    "Gamma",
    "LinearHook",
    "Norm",
    "Pass",
    "ReLUBetaSmooth",
    "ReLUDeconvNet",
    "ReLUGuidedBackprop",
    "WSquare",
    "ZBox",
    "ZPlus",
]

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

    def rule_for(self, shape: torch.Size | None) -> rules.LinearRule:
        """The rule for an input of that shape; None: for inputs of any."""
        raise NotImplementedError(type(self).__name__)

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
    bounds = [rules.bound_tensor(bound) for bound in (rule.low, rule.high)]
    if all(bound.ndim == 0 for bound in bounds) or pad(x).shape == x.shape:
        return rule
    low, high = (pad(bound.to(x.device).expand(x.shape)) for bound in bounds)
    return rules.ZBox(low, high, rule.epsilon, rule.zero_params)


class _AnyModule(LinearHook):
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


class Epsilon(_AnyModule):
    """LRP-epsilon; `Epsilon(0)` is LRP-0.  Bach et al. 2015.

    Args:
        epsilon: the stabilizer: a number, or a function of the denominator.
        zero_params: names among "weight" and "bias" of what is taken for 0.
    """

    def __init__(self, epsilon: Stabilizing = 1e-6, zero_params: ZeroParams = None) -> None:
        super().__init__(epsilon, zero_params)

    def rule_for(self, shape: torch.Size | None) -> rules.LinearRule:
        """See `LinearHook.rule_for`."""
        return rules.Epsilon(self.epsilon, self.zero_bias)


class Norm(_AnyModule):
    """Epsilon on a module's own map, with or without parameters: pooling, sums.

    Args:
        stabilizer: see `Epsilon`.
    """

    def __init__(self, stabilizer: Stabilizing = 1e-6) -> None:
        super().__init__(stabilizer, None)

    def rule_for(self, shape: torch.Size | None) -> rules.LinearRule:
        """See `LinearHook.rule_for`."""
        return rules.Epsilon(self.epsilon)


class Gamma(LinearHook):
    """Generalised LRP-gamma, for inputs of any sign.  Andéol et al. 2021.

    Args:
        gamma: how much contributions of the output's own sign are favoured.
        stabilizer, zero_params: see `Epsilon`.
    """

    def __init__(
        self, gamma: float = 0.25, stabilizer: Stabilizing = 1e-6, zero_params: ZeroParams = None
    ) -> None:
        super().__init__(stabilizer, zero_params, gamma=gamma)

    def rule_for(self, shape: torch.Size | None) -> rules.LinearRule:
        """See `LinearHook.rule_for`."""
        return rules.Gamma(self.parameters["gamma"], self.epsilon, self.zero_bias)


class ZPlus(LinearHook):
    """z-plus.  Montavon et al. 2017.

    Args:
        stabilizer, zero_params: see `Epsilon`.
    """

    def __init__(self, stabilizer: Stabilizing = 1e-6, zero_params: ZeroParams = None) -> None:
        super().__init__(stabilizer, zero_params)

    def rule_for(self, shape: torch.Size | None) -> rules.LinearRule:
        """See `LinearHook.rule_for`."""
        return rules.ZPlus(self.epsilon, self.zero_bias)


class AlphaBeta(LinearHook):
    """LRP-alpha-beta.  Bach et al. 2015.

    Args:
        alpha, beta: with alpha - beta = 1, up to rounding.
        stabilizer, zero_params: see `Epsilon`.

    Raises:
        ValueError: alpha or beta is out of range, or their difference is not 1.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 1.0,
        stabilizer: Stabilizing = 1e-6,
        zero_params: ZeroParams = None,
    ) -> None:
        super().__init__(stabilizer, zero_params, alpha=alpha, beta=beta)

    def rule_for(self, shape: torch.Size | None) -> rules.LinearRule:
        """See `LinearHook.rule_for`."""
        alpha, beta = self.parameters["alpha"], self.parameters["beta"]
        return rules.AlphaBeta(alpha, beta, self.epsilon, self.zero_bias)


class ZBox(LinearHook):
    """z^B, for inputs confined to a box.  Montavon et al. 2017.

    Args:
        low, high: numbers, taken exactly; or tensors whose axes line up with the input's first
            ones, as Zennit has it (`[1, 3]` is one bound a channel), the batch axis being 1, or at
            least the batch, or left out where that is not ambiguous.
        stabilizer, zero_params: see `Epsilon`.
    """

    def __init__(
        self,
        low: Any,
        high: Any,
        stabilizer: Stabilizing = 1e-6,
        zero_params: ZeroParams = None,
    ) -> None:
        super().__init__(stabilizer, zero_params, low=low, high=high)

    def _prepare(self) -> None:
        self._rules: dict[torch.Size | None, rules.ZBox] = {}
        super()._prepare()

    def rule_for(self, shape: torch.Size | None) -> rules.LinearRule:
        """See `LinearHook.rule_for`."""
        if shape not in self._rules:
            self._rules[shape] = rules.ZBox(
                fitted("low", self.parameters["low"], shape),
                fitted("high", self.parameters["high"], shape),
                self.epsilon,
                self.zero_bias,
            )
        return self._rules[shape]

    def rule_for_any_batch(self, ndim: int | None) -> rules.ZBox:
        """The rule as data, for inputs of `ndim` axes: see `bounds.for_any_batch`."""
        low, high = (for_any_batch(n, self.parameters[n], ndim) for n in ("low", "high"))
        return rules.ZBox(low, high, self.epsilon, self.zero_bias)


class WSquare(LinearHook):
    """w^2.  Montavon et al. 2017.

    Args:
        stabilizer, zero_params: see `Epsilon`.
    """

    def __init__(self, stabilizer: Stabilizing = 1e-6, zero_params: ZeroParams = None) -> None:
        super().__init__(stabilizer, zero_params)

    def rule_for(self, shape: torch.Size | None) -> rules.LinearRule:
        """See `LinearHook.rule_for`."""
        return rules.WSquare(self.epsilon, self.zero_bias)


class Flat(LinearHook):
    """Relevance spread evenly over the receptive field.  Lapuschkin et al. 2019.

    Args:
        stabilizer, zero_params: see `Epsilon`; a bias never counts.
    """

    def __init__(self, stabilizer: Stabilizing = 1e-6, zero_params: ZeroParams = None) -> None:
        super().__init__(stabilizer, zero_params)

    def rule_for(self, shape: torch.Size | None) -> rules.LinearRule:
        """See `LinearHook.rule_for`."""
        return rules.Flat(self.epsilon)


class Pass(RuleHook):
    """Relevance passes unchanged."""

    def __init__(self) -> None:
        super().__init__()

    def relevance(self, module: nn.Module, x: Tensor, r: Tensor, g: Tensor | None) -> Tensor:
        """See `RuleHook.relevance`."""
        if r.shape != x.shape:
            raise InputError(
                f"{self.where(module)}: Pass needs an output shaped like the input, got "
                f"{list(x.shape)} and {list(r.shape)}; give it another rule"
            )
        return r


class ReLUDeconvNet(RuleHook):
    """A ReLU that passes positive gradients.  Zeiler and Fergus 2014."""

    def __init__(self) -> None:
        super().__init__()

    def relevance(self, module: nn.Module, x: Tensor, r: Tensor, g: Tensor | None) -> Tensor:
        """See `RuleHook.relevance`."""
        return r.clamp(min=0)


class ReLUGuidedBackprop(RuleHook):
    """A ReLU that passes positive gradients of positive inputs.  Springenberg et al. 2015."""

    uses_gradient = True

    def __init__(self) -> None:
        super().__init__()

    def relevance(self, module: nn.Module, x: Tensor, r: Tensor, g: Tensor | None) -> Tensor:
        """See `RuleHook.relevance`."""
        return torch.zeros_like(x) if g is None else g * (r > 0)


class ReLUBetaSmooth(RuleHook):
    """A ReLU with the gradient of a softplus.  Dombrowski et al. 2019.

    Args:
        beta_smooth: the softplus' beta.
    """

    def __init__(self, beta_smooth: float = 10.0) -> None:
        super().__init__(beta_smooth=beta_smooth)

    @property
    def beta_smooth(self) -> float:
        """The softplus' beta."""
        return float(self.parameters["beta_smooth"])

    def relevance(self, module: nn.Module, x: Tensor, r: Tensor, g: Tensor | None) -> Tensor:
        """See `RuleHook.relevance`."""
        return torch.sigmoid(self.beta_smooth * x) * r
