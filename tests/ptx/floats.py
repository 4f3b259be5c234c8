"""Floating-point arithmetic, in float32 and float64 and, through float32, in shorter types.

A fused multiply-add of float32 is one of float64, rounded: it differs from the exact one by at most
one unit in the last place, in one of some 2**29 cases.  Approximations of the hardware (`ex2`,
`div.full`) are the library's better ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ptx.machine import Ctas, instruction
from ptx.text import Instruction
from ptx.values import TYPES, Array, decode, encode

BINARY: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
}  # fmt: skip
UNARY: dict[str, Callable[..., Array]] = {
    "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "ex2": np.exp2, "lg2": np.log2,
    "rcp": np.reciprocal, "tanh": np.tanh, "sin": np.sin, "cos": np.cos,
    "rsqrt": lambda a: np.reciprocal(np.sqrt(a)),
}  # fmt: skip
ARITHMETIC = (*BINARY, *UNARY, "min", "max", "fma", "copysign")


def computed(i: Instruction, values: list[Array]) -> Array:
    name = i.parts[0]
    if name in BINARY:
        found = BINARY[name](*values)
    elif name in UNARY:
        found = UNARY[name](*values)
    elif name in ("min", "max"):
        keeps_nan = {"min": np.minimum, "max": np.maximum}
        drops_nan = {"min": np.fmin, "max": np.fmax}
        found = (keeps_nan if i.has("NaN") else drops_nan)[name](*values)
    elif name == "copysign":
        found = np.copysign(values[1], values[0])
    else:
        a, b, c = (value.astype(np.float64) for value in values)
        found = (a * b + c).astype(values[0].dtype)
    return np.clip(found, 0, 1) if i.has("sat") else found


@instruction(*ARITHMETIC, of="float")
def arithmetic(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    kind = TYPES[i.parts[-1]]
    values = [ctas.read(operand, kind) for operand in i.operands[1:]]
    ctas.write(i.operands[0], computed(i, values), mask)


@instruction(*ARITHMETIC, of="half")
def half_arithmetic(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    """On one number of 16 bits, or on two side by side in a register."""
    two = i.parts[-1].endswith("x2")
    kind = i.parts[-1].removesuffix("x2")
    size = np.uint32 if two else np.uint16
    packed = [np.ascontiguousarray(ctas.full(operand, size)) for operand in i.operands[1:]]
    values = [decode(bits.view(np.uint16), kind) for bits in packed]
    found = np.ascontiguousarray(encode(computed(i, values), kind))
    ctas.write(i.operands[0], found.view(size), mask)
