"""Integers and their bits."""

from __future__ import annotations

import numpy as np

from ptx.machine import Ctas, instruction
from ptx.text import Instruction, PtxError
from ptx.values import TYPES, Array, unsigned

WIDER = {"s16": np.int32, "u16": np.uint32, "s32": np.int64, "u32": np.uint64}
SIMPLE = {
    "add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


@instruction(*SIMPLE, of="integer")
def simple(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    kind = TYPES[i.parts[-1]]
    a, b = (ctas.read(operand, kind) for operand in i.operands[1:])
    ctas.write(i.operands[0], SIMPLE[i.parts[0]](a, b), mask)


@instruction(*SIMPLE, of="pair")
def simple_pair(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    """On two numbers of 16 bits side by side."""
    kind = TYPES[i.parts[-1].removesuffix("x2")]
    a, b = (
        np.ascontiguousarray(ctas.full(operand, np.uint32)).view(kind) for operand in i.operands[1:]
    )
    ctas.write(i.operands[0], SIMPLE[i.parts[0]](a, b).view(np.uint32), mask)


@instruction("mul", "mad", of="integer")
def product(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    """The lower half, the upper half, or all of it; with a summand as wide as the result."""
    kind = TYPES[i.parts[-1]]
    wide = WIDER.get(i.parts[-1], kind)
    if i.has("hi") and wide is kind:
        raise PtxError(f"unknown instruction: {i.text}")
    inner = kind if i.has("lo") else wide
    a, b = (ctas.read(operand, kind).astype(inner) for operand in i.operands[1:3])
    found = a * b
    if i.has("hi"):
        found = (found >> wide(8 * np.dtype(kind).itemsize)).astype(kind)
    if i.parts[0] == "mad":
        found = found + ctas.read(i.operands[3], found.dtype)
    ctas.write(i.operands[0], found, mask)


@instruction("div", "rem", of="integer")
def quotient(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    """Rounded towards 0.  By 0 nothing is defined: all bits set, as on the hardware."""
    kind = TYPES[i.parts[-1]]
    a, b = (ctas.full(operand, kind) for operand in i.operands[1:])
    divisor = np.where(b == 0, kind(1), b)
    if np.dtype(kind).kind == "u":
        whole = a // divisor
    else:
        down = a // divisor
        whole = down + ((down < 0) & (down * divisor != a))
    none = np.invert(kind(0))
    if i.parts[0] == "div":
        found = np.where(b == 0, none, whole)
    else:
        found = np.where(b == 0, a, a - whole * divisor)
    ctas.write(i.operands[0], found.astype(kind), mask)


@instruction("shl", "shr", of="integer")
def shift(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    """By more than the bits there are: nothing is left but the sign."""
    kind = TYPES[i.parts[-1]]
    a, by = ctas.full(i.operands[1], kind), ctas.full(i.operands[2], np.uint32)
    bits = 8 * np.dtype(kind).itemsize
    signed = np.dtype(kind).kind == "i"
    step = np.minimum(by, bits - 1).astype(kind)
    found = a << step if i.parts[0] == "shl" else a >> step
    if i.parts[0] == "shl" or not signed:
        found = np.where(by >= bits, kind(0), found)
    ctas.write(i.operands[0], found, mask)


@instruction("not", "neg", "abs", of="integer")
def unary(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    a = ctas.read(i.operands[1], TYPES[i.parts[-1]])
    found = {"not": np.invert, "neg": np.negative, "abs": np.abs}[i.parts[0]](a)
    ctas.write(i.operands[0], found, mask)


@instruction("bfe")
def extract(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    """A field of bits, with its sign if the type has one."""
    kind = TYPES[i.parts[-1]]
    start, length = i.number(2), i.number(3)
    bits = 8 * np.dtype(kind).itemsize
    left = bits - start - length
    if length == 0 or left < 0:
        raise PtxError(f"no field of bits: {i.text}")
    a = ctas.read(i.operands[1], kind)
    ctas.write(i.operands[0], (a << kind(left)) >> kind(bits - length), mask)


@instruction("bfi")
def insert(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    """The second operand with the lowest bits of the first in a field of it."""
    kind = unsigned(TYPES[i.parts[-1]])
    start, length = i.number(3), i.number(4)
    field = kind(((1 << length) - 1) << start)
    a, b = (ctas.read(operand, kind) for operand in i.operands[1:3])
    ctas.write(i.operands[0], (b & ~field) | ((a << kind(start)) & field), mask)


@instruction("prmt")
def permute(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    """Octets of two registers, chosen by four digits; from 8 on, the octet's sign instead."""
    a, b, choice = (ctas.full(operand, np.uint32) for operand in i.operands[1:4])
    octets = [(x >> np.uint32(8 * n)) & np.uint32(255) for x in (a, b) for n in range(4)]
    table, found = np.stack(octets), np.zeros(ctas.size, np.uint32)
    for n in range(4):
        digit = (choice >> np.uint32(4 * n)) & np.uint32(15)
        octet = np.take_along_axis(table, (digit & 7).astype(np.int64)[None], 0)[0]
        sign = np.where(octet & np.uint32(128), np.uint32(255), np.uint32(0))
        found |= np.where(digit & np.uint32(8), sign, octet) << np.uint32(8 * n)
    ctas.write(i.operands[0], found, mask)
