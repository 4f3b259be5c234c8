"""Leaving a model exactly as it was, whatever its forward pass stores in it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["hooks_disabled", "untouched"]

_CONTAINERS = (dict, list, set)
_HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks")


def _contents(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    return {
        name: (value, copy.copy(value) if isinstance(value, _CONTAINERS) else None)
        for name, value in module.__dict__.items()
    }


def _refill(container: Any, saved: Any) -> None:
    if isinstance(container, list):
        container[:] = saved
    else:
        container.clear()
        container.update(saved)


def _same(container: Any, saved: Any) -> bool:
    if len(container) != len(saved):
        return False
    if isinstance(container, dict):
        return all(
            a is b and container[a] is saved[b] for a, b in zip(container, saved, strict=True)
        )
    if isinstance(container, list):
        return all(a is b for a, b in zip(container, saved, strict=True))
    return bool(container == saved)


def _restore(module: nn.Module, saved: dict[str, tuple[Any, Any]]) -> None:
    for name in [name for name in module.__dict__ if name not in saved]:
        del module.__dict__[name]
    for name, (value, contents) in saved.items():
        if contents is not None and not _same(value, contents):
            _refill(value, contents)
        if module.__dict__.get(name) is not value:
            module.__dict__[name] = value


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Undo, on leaving, whatever the body did to the attributes and buffers of the model's modules.

    Attributes set, replaced or removed, containers changed in place and buffers written in place
    are put back, after an exception too.  Tensors are put back by identity, so that nothing that
    holds them notices.
    """
    modules = [(module, _contents(module)) for module in model.modules()]
    buffers: list[tuple[Tensor, int, Tensor]] = [
        (buffer, buffer._version, buffer.detach().clone())
        for buffer in model.buffers()
        if not buffer.is_inference()
    ]
    try:
        yield
    finally:
        for module, saved in modules:
            _restore(module, saved)
        with torch.no_grad():
            for buffer, version, values in buffers:
                if buffer._version != version:
                    buffer.copy_(values)


def _is_structural(hook: Any) -> bool:
    """Whether a hook computes a parameter (torch's own weight and spectral norm), so must run."""
    return type(hook).__module__.startswith("torch.nn.utils")


@contextlib.contextmanager
def hooks_disabled(model: nn.Module) -> Iterator[bool]:
    """Take the forward hooks off inside the body, except those that compute parameters.

    Yields whether there were any.
    """
    removed: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
    for module in model.modules():
        for table_name in _HOOK_TABLES:
            table = getattr(module, table_name)
            if any(not _is_structural(hook) for hook in table.values()):
                removed.append((table, dict(table)))
    try:
        for table, _ in removed:
            for key in [key for key, hook in table.items() if not _is_structural(hook)]:
                del table[key]
        yield bool(removed)
    finally:
        for table, saved in removed:
            _refill(table, saved)
