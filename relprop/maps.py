"""The linear maps that rules apply to: dense, convolution, per-channel scale.

A map is geometry only: no weights, no rule.  `contraction` is W.a + b, `adjoint` is W^T.s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Conv", "Dense", "Diagonal", "LinearMap"]


@dataclass(frozen=True)
class LinearMap:
    """Base class: an input `a`, a weight `w`, features on one axis."""

    @property
    def feature_axis(self) -> int:
        """Axis of the features, of input and output alike, counted from the end."""
        raise TypeError(type(self).__name__)

    def contraction(self, a: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """W.a + b, `b` a vector over output features."""
        raise TypeError(type(self).__name__)

    def adjoint(self, s: Tensor, w: Tensor, shape: torch.Size) -> Tensor:
        """W^T.s for an input of the given shape (the rows of `s` may differ in number from `a`)."""
        raise TypeError(type(self).__name__)

    def align(self, b: Tensor) -> Tensor:
        """A vector over output features, shaped to broadcast against the output."""
        return b.reshape(-1, *(1,) * (-self.feature_axis - 1))


@dataclass(frozen=True)
class Dense(LinearMap):
    """`torch.nn.functional.linear`: weight `[out, in]`, input `[..., in]`."""

    @property
    def feature_axis(self) -> int:
        return -1

    def contraction(self, a: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return F.linear(a, w, b)

    def adjoint(self, s: Tensor, w: Tensor, shape: torch.Size) -> Tensor:
        return torch.matmul(s, w)


@dataclass(frozen=True)
class Conv(LinearMap):
    """Convolution in any number of spatial dimensions; transposed if so marked.

    Weight `[out, in / groups, *kernel]`, transposed `[in, out / groups, *kernel]`.  `padding` is a
    (before, after) pair for each spatial dimension, always of zeros, equal for transposed ones.
    """

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def spatial(self) -> int:
        """Number of spatial dimensions."""
        return len(self.stride)

    @property
    def feature_axis(self) -> int:
        return -1 - self.spatial

    @property
    def _symmetric(self) -> bool:
        return all(before == after for before, after in self.padding)

    @property
    def _pads(self) -> list[int]:
        return [size for pair in reversed(self.padding) for size in pair]

    def _arguments(self) -> tuple[object, ...]:
        padding = [before for before, _ in self.padding] if self._symmetric else [0] * self.spatial
        output_padding = list(self.output_padding) or [0] * self.spatial
        return (
            list(self.stride),
            padding,
            list(self.dilation),
            self.transposed,
            output_padding,
            self.groups,
        )

    def contraction(self, a: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        if not self._symmetric:
            a = F.pad(a, self._pads)
        return torch.ops.aten.convolution.default(a, w, b, *self._arguments())

    def adjoint(self, s: Tensor, w: Tensor, shape: torch.Size) -> Tensor:
        padded = list(shape)
        if not self._symmetric:
            for axis, (before, after) in enumerate(self.padding, start=2):
                padded[axis] += before + after
        like = _unfilled(s, padded)
        out = torch.ops.aten.convolution_backward.default(
            s, like, w, None, *self._arguments(), [True, False, False]
        )[0]
        return out if self._symmetric else F.pad(out, [-size for size in self._pads])


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _unfilled(s: Tensor, shape: list[int]) -> Tensor:
    """A tensor for the library to read shape and memory format from; its values do not matter."""
    form = _CHANNELS_LAST.get(s.ndim)
    if form is None or s.is_contiguous() or not s.is_contiguous(memory_format=form):
        return s.new_empty(1).expand(shape)
    return torch.empty(shape, dtype=s.dtype, device=s.device, memory_format=form)


@dataclass(frozen=True)
class Diagonal(LinearMap):
    """A scale for each channel, on axis 1 of an input with `ndim` axes: a batch norm's map."""

    ndim: int

    @property
    def feature_axis(self) -> int:
        return 1 - self.ndim

    def contraction(self, a: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        z = a * self.align(w)
        return z if b is None else z.add_(self.align(b))

    def adjoint(self, s: Tensor, w: Tensor, shape: torch.Size) -> Tensor:
        return s * self.align(w)
