"""Comparisons, choices and the algebra of predicates."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.machine import Ctas, instruction
from ptx.text import Instruction, PtxError
from ptx.values import TYPES, Array, decode, unsigned

ORDERED: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
    "gt": operator.gt, "ge": operator.ge, "lo": operator.lt, "ls": operator.le,
    "hi": operator.gt, "hs": operator.ge,
}  # fmt: skip
LOGIC: dict[str, Callable[[Any, Any], Any]] = {
    "and": operator.and_, "or": operator.or_, "xor": operator.xor,
}  # fmt: skip


def compared(name: str, a: Array, b: Array) -> Array:
    """NaN compares as false, but in the forms whose names end in u."""
    floating = a.dtype.kind == "f"
    nan = np.isnan(a) | np.isnan(b) if floating else np.zeros((), bool)
    if name in ("num", "nan"):
        return nan if name == "nan" else ~nan
    if name in ORDERED:
        found = ORDERED[name](a, b)
        return found & ~nan if name == "ne" else found
    if name.endswith("u") and name[:-1] in ORDERED and floating:
        return ORDERED[name[:-1]](a, b) | nan
    raise PtxError(f"unknown comparison {name}")


@instruction("setp")
def compare(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    kind = i.parts[-1]
    if kind in ("bf16", "f16"):
        a, b = (decode(ctas.full(operand, np.uint16), kind) for operand in i.operands[1:3])
    else:
        a, b = (ctas.read(operand, TYPES[kind]) for operand in i.operands[1:3])
    found = compared(i.parts[1], a, b)
    if i.parts[2] in LOGIC:
        found = LOGIC[i.parts[2]](found, ctas.holds(i.operands[3]))
    ctas.write(i.operands[0], np.asarray(found), mask)


@instruction("selp")
def choose(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    kind = unsigned(TYPES[i.parts[-1]])
    a, b = (ctas.read(operand, kind) for operand in i.operands[1:3])
    ctas.write(i.operands[0], np.where(ctas.holds(i.operands[3]), a, b), mask)


@instruction(*LOGIC, "not", "mov", of="predicate")
def logic(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    values = [ctas.holds(operand) for operand in i.operands[1:]]
    if i.parts[0] in LOGIC:
        found = LOGIC[i.parts[0]](*values)
    else:
        found = ~values[0] if i.parts[0] == "not" else values[0]
    ctas.write(i.operands[0], found, mask)
