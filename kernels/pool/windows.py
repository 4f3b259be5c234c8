"""Windows of a pooling: which positions one holds, and which windows hold a position."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl

from relprop.kernels.axes import coordinates, lift

__all__ = [
    "Axes",
    "adaptive_axes",
    "candidates",
    "fixed_axes",
    "pooled_extents",
    "reach",
    "tap_of",
    "window",
    "windows",
]

Axes = tuple[tuple[int, ...], ...]


@triton.jit
def tap_of(index, AXES: tl.constexpr):
    """A tap along each axis from the flat one."""
    return coordinates(index, AXES[1][0], AXES[2][0])


@triton.jit
def window(y, size, out, AXES: tl.constexpr, A: tl.constexpr, ADAPTIVE: tl.constexpr):
    """Start and stop of a window within the input, and its length with padding.

    AXES[A] is (taps, stride, padding, dilation, windows that one position may be in).
    """
    if ADAPTIVE:
        start = (y * size) // out
        stop = ((y + 1) * size + out - 1) // out
        return start, stop, stop - start
    else:
        start = y * AXES[A][1] - AXES[A][2]
        stop = tl.minimum(start + AXES[A][0], size + AXES[A][2])
        return tl.maximum(start, 0), tl.minimum(stop, size), stop - start


@triton.jit
def reach(y, size, out, AXES: tl.constexpr, A: tl.constexpr, ADAPTIVE: tl.constexpr):
    """First tap of a window, which may lie in the padding, and where its taps end."""
    if ADAPTIVE:
        start, stop, _ = window(y, size, out, AXES, A, True)
        return start, stop
    else:
        return y * AXES[A][1] - AXES[A][2], y * 0 + size


@triton.jit
def windows(at, source, target, AXES: tl.constexpr, ADAPTIVE: tl.constexpr):
    """Of the windows at three coordinates: starts, stops, lengths with padding."""
    d = window(at[0], source[0], target[0], AXES, 0, ADAPTIVE)
    h = window(at[1], source[1], target[1], AXES, 1, ADAPTIVE)
    w = window(at[2], source[2], target[2], AXES, 2, ADAPTIVE)
    return (d[0], h[0], w[0]), (d[1], h[1], w[1]), (d[2], h[2], w[2])


@triton.jit
def candidate(x, j, size, out, AXES: tl.constexpr, A: tl.constexpr, ADAPTIVE: tl.constexpr):
    """The j-th window that may hold position x, and whether it exists."""
    if ADAPTIVE:
        y = (x * out) // size + j
    else:
        y = (x + AXES[A][2]) // AXES[A][1] - j
    return y, (y >= 0) & (y < out)


@triton.jit
def candidates(at, j, source, target, AXES: tl.constexpr, ADAPTIVE: tl.constexpr):
    """The j-th window of all that may hold a position, and whether it exists."""
    i = coordinates(j, AXES[1][4], AXES[2][4])
    d, in_d = candidate(at[0], i[0], source[0], target[0], AXES, 0, ADAPTIVE)
    h, in_h = candidate(at[1], i[1], source[1], target[1], AXES, 1, ADAPTIVE)
    w, in_w = candidate(at[2], i[2], source[2], target[2], AXES, 2, ADAPTIVE)
    return (d, h, w), in_d & in_h & in_w


def fixed_axes(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Axes:
    """The constexpr description of windows of one size (see `window`)."""
    return tuple(
        (k, s, p, d, triton.cdiv(d * (k - 1) + 1, s))
        for k, s, p, d in zip(lift(kernel, 1), lift(stride, 1), lift(padding, 0), lift(dilation, 1))
    )


def adaptive_axes(source: Sequence[int], target: Sequence[int]) -> Axes:
    """That of windows which divide the input: taps and windows are the most there may be."""
    return tuple(
        (triton.cdiv(x, max(y, 1)) + 1, 1, 0, 1, triton.cdiv(y, max(x, 1)) + 1)
        for x, y in zip(lift(source, 1), lift(target, 1))
    )


def pooled_extents(
    source: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> list[int]:
    """Extents of a pooling's output; with `ceil_mode` the last window starts inside the input."""
    result = []
    for size, k, s, p, d in zip(source, kernel, stride, padding, dilation):
        room = size + 2 * p - d * (k - 1) - 1
        count = room // s + 1
        if ceil_mode:
            count = -(-room // s) + 1
            count -= (count - 1) * s >= size + p
        result.append(count)
    return result
