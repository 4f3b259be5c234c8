"""`mma.sync`, and `ldmatrix` and `stmatrix`, which carry 8x8 matrices between a warp and memory.

Sums within one instruction are exact up to float64, then rounded once to float32.
"""

from __future__ import annotations

import numpy as np

from ptx.fragments import accumulated, left, right, set_accumulators, type_of
from ptx.machine import WARP, Ctas, instruction
from ptx.text import Instruction, PtxError
from ptx.values import Array

LANE = np.arange(WARP)
ROWS = 8


@instruction("mma")
def multiply(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    if mask is not None or not (i.has("m16n8k8") or i.has("m16n8k16")) or i.parts[-1] != "f32":
        raise PtxError(f"unknown product: {i.text[:80]}")
    kind = type_of(i.parts)
    a = left([ctas.full(r, np.uint32) for r in i.registers(1)], kind)
    b = right([ctas.full(r, np.uint32) for r in i.registers(2)], kind)
    exact = a.astype(np.float64) @ b.astype(np.float64).transpose(0, 2, 1)
    total = exact + accumulated(ctas, i.registers(3))
    set_accumulators(ctas, i.registers(0), total.astype(np.float32))


def _rows(ctas: Ctas, i: Instruction, operand: int, number: int) -> tuple[Array, Array, Array]:
    """CTA, address and warp of each row of each warp's matrix of that number."""
    address = ctas.address(i.operands[operand]).reshape(-1, WARP)
    chosen = slice(ROWS * number, ROWS * (number + 1))
    cta, warp = (x.reshape(-1, WARP)[:, chosen].ravel() for x in (ctas.cta, ctas.warp))
    return cta, address[:, chosen].ravel(), warp


def _places(i: Instruction) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Where in its matrix a lane's lower and upper number are."""
    row, pair = LANE // 4, 2 * (LANE % 4)
    if i.has("trans"):
        return (pair, row), (pair + 1, row)
    return (row, pair), (row, pair + 1)


@instruction("ldmatrix")
def load_matrices(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    if mask is not None or not i.has("m8n8") or not i.has("b16"):
        raise PtxError(f"unknown instruction: {i.text}")
    (low_row, low_column), (high_row, high_column) = _places(i)
    for number, register in enumerate(i.registers(0)):
        cta, address, warp = _rows(ctas, i, 1, number)
        octets = ctas.shared.load(cta, address, 16, warp, "ldmatrix")
        matrix = np.ascontiguousarray(octets).view(np.uint16).reshape(-1, ROWS, ROWS)
        low, high = (
            matrix[:, row, column].astype(np.uint32)
            for row, column in ((low_row, low_column), (high_row, high_column))
        )
        ctas.write(register, (low | (high << np.uint32(16))).ravel(), None)


@instruction("stmatrix")
def store_matrices(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    if mask is not None or not i.has("m8n8") or not i.has("b16"):
        raise PtxError(f"unknown instruction: {i.text}")
    (low_row, low_column), (high_row, high_column) = _places(i)
    for number, register in enumerate(i.registers(1)):
        bits = ctas.full(register, np.uint32).reshape(-1, WARP)
        matrix = np.zeros((len(bits), ROWS, ROWS), np.uint16)
        matrix[:, low_row, low_column] = bits & np.uint32(0xFFFF)
        matrix[:, high_row, high_column] = bits >> np.uint32(16)
        cta, address, warp = _rows(ctas, i, 0, number)
        octets = matrix.reshape(-1, ROWS).view(np.uint8)
        ctas.shared.store(cta, address, octets, warp, "stmatrix")
