"""How near numbers must come that were computed in two ways, where no bits are promised.

The same call on the same shapes and layouts gives the same bits, and tests ask for these with
`torch.equal`.  Another batch size, memory layout or alignment, or the model beside its plan, lets
the libraries choose other kernels, which add in another order: which ones, depends on the
processor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["same_numbers"]

_TOLERANCES = {torch.float32: (1e-5, 1e-6), torch.float64: (1e-12, 1e-12)}
"""Relative; and absolute as a share of the largest number, for sums that cancel."""


def same_numbers(found: Any, expected: Any) -> None:
    """Assert equality but for the order of the additions.

    Args:
        found: tensor or array of float32 or float64.
        expected: of the same kind, dtype and shape.

    Raises:
        AssertionError: they differ by more.
    """
    assert type(found) is type(expected)
    one, other = _tensor(found), _tensor(expected)
    relative, share = _TOLERANCES[other.dtype]
    largest = other.abs().max().item() if other.numel() else 0.0
    torch.testing.assert_close(one, other, rtol=relative, atol=share * largest)


def _tensor(values: Any) -> Tensor:
    """The numbers as a tensor; arrays are copied: torch takes no reversed or read-only ones."""
    return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values, order="C"))
