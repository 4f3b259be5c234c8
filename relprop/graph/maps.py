"""The linear maps that rules apply to: dense, convolution, per-channel scale.

A map is geometry only: no weights, no rule.  `contraction` is W.a + b, `adjoint` is W^T.s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "CHANNELS_LAST",
    "Conv",
    "Dense",
    "Diagonal",
    "LinearMap",
    "is_channels_last",
    "norm_scale",
    "norm_shift",
    "per_axis",
    "scale_bias",
    "scale_inputs",
    "scale_outputs",
    "shift_inputs",
    "unbroadcast",
]

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Memory formats with the features innermost, by number of axes."""


def is_channels_last(t: Tensor) -> bool:
    """Whether features are innermost in memory, and not merely because there is one of them."""
    layout = CHANNELS_LAST.get(t.ndim)
    return layout is not None and not t.is_contiguous() and t.is_contiguous(memory_format=layout)


def per_axis(value: Any, count: int) -> list[int]:
    """One number for each of `count` axes, given as one for all or as a list."""
    items = [value] if isinstance(value, int) else list(value)
    return items * count if len(items) == 1 else items


def unbroadcast(r: Tensor, shape: torch.Size) -> Tensor:
    """Relevance `[K, *out]` summed to `[K, *shape]`, `shape` broadcasting to `out`."""
    lead = r.ndim - 1 - len(shape)
    if lead:
        r = r.sum(tuple(range(1, 1 + lead)))
    axes = [axis for axis, size in enumerate(shape, start=1) if size == 1 and r.shape[axis] != 1]
    return r.sum(axes, keepdim=True) if axes else r


@dataclass(frozen=True)
class LinearMap:
    """Base class: an input `a`, a weight `w`, features on one axis."""

    @property
    def feature_axis(self) -> int:
        """Axis of the features, of input and output alike, counted from the end."""
        raise TypeError(type(self).__name__)

    @property
    def weight_axes(self) -> tuple[int, int]:
        """Axes of the weight over output and input features."""
        return 0, 1

    def contraction(self, a: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """W.a + b, `b` a vector over output features."""
        raise TypeError(type(self).__name__)

    def adjoint(self, s: Tensor, w: Tensor, shape: torch.Size) -> Tensor:
        """W^T.s for an input of the given shape (the rows of `s` may differ in number from `a`)."""
        raise TypeError(type(self).__name__)

    def output_shape(self, a: Sequence[int], w: Sequence[int]) -> tuple[int, ...]:
        """Shape of W.a + b, from those of `a` and of the weight."""
        raise TypeError(type(self).__name__)

    def align(self, b: Tensor) -> Tensor:
        """A vector over output features, shaped to broadcast against the output."""
        return b.reshape(-1, *(1,) * (-self.feature_axis - 1))


@dataclass(frozen=True)
class Dense(LinearMap):
    """`torch.nn.functional.linear`: weight `[out, in]`, input `[..., in]`.

    A weight with more axes is one for each sample: these broadcast against those of the input.
    """

    @property
    def feature_axis(self) -> int:
        return -1

    @property
    def weight_axes(self) -> tuple[int, int]:
        return -2, -1

    def contraction(self, a: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        if w.ndim == 2:
            return F.linear(a, w, b)
        z = torch.matmul(a, w.mT)
        return z if b is None else z.add_(b)

    def adjoint(self, s: Tensor, w: Tensor, shape: torch.Size) -> Tensor:
        a = torch.matmul(s, w)
        return a if w.ndim == 2 else unbroadcast(a, shape)

    def output_shape(self, a: Sequence[int], w: Sequence[int]) -> tuple[int, ...]:
        return (*a[:-1], w[-2])


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

    @classmethod
    def of(
        cls,
        kernel: Sequence[int],
        stride: int | Sequence[int],
        padding: int | Sequence[int] | str,
        dilation: int | Sequence[int],
        groups: int,
        transposed: bool,
        output_padding: int | Sequence[int],
    ) -> Conv:
        """From the arguments of torch's functions, which fit each other.

        Args:
            kernel: the spatial sizes of the weight; of named paddings alone more than their number
                counts.
            stride, dilation, output_padding: one number for all axes, or one each.
            padding: likewise, or "same" or "valid".
            groups, transposed: as in the class.
        """
        spatial = len(kernel)
        gaps = tuple(per_axis(dilation, spatial))
        if isinstance(padding, str):
            same = padding == "same"
            totals = [gap * (k - 1) * same for gap, k in zip(gaps, kernel, strict=True)]
            pads = tuple((total // 2, total - total // 2) for total in totals)
        else:
            pads = tuple((size, size) for size in per_axis(padding, spatial))
        extra = tuple(per_axis(output_padding, spatial)) if transposed else ()
        return cls(tuple(per_axis(stride, spatial)), pads, gaps, groups, transposed, extra)

    @property
    def spatial(self) -> int:
        """Number of spatial dimensions."""
        return len(self.stride)

    @property
    def feature_axis(self) -> int:
        return -1 - self.spatial

    @property
    def weight_axes(self) -> tuple[int, int]:
        return (1, 0) if self.transposed else (0, 1)

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

    def output_shape(self, a: Sequence[int], w: Sequence[int]) -> tuple[int, ...]:
        sizes = []
        for axis, (before, after) in enumerate(self.padding):
            size, step, pad = a[2 + axis], self.stride[axis], before + after
            reach = self.dilation[axis] * (w[2 + axis] - 1) + 1
            if self.transposed:
                more = self.output_padding[axis] if self.output_padding else 0
                sizes.append((size - 1) * step - pad + reach + more)
            else:
                sizes.append((size + pad - reach) // step + 1)
        return (a[0], w[1] * self.groups if self.transposed else w[0], *sizes)


def _unfilled(s: Tensor, shape: list[int]) -> Tensor:
    """A tensor for the library to read shape and memory format from; its values do not matter."""
    if not is_channels_last(s):
        return s.new_empty(1).expand(shape)
    form = CHANNELS_LAST[s.ndim]
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

    def output_shape(self, a: Sequence[int], w: Sequence[int]) -> tuple[int, ...]:
        return tuple(a)


def norm_scale(weight: Tensor | None, variance: Tensor, epsilon: float) -> Tensor:
    scale = torch.rsqrt(variance + epsilon)
    return scale if weight is None else scale * weight


def norm_shift(bias: Tensor | None, mean: Tensor, scale: Tensor) -> Tensor:
    return -mean * scale if bias is None else bias - mean * scale


def scale_outputs(linear_map: LinearMap, w: Tensor, scale: Tensor) -> Tensor:
    if isinstance(linear_map, Conv) and linear_map.transposed:
        groups = linear_map.groups
        split = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
        factors = scale.reshape(groups, 1, w.shape[1], *(1,) * linear_map.spatial)
        return (split * factors).reshape(w.shape)
    return w * scale.reshape(-1, *(1,) * (w.ndim - 1))


def scale_bias(b: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    return shift if b is None else b * scale + shift


def _over_inputs(linear_map: LinearMap, w: Tensor, vector: Tensor) -> Tensor:
    """The vector over input features, shaped like the weight's input axis."""
    if isinstance(linear_map, Dense):
        return vector
    assert isinstance(linear_map, Conv)
    rows = vector.reshape(linear_map.groups, w.shape[1])
    rows = rows.repeat_interleave(w.shape[0] // linear_map.groups, 0)
    return rows.reshape(*w.shape[:2], *(1,) * linear_map.spatial)


def scale_inputs(linear_map: LinearMap, w: Tensor, scale: Tensor) -> Tensor:
    return w * _over_inputs(linear_map, w, scale)


def shift_inputs(linear_map: LinearMap, w: Tensor, b: Tensor | None, shift: Tensor) -> Tensor:
    moved = (w * _over_inputs(linear_map, w, shift)).flatten(1).sum(1)
    return moved if b is None else torch.add(b, moved)
