"""Block sizes by shape.  No device is asked: the bounds are those of sm_90, sm_80 a subset.

Two rules prune the lists (README.md): at most 128 float32 accumulator registers a thread, and the
staged operand tiles within shared memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

__all__ = ["SHARED_LIMIT", "Tile", "candidates", "choose", "direct_tile", "fits", "shared_bytes"]

SHARED_LIMIT = 232_448
"""Bytes of shared memory a program may use on sm_90 (227 KiB)."""

ACCUMULATOR_LIMIT = 128
"""Float32 accumulator registers a thread: above it the compiler spills."""


class Tile(NamedTuple):
    """Rows, columns and contraction length of a block, and how it is run."""

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3
    group: int = 8


def accumulator_registers(tile: Tile, accumulators: int) -> int:
    """Float32 accumulator registers a thread."""
    return accumulators * tile.m * tile.n // (32 * tile.warps)


def shared_bytes(tile: Tile, parts: int, width: int) -> int:
    """Bytes of the staged tiles: one left operand and `parts` weights of `width` bytes a number."""
    return tile.stages * width * tile.k * (tile.m + parts * tile.n)


def fits(tile: Tile, accumulators: int, parts: int, width: int) -> bool:
    """Whether a tile keeps to both limits."""
    return (
        accumulator_registers(tile, accumulators) <= ACCUMULATOR_LIMIT
        and shared_bytes(tile, parts, width) <= SHARED_LIMIT
    )


def candidates(accumulators: int, parts: int, width: int, exact: bool) -> list[Tile]:
    """The tiles worth timing, largest first.

    Args:
        accumulators: of the kernel, 1 or 2.
        parts: weight tiles loaded in one step.
        width: bytes of an operand's number.
        exact: whether products are IEEE float32 (no tensor cores: small tiles).
    """
    if exact:
        return [Tile(64, 64, 32, 4, 2), Tile(64, 32, 32, 4, 2), Tile(32, 32, 32, 4, 2)]
    depth = 128 // width
    tiles = [
        Tile(m, n, k, warps, stages)
        for m, n, warps in [(128, 128, 8), (128, 64, 8), (64, 64, 4), (64, 32, 4), (32, 32, 4)]
        for k in (depth, depth // 2)
        for stages in (3, 4, 2)
    ]
    return [tile for tile in tiles if fits(tile, accumulators, parts, width)]


def choose(
    m: int, n: int, k: int, accumulators: int, operand: Any, precision: str, parts: int
) -> Tile:
    """The tile for a product of `[m, k]` with `[k, n]` until a measured table says otherwise.

    Args:
        m, n, k: extents of the product.
        accumulators: 1 or 2.
        operand: Triton dtype of the operands.
        precision: `input_precision` of the products.
        parts: weight tiles loaded in one step.
    """
    from relprop.kernels.tiles import interpreted

    if interpreted():
        return _interpreter_tile(m, n, k)
    exact = operand == tl.float32 and precision == "ieee"
    width = operand.primitive_bitwidth // 8
    tiles = candidates(accumulators, parts, width, exact)
    if precision == "tf32x3":
        tiles = [tile for tile in tiles if tile.m * tile.n <= 128 * 64]
    for tile in tiles:
        if tile.m < 2 * m and tile.n < 2 * n and tile.k < 2 * max(k, 16):
            return tile
    return tiles[-1]


def _interpreter_tile(m: int, n: int, k: int) -> Tile:
    """Few programs and few steps: the interpreter's cost is per operation, not per number."""
    rows, columns = (min(64, max(16, triton.next_power_of_2(size))) for size in (m, n))
    while triton.cdiv(m, rows) * triton.cdiv(n, columns) > 32:
        rows *= 2
    return Tile(rows, columns, min(64, max(16, triton.next_power_of_2(k))))


def direct_tile(rows: int, columns: int) -> Tile:
    """The tile of the depthwise form: channels first, as many rows as fill 2,048 numbers."""
    from relprop.kernels.tiles import interpreted

    if interpreted():
        return _interpreter_tile(rows, columns, 1)
    n = min(64, max(16, triton.next_power_of_2(columns)))
    return Tile(2048 // n, n, 16, 4, 2)
