"""What is explained of a model's output, and why an input cannot be explained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relprop.errors import InputError, is_out_of_memory
from relprop.io.files import printable

__all__ = ["SetupError", "floating_dtype", "predicted_classes", "reason"]


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
