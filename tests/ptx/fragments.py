"""Matrices as the registers of warps hold them, for `mma.sync` and `wgmma` alike.

Lane l of a warp has row l / 4 and, from column 2 (l % 4) on, two numbers of 16 bits, or one of 32
at l % 4; further registers hold the same 8 rows or half the columns further on.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ptx.machine import WARP, Ctas
from ptx.text import Operand
from ptx.values import Array, decode

__all__ = ["accumulated", "left", "right", "set_accumulators", "type_of"]

ROW, QUAD = np.arange(WARP) // 4, np.arange(WARP) % 4


def type_of(parts: tuple[str, ...]) -> str:
    """The operands' type of a product."""
    return next(part for part in parts if part in ("bf16", "f16", "tf32"))


def _numbers(bits: Array, kind: str) -> list[Array]:
    """The numbers of a register, the first column's first."""
    if kind == "tf32":
        return [decode(bits, kind)]
    halves = (bits & np.uint32(0xFFFF), bits >> np.uint32(16))
    return [decode(half.astype(np.uint16), kind) for half in halves]


def left(bits: list[Array], kind: str) -> Array:
    """`[warps, 16, columns]` of four registers `[threads]`; 8 columns of TF32, else 16."""
    per = 1 if kind == "tf32" else 2
    found = np.zeros((bits[0].size // WARP, 16, 8 * per), np.float32)
    for number, register in enumerate(bits):
        down, along = 8 * (number % 2), 4 * per * (number // 2)
        for next_, values in enumerate(_numbers(register.reshape(-1, WARP), kind)):
            found[:, ROW + down, per * QUAD + along + next_] = values
    return found


def right(bits: list[Array], kind: str) -> Array:
    """`[warps, columns of the product, 8 or 16]` of two registers: the transpose of B."""
    per = 1 if kind == "tf32" else 2
    found = np.zeros((bits[0].size // WARP, 8, 8 * per), np.float32)
    for number, register in enumerate(bits):
        for next_, values in enumerate(_numbers(register.reshape(-1, WARP), kind)):
            found[:, ROW, per * QUAD + 4 * per * number + next_] = values
    return found


@lru_cache
def _corners(number: int) -> tuple[Array, Array]:
    """Rows and columns that the lanes hold of an accumulator's register."""
    block, corner = divmod(number, 4)
    return ROW + 8 * (corner // 2), 8 * block + 2 * QUAD + corner % 2


def accumulated(ctas: Ctas, registers: tuple[Operand, ...]) -> Array:
    """`[warps, 16, columns]` of float32 registers, two for each eight columns and rows."""
    found = np.zeros((ctas.size // WARP, 16, 2 * len(registers)), np.float32)
    for number, register in enumerate(registers):
        rows, columns = _corners(number)
        found[:, rows, columns] = ctas.full(register, np.float32).reshape(-1, WARP)
    return found


def set_accumulators(ctas: Ctas, registers: tuple[Operand, ...], values: Array) -> None:
    for number, register in enumerate(registers):
        rows, columns = _corners(number)
        ctas.write(register, values[:, rows, columns].ravel(), None)
