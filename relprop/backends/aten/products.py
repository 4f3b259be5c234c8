"""Contractions and adjoints of one layer with parts of its weight, in a chosen precision."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relprop.backends.aten import blockwise
from relprop.backends.aten.onednn import fused_adjoint, rectified_contraction, turned, turns
from relprop.graph.maps import Conv, Dense, LinearMap
from relprop.operations.arithmetic import modified, new_like
from relprop.rules.terms import IDENTITY, NEGATIVE, POSITIVE, Modifier

__all__ = ["Products"]

FEW_ROWS = 64


@dataclass(frozen=True)
class _Stack:
    """Parts of a weight side by side, as a weight of so many times the outputs, each scaled."""

    parts: tuple[Modifier, ...]
    scales: tuple[float, ...]


class Pair(NamedTuple):
    """Two tensors over outputs, and the tensor of twice the features that holds both, if any."""

    first: Tensor
    second: Tensor
    both: Tensor | None = None


class Products:
    """The products of one layer with parts of its weight, each part named by a modifier.

    Args:
        linear_map: geometry of the layer.
        w: its weight, float32 or float64.
        precision: see `relprop.operations.protocol.LinearCall`.
        cache: keeps derived weights; they are functions of `w` alone.
        rows: how many input vectors a product takes, where derived weights are not kept: below
            `FEW_ROWS` it costs less than bringing the weight to bfloat16, and parts of a large
            weight are made block by block.  None where they are kept.
    """

    def __init__(
        self,
        linear_map: LinearMap,
        w: Tensor,
        precision: str,
        cache: dict[Any, Any],
        rows: int | None = None,
    ) -> None:
        self.map = linear_map
        self.w = w
        self.cache = cache
        self.precision = precision
        narrow = precision == "medium" and w.dtype is not torch.float64
        narrow = narrow and (rows is None or rows >= FEW_ROWS)
        self.dtype = torch.bfloat16 if narrow else w.dtype
        matrix = w.ndim == 2 and w.device.type == "cpu"  # of a dense layer, one for all samples
        whole = narrow or rows is None or w.numel() <= blockwise.BLOCK
        self._in_blocks = matrix and not whole

    @property
    def widens(self) -> bool:
        """Whether `widened` exists: the input features are an axis of the weight alone."""
        if isinstance(self.map, Conv):
            return self.map.groups == 1
        return isinstance(self.map, Dense)

    def widened(self) -> Products:
        """The products of [W, -W] with twice the input features."""
        w = torch.cat([self.w, -self.w], self.map.weight_axes[1])
        return Products(self.map, w, self.precision, {})

    def split(self, start: int, stop: int) -> tuple[Products, Products]:
        """The products of the input features from `start` to `stop`, and those of the others."""
        axis = self.map.weight_axes[1]
        before, own, after = self.w.tensor_split([start, stop], axis)
        others = torch.cat([before, after], axis)
        first, second = (
            Products(self.map, w.contiguous(), self.precision, {}) for w in (own, others)
        )
        return first, second

    @property
    def features(self) -> int:
        """Number of output features."""
        groups = self.map.groups if isinstance(self.map, Conv) and self.map.transposed else 1
        return self.w.shape[self.map.weight_axes[0]] * groups

    def weight(self, part: Modifier | _Stack, backwards: bool = False) -> Tensor:
        """A part of the weight, as an operand; `backwards` as in `onednn.turned`."""
        if part == IDENTITY and self.dtype is self.w.dtype and not backwards:
            return self.w
        key = ("weight", part, self.dtype, backwards)
        if key not in self.cache:
            weight = self._part(part, self.w).to(self.dtype)
            if backwards:
                assert isinstance(self.map, Conv)
                weight = turned(self.map, weight)
            self.cache[key] = weight
        found: Tensor = self.cache[key]
        return found

    def _made_in_blocks(self, part: Modifier | _Stack) -> bool:
        return self._in_blocks and part != IDENTITY

    def _part(self, part: Modifier | _Stack, w: Tensor) -> Tensor:
        if isinstance(part, Modifier):
            return modified(part, w)
        halves = [
            modified(half, w) if scale == 1 else modified(half, w).mul_(scale)
            for half, scale in zip(part.parts, part.scales, strict=True)
        ]
        return torch.cat(halves, self.map.weight_axes[0]) if len(halves) > 1 else halves[0]

    @property
    def _stacks(self) -> bool:
        """Whether W+ and W- make one weight of twice the outputs.

        Groups would interleave them, and on a CPU two contiguous results are the faster ones.
        """
        if self._in_blocks:
            return False
        return not isinstance(self.map, Conv) or (self.map.groups == 1 and self.w.is_cuda)

    def contraction(
        self,
        a: Tensor,
        part: Modifier | _Stack,
        b: Tensor | None = None,
        rectify: bool = False,
    ) -> Tensor:
        """A part of W times a, plus a bias over output features; a new tensor.

        With `rectify` the larger of that and 0.
        """
        a = a.to(self.dtype)
        if self._made_in_blocks(part):
            z = blockwise.contraction(a, self.w, partial(self._part, part), b)
            return z.relu_() if rectify else z
        weight = self.weight(part)
        exact = self.dtype is self.w.dtype
        if exact and rectify and isinstance(self.map, Conv):
            fused = rectified_contraction(self.map, a, weight, b)
            if fused is not None:
                return fused
        z = self.map.contraction(a, weight, b if exact else None).to(self.w.dtype)
        if b is not None and not exact:
            z.add_(self.map.align(b))
        return z.relu_() if rectify else z

    def pair(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """W+ a and W- a; new tensors."""
        if not self._stacks:
            return self.contraction(a, POSITIVE), self.contraction(a, NEGATIVE)
        both = self.contraction(a, _Stack((POSITIVE, NEGATIVE), (1.0, 1.0)))
        positive, negative = both.chunk(2, self.map.feature_axis)
        return positive, negative

    def adjoint(
        self,
        s: Tensor,
        part: Modifier | _Stack,
        shape: torch.Size,
        times: Tensor | None = None,
    ) -> Tensor:
        """A part of W, transposed, times s; a new tensor.

        Args:
            s: `[K, *output shape]`.
            part: which part of the weight.
            shape: of the layer's input.
            times: what to multiply the result by, of that shape; 1 if None.

        Returns:
            `[K, *shape]`.
        """
        s = s.to(self.dtype)
        if not isinstance(self.map, Conv):
            if self._made_in_blocks(part):
                result = blockwise.adjoint(s, self.w, partial(self._part, part))
            else:
                result = self.map.adjoint(s, self.weight(part), shape).to(self.w.dtype)
            return result if times is None else result.mul_(times)
        rows = torch.Size((s.shape[0] * s.shape[1], *shape[1:]))
        flat = s.flatten(0, 1)
        backwards = None
        if times is not None and self.w.numel() <= times.numel():  # turning w costs a few passes
            backwards = turns(self.map, flat, self.w.shape[2:], times)
        if times is not None and backwards is not None:
            fused = fused_adjoint(backwards, flat, self.weight(part, True), times)
            return fused.unflatten(0, s.shape[:2])
        result = self.map.adjoint(flat, self.weight(part), rows).to(self.w.dtype)
        result = result.unflatten(0, s.shape[:2])
        return result if times is None else result.mul_(times)

    def pair_like(self, r: Tensor) -> Pair:
        """Room for two quotients, side by side where W+ and W- are."""
        if not self._stacks:
            return Pair(torch.empty_like(r), torch.empty_like(r))
        size = list(r.shape)
        size[self.map.feature_axis] *= 2
        both = new_like(r, size)
        first, second = both.chunk(2, self.map.feature_axis)
        return Pair(first, second, both)

    def pair_adjoint(
        self,
        pair: Pair,
        shape: torch.Size,
        swapped: bool = False,
        scales: tuple[float, float] = (1.0, 1.0),
        times: Tensor | None = None,
    ) -> Tensor:
        """W+, transposed, times the first plus W-, transposed, times the second.

        With `swapped` W- and W+; each product scaled, their sum multiplied by `times`.
        """
        signs = (NEGATIVE, POSITIVE) if swapped else (POSITIVE, NEGATIVE)
        if pair.both is not None:
            return self.adjoint(pair.both, _Stack(signs, scales), shape, times)
        first, second = (
            _Stack((sign,), (scale,)) for sign, scale in zip(signs, scales, strict=True)
        )
        result = self.adjoint(pair.first, first, shape, times)
        return result.add_(self.adjoint(pair.second, second, shape, times))
