"""Tensors laid out in memory as another is, channels first or last."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

__all__ = ["flat", "inner_of", "order_of", "ordered_empty", "quotient_empty", "restored"]


def order_of(like: Tensor) -> list[int]:
    """The axes as they lie in memory, outermost first; the batch counts as the outermost."""
    return [0, *sorted(range(1, like.dim()), key=lambda axis: -like.stride()[axis])]


def restored(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """A tensor `[*lead, *axes in that order]` as `[*lead, *axes]`."""
    lead = tensor.dim() - len(order)
    back = sorted(range(len(order)), key=order.__getitem__)
    return tensor.permute(*range(lead), *(lead + axis for axis in back))


def ordered_empty(
    lead: Sequence[int], shape: Sequence[int], like: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """An uninitialised `[*lead, *shape]` whose axes lie in memory as those of `like` do.

    `shape` has as many axes as `like`, the first of them the batch.
    """
    order = order_of(like)
    empty = like.new_empty([*lead, *(shape[axis] for axis in order)], dtype=dtype)
    return restored(empty, order)


def quotient_empty(
    parts: int, targets: int, shape: Sequence[int], like: Tensor, feature_axis: int
) -> Tensor:
    """An uninitialised float32 `[parts, targets, *shape]` for quotients.

    Laid out as `like`, the parts side by side in front of the features: as one operand of twice the
    features, they meet stacked weights in a single product.
    """
    if parts == 1:
        return ordered_empty((1, targets), shape, like)
    order = order_of(like)
    axis = feature_axis % len(order)
    sizes: list[int] = [targets]
    for i in order:
        sizes += [parts, shape[i]] if i == axis else [shape[i]]
    empty = like.new_empty(sizes, dtype=torch.float32)
    return restored(empty.movedim(1 + order.index(axis), 0), order)


def inner_of(like: Tensor, feature_axis: int) -> int:
    """Elements of `like`, as it lies in memory, from one step before its features on."""
    order = order_of(like)
    return prod(like.shape[i] for i in order[order.index(feature_axis % len(order)) :])


def flat(tensor: Tensor, lead: int, like: Tensor) -> Tensor:
    """A tensor `[*lead, *like.shape]` laid out as `like`, without copying where it is already."""
    axes = [*range(lead), *(lead + axis for axis in order_of(like))]
    return tensor.permute(axes).contiguous()
