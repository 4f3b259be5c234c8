"""Conversions, moves between registers of other sizes, and exchange within a warp."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptx.machine import WARP, Ctas, instruction
from ptx.text import Instruction, Pack, PtxError
from ptx.values import BITS, HALVES, TYPES, Array, decode, encode, unsigned

ROUNDINGS: dict[str, Any] = {
    "rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil,
}  # fmt: skip


@instruction("cvt")
def convert(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    target, source = i.parts[-2:]
    if target.endswith("x2"):
        kind = target.removesuffix("x2")
        high, low = (
            encode(ctas.full(operand, np.float32), kind).astype(np.uint32)
            for operand in i.operands[1:3]
        )
        ctas.write(i.operands[0], (high << np.uint32(16)) | low, mask)
        return
    if source in HALVES:
        values = decode(ctas.full(i.operands[1], np.uint16), source)
    else:
        values = ctas.full(i.operands[1], TYPES[source])
    ctas.write(i.operands[0], converted(i, values, target), mask)


def converted(i: Instruction, values: Array, target: str) -> Array:
    if target in HALVES or target == "tf32":
        return encode(values.astype(np.float32), target)
    kind = TYPES[target]
    rounding = next((ROUNDINGS[part] for part in i.parts if part in ROUNDINGS), None)
    if rounding is not None:
        values = rounding(values)
    if values.dtype.kind == "f" and np.dtype(kind).kind != "f":
        if rounding is None:
            raise PtxError(f"a conversion without its rounding: {i.text}")
        span = np.iinfo(kind)
        values = np.nan_to_num(values.astype(np.float64), nan=0).clip(span.min, span.max)
    return values.astype(kind)


@instruction("mov")
def move(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    """A register's bits, those of several registers one after another, or the reverse."""
    target, source = i.operands
    kind = unsigned(TYPES[i.parts[-1]])
    if isinstance(target, Pack):
        part = BITS[8 * np.dtype(kind).itemsize // len(target.items)]
        whole = np.ascontiguousarray(ctas.full(source, kind))
        for register, bits in zip(target.items, whole.view(part).reshape(ctas.size, -1).T):
            ctas.write(register, bits, mask)
    elif isinstance(source, Pack):
        part = BITS[8 * np.dtype(kind).itemsize // len(source.items)]
        parts = np.stack([ctas.full(item, part) for item in source.items], 1)
        ctas.write(target, np.ascontiguousarray(parts).view(kind)[:, 0], mask)
    else:
        ctas.write(target, ctas.read(source, kind), mask)


@instruction("shfl")
def shuffle(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    """Another lane's value; one's own where there is no such lane."""
    values = ctas.full(i.operands[1], np.uint32).reshape(-1, WARP)
    by = ctas.full(i.operands[2], np.uint32).reshape(-1, WARP).astype(np.int64)
    lane = np.arange(WARP)
    lanes = {"idx": by % WARP, "bfly": lane ^ by, "up": lane - by, "down": lane + by}
    source = lanes[i.parts[2]]
    source = np.where((source >= 0) & (source < WARP), source, lane)
    ctas.write(i.operands[0], np.take_along_axis(values, source, 1).ravel(), mask)
