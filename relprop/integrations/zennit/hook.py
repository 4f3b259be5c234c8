"""The hook that all rules here are: relevance in place of a module's gradient, call by call.

A module's input passes through `_Enter`, whose backward is the rule.  The relevance of the output
is taken where it reaches the module's last operation; the module's own backward, whose result no
relevance rule reads, is then left out.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from zennit.core import Hook, RemovableHandle, RemovableHandleList

from relprop.errors import InputError
from relprop.integrations.zennit.layers import kind_of

__all__ = ["RuleHook"]


class _Visit:
    """One call of a hooked module: its relevance on the way from the output to the input."""

    def __init__(self, hook: RuleHook, module: nn.Module) -> None:
        self._hook = weakref.ref(hook)
        self.module = module
        self.relevance: Tensor | None = None
        self.position = 0
        self.removed = False

    @property
    def hook(self) -> RuleHook | None:
        """The hook, while it is registered and active."""
        hook = self._hook()
        return hook if hook is not None and hook.active and not self.removed else None

    def leave(self, gradients: tuple[Tensor | None, ...]) -> tuple[None, ...] | None:
        """Take the relevance that reaches the module's last operation."""
        hook = self.hook
        self.relevance = gradients[self.position]
        if hook is None or self.relevance is None:
            return None
        return None if hook.uses_gradient else (None,) * len(gradients)


class _Enter(torch.autograd.Function):
    """The identity on a module's input; its backward is the rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, visit: _Visit, copied: bool) -> Tensor:
        ctx.visit = visit
        ctx.save_for_backward(x)
        ctx.set_materialize_grads(False)
        return x.clone() if copied else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None]:
        visit: _Visit = ctx.visit
        r, visit.relevance = visit.relevance, None
        hook = visit.hook
        if hook is None or r is None:
            return gradients[0], None, None
        (x,) = ctx.saved_tensors
        found = hook.relevance(visit.module, x, r, gradients[0])
        return found.to(x.dtype), None, None


class RuleHook(Hook, ABC):  # type: ignore[misc]
    """Base of the rules: one of Zennit's hooks, to be copied, registered and removed like those.

    Each call of the module keeps its own input, so that a module that is called twice gets both
    relevances right.

    Attributes:
        parameters: what the rule was made with.
        uses_gradient: whether the rule reads the module's own gradient.
    """

    uses_gradient = False

    def __init_subclass__(cls) -> None:
        if "backward" in vars(cls):
            raise TypeError(
                f"{cls.__name__}: relprop's rules have no `backward` to override; override "
                "`relevance(module, x, r, g)`, or derive from zennit.core.Hook"
            )

    def __init__(self, **parameters: Any) -> None:
        super().__init__()
        self.parameters = parameters
        self._visits: weakref.WeakSet[_Visit] = weakref.WeakSet()
        self._visit: _Visit | None = None

    @abstractmethod
    def relevance(self, module: nn.Module, x: Tensor, r: Tensor, g: Tensor | None) -> Tensor:
        """Relevance of a module's input.

        Args:
            module: the module.
            x: the input of this call.
            r: relevance of its output.
            g: the gradient of the input, for a rule that `uses_gradient`.
        """

    def pre_forward(self, module: nn.Module, input: Any) -> Any:
        """Note the input of a call that autograd records."""
        tensors = [value for value in input if isinstance(value, Tensor)]
        if not tensors:
            raise InputError(
                f"{self.where(module)}: called without a positional tensor; pass the input by "
                "position, or explain the model through relprop.integrations.zennit.Gradient"
            )
        self._visit = None
        if not tensors[0].requires_grad or not torch.is_grad_enabled():
            return None
        if len(tensors) > 1 or input[0] is not tensors[0]:
            raise InputError(
                f"{self.where(module)}: called with {len(tensors)} tensors; a hook gives relevance "
                "to one alone: explain the model through relprop.integrations.zennit.Gradient"
            )
        self._visit = _Visit(self, module)
        self._visits.add(self._visit)
        entered = _Enter.apply(tensors[0], self._visit, kind_of(module) is None)
        return (entered, *input[1:])

    def post_forward(self, module: nn.Module, input: Any, output: Any) -> None:
        """Wait for the relevance of this call's output."""
        visit, self._visit = self._visit, None
        if visit is None:
            return
        if not isinstance(output, Tensor):
            raise InputError(
                f"{self.where(module)}: returns a {type(output).__name__}; a hook takes relevance "
                "from one tensor: explain the model through relprop.integrations.zennit.Gradient"
            )
        if output.grad_fn is not None:
            visit.position = output.output_nr
            output.grad_fn.register_prehook(visit.leave)

    def copy(self) -> RuleHook:
        """A hook of the same rule for another module."""
        copied = object.__new__(type(self))
        RuleHook.__init__(copied, **self.parameters)
        return copied

    def remove(self) -> None:
        """Forget all calls; a graph that is still held gives plain gradients."""
        for visit in self._visits:
            visit.removed = True
        self._visits.clear()
        self._visit = None
        super().remove()

    def register(self, module: nn.Module) -> Any:
        """Attach to a module; the returned handle's `remove()` detaches."""
        return RemovableHandleList(
            [
                RemovableHandle(self),
                module.register_forward_pre_hook(self.pre_forward),
                module.register_forward_hook(self.post_forward),
            ]
        )

    def where(self, module: nn.Module) -> str:
        """Rule and layer in the words of an error message."""
        return f"{type(self).__name__} on {module}"
