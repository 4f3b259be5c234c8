"""Leaving a model exactly as it was, whatever its forward pass stores in it."""

from __future__ import annotations

import contextlib
import copy
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_tables

__all__ = ["hooks_disabled", "untouched"]

_CONTAINERS = (dict, list, set, deque)
_HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks")
_GLOBAL_HOOK_TABLES = ("_global_forward_hooks", "_global_forward_pre_hooks")

_DEPTH = 4
"""How deep containers and plain objects held by a module are followed."""

_LONG = 1000
"""The items of longer containers are not followed; their order and identity are kept."""


class _State:
    """Everything that a module holds, to be put back."""

    def __init__(self, model: nn.Module) -> None:
        self.seen: set[int] = set()
        self.holders: list[tuple[Any, Any]] = []
        self.tensors: list[_SavedTensor] = []
        for module in model.modules():
            self.add(module.__dict__, _DEPTH)

    def add(self, value: Any, depth: int) -> None:
        if id(value) in self.seen:
            return
        self.seen.add(id(value))
        if isinstance(value, Tensor):
            if _is_plain(value):
                self.tensors.append(_SavedTensor(value))
        elif isinstance(value, (*_CONTAINERS, tuple)):
            if not isinstance(value, tuple):
                self.holders.append((value, copy.copy(value)))
            if depth and len(value) <= _LONG:
                for item in list(value.values() if isinstance(value, dict) else value):
                    self.add(item, depth - 1)
        elif depth and _is_object(value):
            self.add(value.__dict__, depth - 1)

    def restore(self) -> None:
        for holder, saved in self.holders:
            if not _same(holder, saved):
                _refill(holder, saved)
        for tensor in self.tensors:
            tensor.restore()


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is an ordinary tensor with values of its own to restore."""
    lazy = torch.nn.parameter.is_lazy(tensor)
    return not lazy and tensor.layout is torch.strided and tensor.device.type != "meta"


def _is_object(value: Any) -> bool:
    """Whether it is an instance of a class of the user's, with attributes of its own."""
    kinds = (nn.Module, type, types.ModuleType, types.FunctionType, types.MethodType)
    foreign = type(value).__module__.partition(".")[0] not in ("torch", "builtins", "threading")
    return foreign and not isinstance(value, kinds) and type(_attributes(value)) is dict


def _attributes(value: Any) -> Any:
    """The attribute dictionary of an object, None if it has none."""
    return getattr(value, "__dict__", None)


class _SavedTensor:
    """A tensor with its values, storage, version, gradient and `requires_grad`."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.alias = tensor.detach()
        self.values = self.alias.clone()
        self.version = None if tensor.is_inference() else tensor._version
        self.grad = tensor.grad if tensor.is_leaf else None
        self.requires_grad = tensor.requires_grad

    def restore(self) -> None:
        tensor = self.tensor
        if not _aliases(tensor, self.alias):
            tensor.data = self.alias
        if not _equal_bits(self.alias, self.values):
            with torch.no_grad(), torch.inference_mode(self.version is None):
                self.alias.copy_(self.values)
        if self.version is not None and tensor._version != self.version:
            # what autograd saved of this tensor is valid again, bit by bit
            torch._C._autograd._unsafe_set_version_counter((tensor,), (self.version,))
        if tensor.is_leaf:
            if tensor.grad is not self.grad:
                tensor.grad = self.grad
            if tensor.requires_grad != self.requires_grad:
                tensor.requires_grad_(self.requires_grad)


def _aliases(a: Tensor, b: Tensor) -> bool:
    same_view = a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
    return same_view and a.data_ptr() == b.data_ptr()


def _equal_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return bool(torch.equal(a, b))
    size = a.element_size()
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(size)
    if integer is None:
        a, b, integer = torch.view_as_real(a), torch.view_as_real(b), torch.int64
    return bool(torch.equal(a.view(integer), b.view(integer)))


def _refill(container: Any, saved: Any) -> None:
    if isinstance(container, list):
        container[:] = saved
        return
    container.clear()
    if isinstance(container, deque):
        container.extend(saved)
    else:
        container.update(saved)


def _same(container: Any, saved: Any) -> bool:
    if len(container) != len(saved):
        return False
    if isinstance(container, set):
        return bool(container == saved)
    pairs = zip(container, saved, strict=True)
    if isinstance(container, dict):
        return all(a is b and container[a] is saved[b] for a, b in pairs)
    return all(a is b for a, b in pairs)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Undo, on leaving, whatever the body did to what the model's modules hold.

    Attributes set, replaced or removed, containers and plain objects changed in place, tensors
    written in place (`.data` too) with their version counters, gradients and `requires_grad` flags
    are put back, after an exception too.  Everything is put back by identity, so that nothing that
    holds it notices.
    """
    state = _State(model)
    try:
        yield
    finally:
        state.restore()


def _is_structural(hook: Any) -> bool:
    """Whether a hook computes a parameter (torch's own weight and spectral norm), so must run."""
    return type(hook).__module__.startswith("torch.nn.utils")


@contextlib.contextmanager
def hooks_disabled(model: nn.Module) -> Iterator[bool]:
    """Take the forward hooks off inside the body, except those that compute parameters.

    Hooks that torch calls for every module in the process come off too.  Yields whether there were
    any.
    """
    tables = [getattr(module, name) for module in model.modules() for name in _HOOK_TABLES]
    tables += [getattr(module_tables, name) for name in _GLOBAL_HOOK_TABLES]
    removed = [
        (table, dict(table))
        for table in tables
        if any(not _is_structural(hook) for hook in table.values())
    ]
    try:
        for table, _ in removed:
            for key in [key for key, hook in table.items() if not _is_structural(hook)]:
                del table[key]
        yield bool(removed)
    finally:
        for table, saved in removed:
            _refill(table, saved)
