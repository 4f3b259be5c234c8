"""Bounds of a box as values: numbers, or tensors that compare and hash by what they hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ["Bound", "bound_of", "bound_tensor"]


class Bound:
    """A tensor that compares and hashes by value, so that rules holding it do too."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach().cpu().clone()
        self._key = (tuple(self.tensor.shape), tuple(self.tensor.double().flatten().tolist()))
        self._copies: dict[torch.device, torch.Tensor] = {}

    def on(self, device: torch.device) -> torch.Tensor:
        """The tensor as float32 on a device, copied there once."""
        if device not in self._copies:
            self._copies[device] = self.tensor.to(device=device, dtype=torch.float32)
        return self._copies[device]

    def __reduce__(self) -> tuple[type[Bound], tuple[torch.Tensor]]:
        return Bound, (self.tensor,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bound) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"tensor{self._key[0]}"


def bound_of(owner: str, name: str, value: Any) -> float | Bound:
    """A number, or a tensor as a `Bound`.

    Raises:
        ValueError: it holds something else than finite real numbers.
    """
    if isinstance(value, Bound):
        return value
    tensor = value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
    if tensor.is_complex() or tensor.dtype is torch.bool or not torch.isfinite(tensor).all():
        raise ValueError(f"{owner}: {name} must be finite real numbers, got {value!r}")
    return float(tensor) if tensor.ndim == 0 else Bound(tensor)


def bound_tensor(value: float | Bound) -> torch.Tensor:
    """The number or tensor behind a bound of `ZBox`, on the CPU."""
    return value.tensor if isinstance(value, Bound) else torch.tensor(value, dtype=torch.float64)
