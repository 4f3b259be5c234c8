"""How Triton runs the kernels in this process."""

from __future__ import annotations

import triton

from relprop.kernels.modifiers import identity

__all__ = ["FUSION", "interpreted"]

FUSION = True
"""`enable_fp_fusion` of every launch: multiply-add contraction, never the order of a sum."""


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return not isinstance(identity, triton.JITFunction)
