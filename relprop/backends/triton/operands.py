"""What the kernels' operations take: tensors on the device, images and rows, steps below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.errors import InputError
from relprop.operations.pool import flat_shape
from relprop.operations.protocol import Joined, Quotients

__all__ = ["check_operands", "images_of", "parts_of", "result_of", "rows_of", "shaped"]


def check_operands(where: str, **tensors: Tensor | None) -> None:
    """Refuse what no kernel takes.

    Raises:
        InputError: a tensor is float64 or not where Triton runs: on a CUDA device, in the
            interpreter anywhere.
    """
    from relprop import kernels

    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not tensor.is_cuda and not kernels.runs_on(tensor.device):
            raise InputError(
                f"{where}: backend='triton' runs on a CUDA device, the {name} is on "
                f"{tensor.device}; move model and input there, or use backend='aten'"
            )
        if tensor.dtype == torch.float64:
            raise InputError(
                f"{where}: the {name} is float64, which no Triton kernel takes; "
                "use backend='aten' or float32"
            )


def images_of(x: Tensor, spatial: int) -> Tensor:
    """`[images, channels, *spatial]` of a value that may have no batch axis."""
    return x if x.ndim == spatial + 2 else x.reshape(flat_shape(x.shape, spatial))


def rows_of(r: Tensor, spatial: int) -> Tensor:
    """Relevance `[K, images, channels, *spatial]` of such a value."""
    return r if r.ndim == spatial + 3 else r.reshape(len(r), *flat_shape(r.shape[1:], spatial))


def parts_of(saved: Any) -> tuple[Any, tuple[Any, ...]]:
    """What a step saved itself, and what the layers below did whose quotients it takes."""
    return (saved.own, saved.below) if isinstance(saved, Joined) else (saved, (None, None))


def result_of(out: Tensor, lower: object, shape: Sequence[int]) -> Any:
    """Relevance of a value of that shape, or the quotients that stand for it."""
    return out.reshape(len(out), *shape) if lower is None else Quotients(out)


def shaped(y: Tensor, x: Tensor) -> Tensor:
    """What a kernel made of the images of `x`, with its type, and without a batch as `x` is."""
    return y.to(x.dtype).reshape(*x.shape[: x.ndim - y.ndim + 1], *y.shape[1:])
