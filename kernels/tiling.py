"""Block sizes by shape, within the limits of the current target, which is asked at a launch only.

Two rules prune the lists (README.md): float32 accumulator registers a thread, and the staged
operand tiles within shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import triton
import triton.language as tl

from relprop.kernels.runtime import interpreted

__all__ = [
    "Choice",
    "Demand",
    "Limits",
    "Tile",
    "candidates",
    "direct_tile",
    "interpreter_tile",
    "limits",
]

SHARED_LIMITS = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448}
"""Bytes of shared memory a program may use, by compute capability; 64 KiB on AMD and elsewhere."""

SHAPES = [
    (128, 128, 8),
    (128, 64, 8),
    (64, 64, 4),
    (128, 32, 4),
    (64, 32, 4),
    (128, 16, 4),
    (32, 32, 4),
    (32, 16, 4),
    (16, 16, 4),
]
"""Rows, columns and warps of the tiles, in order of preference."""


LEAST_REGISTERS = 4
"""What the smallest tile takes with two accumulators."""


class Tile(NamedTuple):
    """Rows, columns and contraction length of a block, and how it is run."""

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3
    group: int = 8


Choice = Tile | str
"""A tile, or "library": the library's product with one pointwise kernel."""


@dataclass(frozen=True)
class Demand:
    """What a kernel asks of a tile.

    Attributes:
        m, n, k: extents of the product (k: of one tap).
        operand: Triton dtype of the operands.
        precision: `input_precision` of the products.
        accumulators: 1 or 2.
        parts: weight tiles loaded in one step.
        lefts: left tiles loaded in one step.
        left_width: bytes of a number of the left operand in memory.
        registers: float32 accumulator registers a thread may hold before the compiler spills.
        deepest: longest contraction of a block.
        kernel: its name.
        quotients: of the layer below, that the epilogue takes.
    """

    m: int
    n: int
    k: int
    operand: Any
    precision: str
    accumulators: int = 1
    parts: int = 1
    lefts: int = 1
    left_width: int = 4
    registers: int = 128
    deepest: int = 64
    kernel: str = ""
    quotients: int = 0

    @property
    def key(self) -> str:
        """What a measured choice depends on; rows count by their next power of two."""
        rows = triton.next_power_of_2(max(self.m, 1))
        return (
            f"{self.kernel} {rows}x{self.n}x{self.k} {self.operand}/{self.precision} "
            f"accumulators={self.accumulators} weights={self.parts} lefts={self.lefts} "
            f"left={8 * self.left_width} registers={self.registers} deepest={self.deepest}"
        )

    @property
    def exact(self) -> bool:
        """IEEE float32 products: no tensor cores."""
        return self.operand == tl.float32 and self.precision == "ieee"

    @property
    def width(self) -> int:
        """Bytes of an operand."""
        return self.operand.primitive_bitwidth // 8

    def registers_of(self, tile: Tile) -> int:
        """Accumulator registers a thread."""
        return self.accumulators * tile.m * tile.n // (32 * tile.warps)

    def shared_of(self, tile: Tile) -> int:
        """Bytes of the staged tiles."""
        left = self.lefts * self.left_width * tile.m
        return tile.stages * tile.k * (left + self.parts * self.width * tile.n)


class Limits(NamedTuple):
    """Of a target: bytes of shared memory a program may use, and a divisor of register budgets.

    Before sm_90 operands of the tensor cores pass through registers, so that half as many
    accumulators fit.
    """

    shared: int
    crowding: int


def limits() -> Limits:
    """Those of the current target."""
    target = triton.runtime.driver.active.get_current_target()
    if target.backend != "cuda":
        return Limits(65_536, 1)
    return Limits(SHARED_LIMITS.get(target.arch, 65_536), 1 if target.arch >= 90 else 2)


def candidates(demand: Demand, limit: Limits) -> list[Tile]:
    """The tiles worth timing for a kernel, most preferred first."""
    registers = demand.registers
    deep = 128 // demand.width
    depths: tuple[int, ...] = (deep, deep // 2, deep // 4)
    stages: tuple[int, ...] = (3, 4, 2)
    if demand.exact:
        most = 16 if demand.quotients else 32
        registers, depths, stages = min(registers, most), (32, 16), (2,)
    if demand.precision == "tf32x3":
        registers = min(registers, 32)
    registers //= limit.crowding * (2 if demand.exact and limit.crowding > 1 else 1)
    registers = max(registers, LEAST_REGISTERS)
    deepest = demand.deepest
    if limit.crowding > 1 and demand.kernel == "conv_adjoint" and not demand.quotients:
        deepest = min(deepest, 32)  # at 64 Triton 3.6.0 spills a register or two
    tiles = [
        Tile(m, n, k, warps, stage) for m, n, warps in SHAPES for k in depths for stage in stages
    ]
    return [
        tile
        for tile in tiles
        if tile.k <= deepest
        and (tile.m <= 64 or not demand.exact)
        and demand.registers_of(tile) <= registers
        and demand.shared_of(tile) <= limit.shared
    ]


def interpreter_tile(m: int, n: int, k: int) -> Tile:
    """Few programs and few steps: the interpreter's cost is per operation, not per number."""
    rows, columns = (min(64, max(16, triton.next_power_of_2(size))) for size in (m, n))
    while triton.cdiv(m, rows) * triton.cdiv(n, columns) > 32:
        if triton.cdiv(m, rows) >= triton.cdiv(n, columns):
            rows *= 2
        else:
            columns *= 2
    return Tile(rows, columns, min(64, max(16, triton.next_power_of_2(k))))


def direct_tile(rows: int, columns: int) -> Tile:
    """The tile of the depthwise form: channels first, as many rows as fill 2,048 numbers."""
    if interpreted():
        return interpreter_tile(rows, columns, 1)
    n = min(64, max(16, triton.next_power_of_2(columns)))
    return Tile(2048 // n, n, 16, 4, 2)
