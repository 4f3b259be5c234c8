"""The state of a model's modules that a captured graph depends on."""

from __future__ import annotations

import types
import weakref
from collections.abc import Collection
from typing import Any

from torch import nn

__all__ = ["ModelState", "all_settings"]

_SIMPLE = (bool, int, float, str, type(None))
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)


class ModelState:
    """Modules, their modes, hooks, settings and tensor formats; tensors are read at every call.

    Args:
        model: whose state to remember.
        written: what a forward pass itself sets, by module and name: that does not count.
    """

    def __init__(self, model: nn.Module, written: Collection[tuple[int, str]]) -> None:
        self.written = written
        self.modules = [(weakref.ref(module), self._traits(module)) for module in model.modules()]

    def is_of(self, model: nn.Module) -> bool:
        """Whether the model is in this state."""
        modules = list(model.modules())
        return len(modules) == len(self.modules) and all(
            ref() is module and traits == self._traits(module)
            for module, (ref, traits) in zip(modules, self.modules, strict=True)
        )

    def _traits(self, module: nn.Module) -> tuple[Any, ...]:
        settings = [item for item in _settings(module) if (id(module), item[0]) not in self.written]
        tensors = [*module._parameters.values(), *module._buffers.values()]
        formats = [None if t is None else (t.dtype, t.device, t.shape) for t in tensors]
        return tuple(module._forward_hooks), tuple(module._forward_pre_hooks), settings, formats


def all_settings(model: nn.Module) -> dict[tuple[int, str], Any]:
    """The plain attributes of all modules, by module and name."""
    return {
        (id(module), name): value for module in model.modules() for name, value in _settings(module)
    }


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    """Plain attributes that a forward pass may depend on: numbers, names, flags, functions."""
    found: list[tuple[str, Any]] = []
    for name, value in module.__dict__.items():
        if name == "_is_torch_compile":  # set by torch.compile(module)
            continue
        kind = type(value)
        if kind in _SIMPLE or (kind in (tuple, list) and all(type(v) in _SIMPLE for v in value)):
            found.append((name, tuple(value) if kind is list else value))
        elif kind in _FUNCTIONS:
            found.append((name, id(value)))
    return found
