"""What kernels over positions share: rows are positions, columns channels.

Fewer than three axes are unit axes, as in the convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from relprop.kernels.axes import coordinates, lift, lifted_strides, part_strides
from relprop.kernels.layouts import ordered_empty, quotient_empty
from relprop.kernels.operands import Lower, lower_numbers
from relprop.kernels.runtime import FUSION
from relprop.kernels.tiling import direct_tile

__all__ = ["launch", "launch_adjoint", "positions"]


@triton.jit
def positions(C, extents, images, BM: tl.constexpr, BN: tl.constexpr):
    """Image, coordinates and channels of a tile, and which of its entries exist."""
    tiles_n = tl.cdiv(C, BN)
    pid = tl.program_id(0)
    rows = (pid // tiles_n).to(tl.int64) * BM + tl.arange(0, BM)
    columns = (pid % tiles_n) * BN + tl.arange(0, BN)
    valid = rows < images * extents[0] * extents[1] * extents[2]
    i = coordinates(rows, extents[1], extents[2])
    at = ((i[0] % extents[0]).to(tl.int32), i[1].to(tl.int32), i[2].to(tl.int32))
    return i[0] // extents[0], at, columns, valid[:, None] & (columns < C)[None, :]


def launch(kernel: Any, shape: Sequence[int], *arguments: Any, **options: Any) -> None:
    """Launch a kernel over the positions and channels of `[images, channels, *spatial]`."""
    images, channels, *extents = shape
    rows = images * prod(extents)
    if rows * channels == 0:
        return
    tile = direct_tile(rows, channels)
    grid = (triton.cdiv(rows, tile.m) * triton.cdiv(channels, tile.n),)
    kernel[grid](
        *arguments, BM=tile.m, BN=tile.n, num_warps=tile.warps, enable_fp_fusion=FUSION, **options
    )


def launch_adjoint(
    kernel: Any,
    r: Tensor,
    saved: Sequence[Tensor],
    shape: Sequence[int],
    like: Tensor,
    lower: Lower | None,
    *arguments: Any,
    **options: Any,
) -> Tensor:
    """Launch an adjoint over the positions of its input.

    Args:
        kernel: takes r, the saved tensors, the lower layer's z, the result; images, saved images,
            channels; extents of input and output; strides of r, of each saved tensor, of z and of
            the result, the parts' first; the arguments; the numbers of the quotient.
        r: relevance of the output, `[targets, batch, channels, *spatial]`.
        saved: what the forward pass left, `[batch, channels, *spatial]` of input or output.
        shape: of the input.
        like: the tensor as which the result is laid out.
        lower: the layer below, if its quotient is to be taken at once.
        arguments, options: the kernel's own.

    Returns:
        `[targets, *shape]`, float32; with `lower` its quotients, `[1 or 2, targets, *shape]`.
    """
    spatial, targets = len(shape) - 2, r.shape[0]
    if lower is None:
        out = ordered_empty((1, targets), shape, like)
    else:
        parts = lower.program.parts
        out = quotient_empty(parts, targets, shape, like, lower.feature_axis)
    r, rows = r.flatten(0, 1), out.flatten(1, 2)
    below = rows if lower is None else lower.z
    launch(
        kernel, rows.shape[1:],
        r, *saved, below, rows, rows.shape[1], shape[0], shape[1],
        lift(shape[2:], 1), lift(r.shape[2:], 1), lifted_strides(r, spatial),
        *(lifted_strides(tensor, spatial) for tensor in saved),
        *part_strides(below, spatial), *part_strides(rows, spatial), *arguments,
        lower_numbers(lower), LOWER=lower and lower.program.mode, **options,
    )  # fmt: skip
    return out if lower is not None else out[0]
