"""Columns of a shard that come from a model's output: explained entries, scores, predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from relprop.io.outputs import SetupError

__all__ = ["largest_entries", "predictions", "scores", "target_column"]


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
