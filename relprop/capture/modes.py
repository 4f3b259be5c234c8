"""Modes: a result depends on none of the caller's, and modules must be in evaluation mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from relprop.errors import PlanningError

__all__ = ["check_modes", "neutral_modes"]


@contextmanager
def neutral_modes(*values: Any) -> Iterator[None]:
    """No gradients, no autocast, no inference mode: a result does not depend on the caller's.

    The current CUDA device is that of the first tensor among the values: kernels run there.
    """
    tensors = (value for value in values if isinstance(value, torch.Tensor) and value.is_cuda)
    first = next(tensors, None)
    with (
        contextlib.nullcontext() if first is None else torch.cuda.device_of(first),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


def check_modes(model: nn.Module) -> None:
    """Refuse batch norm and dropout in training mode, and modules without parameters yet.

    Raises:
        PlanningError: names the first such module.
    """
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise PlanningError(
                f"model: '{path}' has no shape yet; call the model once on real inputs first"
            )
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    for path, module in model.named_modules():
        dropping = isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1
        if module.training and (dropping or isinstance(module, kinds)):
            raise PlanningError(
                f"model: '{path}' ({type(module).__name__}) is in training mode, so an explanation "
                "would depend on the other samples or on chance; call model.eval() first"
            )
