"""What the study's architectures are made of: layers without bias, half-sum pooling, dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Dropout", "Features", "HalfSumPool", "convolution", "dense", "initialised"]

KEPT = 0.8


Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def initialised(layer: Layer) -> Layer:
    """The layer, its weight drawn from a normal distribution cut at two standard deviations.

    The standard deviation is 1 / sqrt(number of inputs of a unit).
    """
    std = layer.weight[0].numel() ** -0.5
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def dense(inputs: int, outputs: int, *, bias: bool = False) -> nn.Linear:
    """A dense layer."""
    return initialised(nn.Linear(inputs, outputs, bias=bias))


def convolution(inputs: int, outputs: int, size: int, *, same: bool = True) -> nn.Conv2d:
    """A convolution with stride 1 and no bias; `same` keeps height and width."""
    padding = size // 2 if same else 0
    return initialised(nn.Conv2d(inputs, outputs, size, padding=padding, bias=False))


class Features(nn.Module):
    """What is seen of each step: images `[batch, 1, 28, columns]` → `[batch, steps, features]`."""

    def __init__(self, steps: int, features: int) -> None:
        super().__init__()
        self.steps, self.features = steps, features


class HalfSumPool(nn.Module):
    """Half the sum over windows of 2 x 2; on ragged edges twice the mean of what is there."""

    def forward(self, maps: Tensor) -> Tensor:
        """`[n, channels, height, width]` to half of height and width, rounded up."""
        return 2 * F.avg_pool2d(maps, 2, ceil_mode=True)


def _mask(like: Tensor) -> Tensor:
    """1 / KEPT with probability KEPT, else 0, for each unit of a tensor.

    From 16 random bits each: on a CPU a draw for every unit, as by bernoulli_, takes a third of the
    training step.
    """
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    bits = words.random_(-(2**63), None).view(torch.int16)[: like.numel()]
    kept = bits < round(KEPT * 2**16) - 2**15
    return kept.view(like.shape).to(like.dtype).mul_(1 / KEPT)


class Dropout(nn.Module):
    """Dropout that keeps four fifths of the units, in a pass over several steps.

    Args:
        stationary: draw one mask for each pass, sample and unit, and use it at every step.
    """

    def __init__(self, stationary: bool = False) -> None:
        super().__init__()
        self.stationary = stationary

    def begin(self, like: Tensor) -> Callable[[Tensor], Tensor]:
        """What drops units in one pass: a function of tensors that `like` broadcasts to."""
        if not self.training:
            return lambda x: x
        if not self.stationary:
            return lambda x: x * _mask(x)
        mask = _mask(like)
        return lambda x: x * mask

    def extra_repr(self) -> str:
        return f"stationary={self.stationary}"
