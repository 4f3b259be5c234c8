"""Which sources and taps meet in which output coordinate of a convolution.

Two index maps serve everything (README.md, "Convolution"): a *forward* map, source = i * stride -
padding + tap * dilation, is the contraction of a convolution and the adjoint of a transposed one;
a *phased* map, its transpose, is the adjoint of a convolution and the contraction of a transposed
one.  A phase is a residue of the output coordinate modulo the stride: one launch covers them all
and each visits just the taps that reach it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from relprop.kernels.axes import coordinates

__all__ = ["axis_step", "inside", "pixels"]


@triton.jit
def phase_taps(phase, AXES: tl.constexpr, A: tl.constexpr, PHASED: tl.constexpr):
    """First tap and number of taps of a phase of one axis.

    AXES[A] is (stride, padding, dilation, taps, common, step, inverse, unit): common = gcd(stride,
    dilation), step = stride / common, inverse = (dilation / common)^-1 modulo step; `unit` where an
    output sees the one source coordinate that is its own.
    """
    if PHASED:
        residue = (phase + AXES[A][1]) % AXES[A][0]
        first = ((residue // AXES[A][4]) * AXES[A][6]) % AXES[A][5]
        count = tl.maximum((AXES[A][3] - first + AXES[A][5] - 1) // AXES[A][5], 0)
        return first, tl.where(residue % AXES[A][4] == 0, count, 0)
    else:
        return phase * 0, phase * 0 + AXES[A][3]


@triton.jit
def axis_source(i, phase, first, AXES: tl.constexpr, A: tl.constexpr, PHASED: tl.constexpr):
    """Output coordinate of index i, and the source coordinate of its first tap."""
    if PHASED:
        target = phase + i * AXES[A][0]
        return target, (target + AXES[A][1] - first * AXES[A][2]) // AXES[A][0]
    else:
        return i, i * AXES[A][0] - AXES[A][1]


@triton.jit
def axis_extent(size, phase, AXES: tl.constexpr, A: tl.constexpr, PHASED: tl.constexpr):
    """How many output coordinates of an axis belong to a phase."""
    if PHASED:
        return tl.maximum((size - phase + AXES[A][0] - 1) // AXES[A][0], 0)
    else:
        return size + phase * 0


@triton.jit
def axis_step(AXES: tl.constexpr, A: tl.constexpr, PHASED: tl.constexpr):
    """What one further tap adds to the source coordinate and to the weight's tap index."""
    if PHASED:
        return -(AXES[A][2] // AXES[A][4]), AXES[A][5]
    else:
        return AXES[A][2], 1


@triton.jit
def inside(source, size, AXES: tl.constexpr, A: tl.constexpr, PHASED: tl.constexpr):
    """Whether a source coordinate exists; always, on an axis of one tap that is not padded."""
    if not PHASED and AXES[A][7]:
        return source >= 0
    else:
        return (source >= 0) & (source < size)


@triton.jit
def split_phase(phase, AXES: tl.constexpr, PHASED: tl.constexpr):
    """Phase of each axis from the flat phase."""
    if PHASED:
        return coordinates(phase, AXES[1][0], AXES[2][0])
    else:
        return phase * 0, phase * 0, phase * 0


@triton.jit
def axis_pixels(i, phase, AXES: tl.constexpr, A: tl.constexpr, PHASED: tl.constexpr):
    """Output coordinate of index i, source coordinate of its first tap, first tap, how many."""
    first, count = phase_taps(phase, AXES, A, PHASED)
    target, source = axis_source(i, phase, first, AXES, A, PHASED)
    return target, source, first, count


@triton.jit
def pixels(rows, phase, images, target, AXES: tl.constexpr, PHASED: tl.constexpr):
    """Of the rows of a tile: image, output and source coordinates, first taps, taps, validity.

    `target` are the extents of the output; all but image and validity are tuples of three axes.
    """
    q = split_phase(phase, AXES, PHASED)
    depth = axis_extent(target[0], q[0], AXES, 0, PHASED)
    height = axis_extent(target[1], q[1], AXES, 1, PHASED)
    width = axis_extent(target[2], q[2], AXES, 2, PHASED)
    valid = rows < images * depth * height * width
    depth = tl.maximum(depth, 1)
    i = coordinates(rows, tl.maximum(height, 1), tl.maximum(width, 1))
    d = axis_pixels(i[0] % depth, q[0], AXES, 0, PHASED)
    h = axis_pixels(i[1], q[1], AXES, 1, PHASED)
    w = axis_pixels(i[2], q[2], AXES, 2, PHASED)
    return (
        i[0] // depth,
        (d[0], h[0], w[0]),
        (d[1], h[1], w[1]),
        (d[2], h[2], w[2]),
        (d[3], h[3], w[3]),
        valid,
    )
