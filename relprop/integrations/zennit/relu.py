"""ReLU with another gradient, in modules and functions alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from relprop.integrations.zennit.hook import RuleHook

__all__ = ["ReLUMode"]

_IN_PLACE = (torch.relu_, Tensor.relu_)
_RELUS = (F.relu, torch.relu, Tensor.relu, *_IN_PLACE)


class _ModifiedReLU(torch.autograd.Function):
    """ReLU; its backward is a rule's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mode: ReLUMode, in_place: bool) -> Tensor:
        ctx.mode = mode
        ctx.save_for_backward(x.clone() if in_place else x)
        if not in_place:
            return x.clamp(min=0)
        ctx.mark_dirty(x)
        return x.clamp_(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,), (r,) = ctx.saved_tensors, gradients
        gradient = r * (x > 0)
        if ctx.mode.active:
            gradient = ctx.mode.rule.relevance(_RELU, x, r, gradient)
        return gradient, None, None


_RELU = nn.ReLU()


class ReLUMode(TorchFunctionMode):
    """While entered, every ReLU that is computed has the gradient of a rule.

    Args:
        rule: one of the rules here that are for ReLU.

    Attributes:
        active: whether it still has, in graphs made while entered.
    """

    def __init__(self, rule: RuleHook) -> None:
        super().__init__()
        self.rule = rule
        self.active = True

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _RELUS:
            return func(*args, **kwargs)
        x, *rest = args or (kwargs["input"],)
        in_place = func in _IN_PLACE or bool(rest and rest[0]) or kwargs.get("inplace", False)
        return _ModifiedReLU.apply(x, self, in_place)
