"""PTX text as data: a kernel's parameters, registers, instructions and labels.

Read is what Triton emits: one entry a module, one statement a line or several in the braces of an
inline assembly, whose registers have names of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Address",
    "Immediate",
    "Instruction",
    "Operand",
    "Pack",
    "Program",
    "PtxError",
    "Register",
    "read",
]


class PtxError(RuntimeError):
    """A kernel did what a GPU would not let it do, or what may differ from run to run there."""


@dataclass(frozen=True)
class Register:
    """A register, a special register, a parameter or a label, by its name."""

    name: str


@dataclass(frozen=True)
class Immediate:
    """The bits of a number that stands in the text."""

    bits: int


@dataclass(frozen=True)
class Address:
    """Bytes behind what a register or a parameter holds."""

    base: str
    offset: int


@dataclass(frozen=True)
class Pack:
    """Several operands in braces."""

    items: tuple[Operand, ...]


Operand = Register | Immediate | Address | Pack


@dataclass(frozen=True)
class Instruction:
    """A statement.

    Attributes:
        parts: of its opcode, which dots separate.
        operands: in the order of the text, the destination first.
        guard: the predicate register it depends on, "" if none.
        negated: whether it runs where the guard does not hold.
        text: as it was written.
    """

    parts: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: str
    negated: bool
    text: str

    def has(self, part: str) -> bool:
        return part in self.parts

    def registers(self, index: int) -> tuple[Operand, ...]:
        """Those of an operand that is one of them or several."""
        operand = self.operands[index]
        return operand.items if isinstance(operand, Pack) else (operand,)

    def number(self, index: int) -> int:
        """An operand that must stand in the text."""
        operand = self.operands[index]
        if not isinstance(operand, Immediate):
            raise PtxError(f"operand {index} is no number: {self.text}")
        return operand.bits


@dataclass(frozen=True)
class Program:
    """A kernel.

    Attributes:
        parameters: their names, in order.
        threads: of a CTA.
        widths: bits of registers by their names, or the start of them; 1 of predicates.
        labels: the index of the instruction that follows each.
        handlers: what executes each instruction, once that was looked up.
    """

    name: str
    parameters: tuple[str, ...]
    threads: int
    widths: dict[str, int]
    code: tuple[Instruction, ...]
    labels: dict[str, int]
    handlers: list[Any] = field(default_factory=list)

    def width(self, register: str) -> int:
        """Bits of a register, 1 of a predicate."""
        found = self.widths.get(register)
        if found is None:
            found = self.widths.get(register.rstrip("0123456789"))
            if found is None:
                raise PtxError(f"no register or symbol {register} is declared")
            self.widths[register] = found
        return found


ENTRY = re.compile(r"\.visible\s+\.entry\s+(\w+)\s*\((.*?)\)(.*?)\n\{(.*)\n\}", re.DOTALL)
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
LABEL = re.compile(r"([$\w]+):\s*")
GUARD = re.compile(r"@(!?)(%?\w+)\s+")
DECLARED = re.compile(r"\.reg\s+\.(pred|[bsuf]\d+)\s+(.*)", re.DOTALL)
ADDRESS = re.compile(r"([%$\w.]+)\s*(?:\+\s*(-?\w+))?")
FLOAT = re.compile(r"0([fFdD])([0-9A-Fa-f]{8,16})")
INTEGER = re.compile(r"(-?)(0x[0-9a-fA-F]+|\d+)U?")


def read(ptx: str) -> Program:
    """The kernel of a module."""
    entry = ENTRY.search(COMMENT.sub("", ptx))
    if entry is None:
        raise PtxError("no entry in the PTX text")
    name, parameters, attributes, body = entry.groups()
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", attributes)
    if threads is None:
        raise PtxError(f"{name}: the text does not say how many threads a CTA has")
    widths: dict[str, int] = {}
    labels: dict[str, int] = {}
    code: list[Instruction] = []
    for statement in re.split(r";|(?<=:)\n", _statements(body)):
        text = " ".join(statement.split())
        while (label := LABEL.match(text)) is not None:
            labels[label[1]] = len(code)
            text = text[label.end() :]
        declared = DECLARED.match(text)
        if declared is not None:
            bits = 1 if declared[1] == "pred" else int(declared[1][1:])
            for each in declared[2].split(","):
                widths[each.strip().partition("<")[0]] = bits
        elif text:
            code.append(_instruction(text))
    names = tuple(line.split()[-1] for line in parameters.split(",") if line.strip())
    return Program(name, names, int(threads[1]), widths, tuple(code), labels)


def _statements(body: str) -> str:
    """The body without directives that end at the line, and without the braces of scopes."""
    lines = [line.strip() for line in body.split("\n")]
    kept = [line for line in lines if not line.startswith((".loc", ".file", ".pragma"))]
    return "\n".join(re.sub(r"^[{}]\s*|(?<=;)\s*}$", "", line) for line in kept if line)


def _instruction(text: str) -> Instruction:
    guard = GUARD.match(text)
    rest = text if guard is None else text[guard.end() :]
    opcode, _, operands = rest.partition(" ")
    return Instruction(
        tuple(re.split(r"\.|::", opcode)),
        tuple(_operand(part) for part in _parted(operands)),
        "" if guard is None else guard[2],
        guard is not None and guard[1] == "!",
        text,
    )


def _parted(text: str) -> list[str]:
    """The parts between commas that are in no brackets."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "{[(") - (letter in "}])")
        if letter == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    return [*parts, text[start:].strip()] if text.strip() else []


def _operand(text: str) -> Operand:
    if text.startswith("{"):
        return Pack(tuple(_operand(part) for part in _parted(text[1:-1])))
    if text.startswith("["):
        place = ADDRESS.fullmatch(text[1:-1].strip())
        if place is None:
            raise PtxError(f"no address: {text}")
        return Address(place[1], int(place[2], 0) if place[2] else 0)
    if (number := FLOAT.fullmatch(text)) is not None:
        return Immediate(int(number[2], 16))
    if (number := INTEGER.fullmatch(text)) is not None:
        return Immediate(int(number[1] + number[2], 0))
    return Register(text.partition("|")[0])
