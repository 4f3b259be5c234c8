"""Zennit's rules, under Zennit's names and with its arguments, on relprop's products.

Each is one of Zennit's hooks, for its composites and for hook-based code of one's own.  Numbers are
Zennit's, but for its errors: bounds given as Python numbers are not rounded to float32, 0/0 is 0, a
module may be called twice, weights are read with their parametrizations, and a misspelt
`zero_params` is an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from relprop import rules
from relprop.errors import InputError
from relprop.integrations.zennit.bounds import fitted, for_any_batch
from relprop.integrations.zennit.hook import RuleHook
from relprop.integrations.zennit.linear_hook import (
    AnyModuleHook,
    LinearHook,
    Stabilizing,
    ZeroParams,
)

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


class Epsilon(AnyModuleHook):
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


class Norm(AnyModuleHook):
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


class _WithoutParameters(LinearHook):
    """Base of the rules that have nothing to choose but how they divide."""

    def __init__(self, stabilizer: Stabilizing = 1e-6, zero_params: ZeroParams = None) -> None:
        super().__init__(stabilizer, zero_params)


class ZPlus(_WithoutParameters):
    """z-plus.  Montavon et al. 2017.

    Args:
        stabilizer, zero_params: see `Epsilon`.
    """

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


class WSquare(_WithoutParameters):
    """w^2.  Montavon et al. 2017.

    Args:
        stabilizer, zero_params: see `Epsilon`.
    """

    def rule_for(self, shape: torch.Size | None) -> rules.LinearRule:
        """See `LinearHook.rule_for`."""
        return rules.WSquare(self.epsilon, self.zero_bias)


class Flat(_WithoutParameters):
    """Relevance spread evenly over the receptive field.  Lapuschkin et al. 2019.

    Args:
        stabilizer, zero_params: see `Epsilon`; a bias never counts.
    """

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
