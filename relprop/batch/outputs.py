"""What is explained of a model's output, the columns that come from it, and why it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from relprop.errors import InputError, is_out_of_memory
from relprop.io.files import printable

__all__ = [
    "SetupError", "floating_dtype", "largest_entries", "predicted_classes", "predictions", "reason",
    "scores", "target_column",
]  # fmt: skip


class SetupError(InputError):
    """What was asked for does not fit the model, whatever the input."""


def floating_dtype(model: nn.Module) -> torch.dtype:
    """The type that a model wants floating inputs in: that of its first floating parameter."""
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floating, torch.float32)


def predicted_classes(output: Tensor) -> Tensor | None:
    """The largest entry of each sample's output, int64 `[n]`; None where it is one value.

    Raises:
        SetupError: an output of several axes has no classes.
    """
    if output.numel() == len(output):
        return None
    if output.ndim != 2:
        raise SetupError(
            f"the model's output has shape {list(output.shape)}, so there is no predicted class; "
            "name one entry, for instance --target 0,3"
        )
    return output.argmax(1)


def reason(error: BaseException) -> str:
    """Why an input cannot be explained, in one sentence."""
    if isinstance(error, InputError):
        return printable(error)
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        return "out of memory; try a smaller input"
    return f"{type(error).__name__}: {printable(error, 200)}"


def largest_entries(count: int) -> Callable[[Tensor], Tensor]:
    """What picks so many of the largest entries of each sample's output, int64 `[n, count]`."""

    def largest(output: Tensor) -> Tensor:
        if output.ndim != 2 or output.shape[1] < count:
            raise SetupError(
                f"--top {count}: the model's output has shape {list(output.shape)}; expected "
                f"[batch, at least {count}]"
            )
        # a stable order, so that equal outputs do not depend on the device
        return output.sort(dim=1, descending=True, stable=True).indices[:, :count]

    return largest


def target_column(target: Any, count: int) -> Tensor | None:
    """Explained entries, `[n]`, or `[n, targets]`, or `[n, dims]` for an output of many axes."""
    if target is None or isinstance(target, Tensor):
        return target
    if isinstance(target, list):
        return torch.tensor(target)
    return torch.tensor(target).expand(count, *([len(target)] if isinstance(target, tuple) else []))


def scores(output: Tensor, target: Tensor | None, many: bool) -> Tensor:
    """The output at the explained entries: `[n]`, or `[n, targets]` where `many`."""
    if target is None:
        return output.reshape(len(output))
    target = target.to(output.device)
    if many:
        return output.gather(1, target)
    entry = target.reshape(len(output), -1)
    return output[(torch.arange(len(output), device=output.device), *entry.unbind(1))]


def predictions(output: Tensor, count: int) -> Tensor:
    """The predicted class of each sample, int64 `[n]`; -1 where there are none."""
    if output.ndim == 2 and output.shape[1] > 1:
        return output.argmax(1)
    return torch.full((count,), -1)
