"""The module to explain, taken out of what is wrapped around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from relprop.errors import CaptureError, InputError

__all__ = ["unwrap"]


def unwrap(model: Any) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel or `torch.compile`.

    Raises:
        InputError: it is no module.
        CaptureError: it is a scripted or quantised one.
    """
    while isinstance(model, nn.Module):
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, (nn.DataParallel, nn.parallel.DistributedDataParallel)
        ):
            inner = model.module
        if inner is None:
            break
        model = inner
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model: {type(model).__name__}; expected a torch.nn.Module (wrap a function in one)"
        )
    for path, module in model.named_modules():
        where = f"'{path}'" if path else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                f"model: {where} is a TorchScript module, whose operations cannot be captured; "
                "explain the original nn.Module, or an ExportedProgram's .module()"
            )
        package, *inner = type(module).__module__.split(".")
        if package == "torch" and "quantized" in inner:  # a user's own may be called so
            raise CaptureError(
                f"model: {where} is quantised ({type(module).__name__}); explain the model before "
                "quantisation"
            )
    return model
