"""Bounds of ZBox as Zennit takes them, for relprop's ZBox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.errors import InputError

__all__ = ["fitted", "for_any_batch"]


def fitted(name: str, bound: Any, shape: torch.Size | None) -> Any:
    """A bound for inputs of that shape.

    A number stays one.  A tensor's axes line up with the input's first ones, as Zennit has it; of
    more samples than the input has, the first are taken.  A tensor without a batch axis lines up
    with the input's last axes, as everywhere in PyTorch, where only one of the two readings fits.

    Raises:
        InputError: neither fits, or both do and they differ.
    """
    if not isinstance(bound, Tensor) or bound.ndim == 0:
        return bound
    if shape is None:
        return bound.reshape(-1)[0] if bound.numel() == 1 else _extreme(name, bound)
    leading = _leading(bound, shape)
    trailing = bound if bound.ndim < len(shape) and _broadcasts(bound, shape) else None
    if leading is None and trailing is None:
        raise InputError(
            f"ZBox: {name} is {list(bound.shape)}, the input {list(shape)}; expected a number, "
            "or a tensor that broadcasts to the input, [1, channels, 1, 1] for images"
        )
    if leading is None or trailing is None:
        return trailing if leading is None else leading
    if not torch.equal(leading.expand(shape), trailing.expand(shape)):
        raise InputError(
            f"ZBox: {name} is {list(bound.shape)} for an input of {list(shape)}: its first axis "
            "may be the batch or the channels; give it all of the input's axes, "
            f"{[1] * (len(shape) - bound.ndim) + list(bound.shape)} for the latter"
        )
    return leading


def for_any_batch(name: str, bound: Any, ndim: int | None) -> Any:
    """A bound that holds for whatever batch, as relprop's ZBox takes it.

    Args:
        name: "low" or "high".
        bound: a number or a tensor, see `fitted`.
        ndim: axes of the input with the batch's, None if not known.

    Raises:
        InputError: it has bounds of their own for several samples.
    """
    if not isinstance(bound, Tensor) or bound.ndim == 0:
        return bound
    if bound.shape[0] == 1:
        return bound.reshape(*bound.shape, *(1,) * ((ndim or 0) - bound.ndim))
    if bound.ndim < (ndim or 2):
        return bound
    if not torch.equal(bound, bound[:1].expand_as(bound)):
        raise InputError(
            f"ZBox: {name} is {list(bound.shape)} with bounds that differ along its first axis; "
            "expected bounds for all samples alike, [1, ...]"
        )
    return bound[:1]


def _extreme(name: str, bound: Tensor) -> Tensor:
    """One number for a check of low against high before the input is known."""
    return bound.min() if name == "low" else bound.max()


def _leading(bound: Tensor, shape: torch.Size) -> Tensor | None:
    """The bound with as many axes as the input, lined up with its first ones."""
    if bound.ndim > len(shape):
        return None
    full = bound.reshape(*bound.shape, *(1,) * (len(shape) - bound.ndim))
    if full.shape[0] > shape[0] and bound.ndim == len(shape):
        full = full[: shape[0]]
    return full if _broadcasts(full, shape) else None


def _broadcasts(bound: Tensor, shape: Sequence[int]) -> bool:
    pairs = zip(reversed(bound.shape), reversed(shape), strict=False)
    return all(size in (1, limit) for size, limit in pairs)
