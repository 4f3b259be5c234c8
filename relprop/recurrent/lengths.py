"""Valid steps of each sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relprop.errors import InputError

__all__ = ["checked_lengths"]


def checked_lengths(
    where: str, lengths: Any, batch: int, steps: int, device: torch.device
) -> Tensor | None:
    """Lengths as an integer tensor `[batch]`, or None.

    Raises:
        InputError: not one integer from 1 to T a sample.
    """
    if lengths is None:
        return None
    tensor = torch.as_tensor(lengths, device=device)
    if tensor.is_floating_point() or tensor.dtype is torch.bool or tuple(tensor.shape) != (batch,):
        raise InputError(
            f"{where}: lengths is {tensor.dtype} of shape {list(tensor.shape)}; expected one "
            f"integer a sample, [{batch}]"
        )
    low, high = int(tensor.min()), int(tensor.max())
    if low < 1 or high > steps:
        raise InputError(
            f"{where}: lengths run from {low} to {high}; expected 1 to {steps}, the steps of the "
            "input" + ("; leave out empty sequences" if low < 1 else "")
        )
    return tensor.long()
