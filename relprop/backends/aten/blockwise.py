"""Products with a part of a large dense weight, the part made block by block as it is needed.

W+ of a layer of 4096 x 25088 takes 400 MB: written, its pages mapped, and read again, it costs
several times a product of few vectors.  A block stays in a core's cache, and W is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["BLOCK", "adjoint", "contraction"]

BLOCK = 2**20
"""Numbers of a block: 4 MiB in float32."""

Part = Callable[[Tensor], Tensor]
"""What makes the wanted part of some rows of a weight."""


def contraction(a: Tensor, w: Tensor, part: Part, b: Tensor | None = None) -> Tensor:
    """part(w) a + b: `[..., out]` for a `[..., in]`, w `[out, in]`, b `[out]`."""
    return torch.cat(
        [F.linear(a, part(w[run]), None if b is None else b[run]) for run in _runs(w)], -1
    )


def adjoint(s: Tensor, w: Tensor, part: Part) -> Tensor:
    """part(w), transposed, times s: `[..., in]` for s `[..., out]`."""
    result = s.new_zeros(*s.shape[:-1], w.shape[1])
    rows, flat = result.view(-1, w.shape[1]), s.reshape(-1, w.shape[0])
    for run in _runs(w):
        rows.addmm_(flat[:, run], part(w[run]))
    return result


def _runs(w: Tensor) -> Iterator[slice]:
    """Runs of w's rows, about `BLOCK` numbers each."""
    count = max(1, BLOCK // w.shape[1])
    return (slice(start, start + count) for start in range(0, w.shape[0], count))
