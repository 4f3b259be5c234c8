"""What an explanation starts from is checked: the inputs of a call, numbers that are finite."""

from __future__ import annotations

import torch
from torch import Tensor

from relprop.capture.call import Call
from relprop.errors import InputError

__all__ = ["NAN_POLICIES", "check_finite", "check_inputs"]

NAN_POLICIES = ("raise", "propagate")


def check_inputs(call: Call, nan_policy: str) -> None:
    """Refuse a call that cannot be explained.

    Raises:
        InputError: no input is a tensor, the batch sizes differ, or a tensor is not of real, dense
            numbers, finite ones if `nan_policy` is "raise".
    """
    if not any(isinstance(leaf, Tensor) for leaf in call.leaves):
        kinds = sorted({type(leaf).__name__ for leaf in call.leaves}) or ["nothing"]
        raise InputError(f"inputs: {', '.join(kinds)}; expected at least one torch.Tensor")
    _ = call.batch
    for label, leaf in zip(call.labels, call.leaves, strict=True):
        if not isinstance(leaf, Tensor):
            continue
        if leaf.is_meta:
            raise InputError(f"input {label}: a tensor on the meta device; expected values")
        if leaf.is_complex() or leaf.layout is not torch.strided:
            raise InputError(
                f"input {label}: {leaf.dtype}, {leaf.layout}; expected real, dense numbers"
            )
        if nan_policy == "raise" and leaf.is_floating_point():
            check_finite(f"input {label}", leaf)


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise InputError where a tensor has NaN or infinite values; `name` is its own in words."""
    if not torch.isfinite(tensor).all():
        count = int((~torch.isfinite(tensor)).sum())
        raise InputError(
            f"{name}: {count} of {tensor.numel()} values are NaN or infinite; clean them, or pass "
            "nan_policy='propagate'"
        )
