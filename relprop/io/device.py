"""The device that a command runs on."""

from __future__ import annotations

import torch

from relprop.errors import InputError
from relprop.io.files import printable

__all__ = ["chosen_device"]


def chosen_device(name: str) -> torch.device:
    """The device of a --device argument; "auto" is CUDA where it is, else the CPU.

    Raises: InputError where the device cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = printable(str(error).partition("\n")[0], 120)
        raise InputError(f"--device {printable(name)}: cannot be used here ({reason})") from None
    return device
