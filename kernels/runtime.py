"""How Triton runs the kernels in this process."""

from __future__ import annotations

import torch
import triton

from relprop.kernels.modifiers import identity

__all__ = ["FUSION", "interpreted", "runs_on"]

FUSION = True
"""`enable_fp_fusion` of every launch: multiply-add contraction, never the order of a sum."""


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return not isinstance(identity, triton.JITFunction)


def runs_on(device: torch.device) -> bool:
    """Whether kernels run on tensors there: in the interpreter anywhere, else where Triton does."""
    if interpreted():
        return True
    try:
        active = triton.runtime.driver.active
    except RuntimeError:  # no driver finds a device
        return False
    return device.type == str(active.get_active_torch_device().type)
