"""CTAs that share a program counter: their registers, and what still runs beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from ptx.memory import Storages
from ptx.shared import BASE, SharedMemory
from ptx.text import Address, Immediate, Instruction, Operand, Program, PtxError, Register
from ptx.values import BITS, Array, family, unsigned

__all__ = ["WARP", "Ctas", "Handler", "Launch", "Unfinished", "handler_of", "instruction"]

WARP = 32
POISON = 0x7FC0DEAD7FC0DEAD
"""Of registers that were never written: NaN as a float."""


class Unfinished(Protocol):
    """What was asked for and has not happened yet."""

    def finish(self, ctas: Ctas) -> None: ...

    def take(self, threads: Array) -> Unfinished:
        """For some of the threads."""
        ...


@dataclass
class Queue:
    """Groups of `cp.async` or `wgmma`: the committed ones, and the one that is being filled."""

    groups: list[list[Unfinished]] = field(default_factory=list)
    open: list[Unfinished] = field(default_factory=list)
    committed: int = 0

    @property
    def group(self) -> int:
        """The number of the open group."""
        return self.committed + 1

    def commit(self) -> None:
        self.groups.append(self.open)
        self.open = []
        self.committed += 1

    def wait(self, most: int) -> list[Unfinished]:
        """What must be finished so that at most so many groups are in flight."""
        done = self.groups[: max(0, len(self.groups) - most)]
        self.groups = self.groups[len(done) :]
        return [each for group in done for each in group]

    @property
    def complete(self) -> int:
        """The number of the last group that is finished."""
        return self.committed - len(self.groups)

    def take(self, threads: Array) -> Queue:
        groups = [[each.take(threads) for each in group] for group in self.groups]
        return Queue(groups, [each.take(threads) for each in self.open], self.committed)


@dataclass(frozen=True)
class Launch:
    """What all CTAs of a launch have in common."""

    program: Program
    grid: tuple[int, int, int]
    parameters: dict[str, int]
    storages: Storages


class Ctas:
    """Threads in lockstep.

    Args:
        launch: what they run.
        places: `[CTAs, 3]`, theirs in the grid.
        shared: their memory.
    """

    def __init__(self, launch: Launch, places: Array, shared: SharedMemory) -> None:
        self.launch, self.places, self.shared = launch, places, shared
        self.number, self.threads = len(places), launch.program.threads
        self.size = self.number * self.threads
        self.registers: dict[str, Array] = {}
        self.copies, self.products = Queue(), Queue()
        self.kept: set[str] = set()  # registers of wgmma in flight
        self.counter = 0
        self.active: Array | None = None  # the threads at the counter, if others wait elsewhere
        self.parted: dict[int, Array] = {}  # those, by where
        thread = np.arange(self.threads)
        self.cta = np.repeat(np.arange(self.number), self.threads)
        self.warp = np.tile((thread // WARP).astype(np.int16), self.number)

    def take(self, chosen: Array) -> Ctas:
        """Some of the CTAs, to go on by themselves."""
        part = Ctas(self.launch, self.places[chosen], self.shared.take(chosen))
        threads = (chosen[:, None] * self.threads + np.arange(self.threads)).ravel()
        part.registers = {name: values[threads] for name, values in self.registers.items()}
        part.copies, part.products = self.copies.take(threads), self.products.take(threads)
        part.kept, part.counter = set(self.kept), self.counter
        return part

    def converge(self) -> None:
        """Threads that stand elsewhere: the lowest go on, and join those they come to."""
        lowest = min(self.parted)
        if self.counter < lowest:
            return
        assert self.active is not None
        self.part(self.counter, self.active)
        self.counter, self.active = lowest, self.parted.pop(lowest)
        if not self.parted:
            self.active = None

    def part(self, counter: int, threads: Array) -> None:
        """Threads that go on elsewhere."""
        self.parted[counter] = self.parted.get(counter, False) | threads

    def bits(self, name: str) -> Array:
        """A register's, a special register's, or those of the address of shared memory."""
        found = self.registers.get(name)
        if found is not None:
            if name in self.kept:
                raise PtxError(f"{name} is read while a wgmma in flight writes it")
            return found
        found = self._special(name)
        if found is None:
            width = self.launch.program.width(name)
            if width == 1:
                return np.zeros(self.size, bool)
            found = np.full(self.size, POISON & ((1 << width) - 1), BITS[width])
        return found

    def _special(self, name: str) -> Array | None:
        base, _, axis = name.rpartition(".")
        thread = np.arange(self.threads, dtype=np.uint32)
        if name == "%laneid":
            return np.tile(thread % np.uint32(WARP), self.number)
        if name == "global_smem":
            return np.full(self.size, BASE, np.uint64)
        if base not in ("%tid", "%ntid", "%ctaid", "%nctaid"):
            return None
        number = "xyz".index(axis)
        if base == "%ctaid":
            return np.repeat(self.places[:, number].astype(np.uint32), self.threads)
        if base == "%nctaid":
            return np.full(self.size, self.launch.grid[number], np.uint32)
        if base == "%tid":
            return np.tile(thread if number == 0 else thread * np.uint32(0), self.number)
        return np.full(self.size, self.threads if number == 0 else 1, np.uint32)

    def read(self, operand: Operand, kind: Any) -> Array:
        """An operand as numbers of a type; of a number in the text, an array without axes."""
        if isinstance(operand, Immediate):
            return _constant(operand.bits, np.dtype(kind))
        assert isinstance(operand, Register)
        bits = self.bits(operand.name)
        if bits.dtype == bool:
            return bits
        size = unsigned(kind)
        return (bits if bits.dtype == size else bits.astype(size)).view(kind)

    def full(self, operand: Operand, kind: Any) -> Array:
        """The same, one for each thread."""
        found = self.read(operand, kind)
        return found if found.ndim else np.full(self.size, found)

    def holds(self, operand: Operand) -> Array:
        """A predicate."""
        if isinstance(operand, Immediate):
            return np.full(self.size, operand.bits != 0)
        assert isinstance(operand, Register)
        return self.bits(operand.name).astype(bool, copy=False)

    def write(self, operand: Operand, values: Array, mask: Array | None) -> None:
        """Set a register where the mask holds."""
        assert isinstance(operand, Register)
        name = operand.name
        if name == "_":
            return
        if name in self.kept:
            raise PtxError(f"{name} is written while a wgmma in flight uses it")
        if values.ndim == 0:
            values = np.full(self.size, values)
        width = self.launch.program.width(name)
        if width > 1:
            if values.dtype.kind != "u":
                values = np.ascontiguousarray(values).view(unsigned(values.dtype))
            if values.dtype != BITS[width]:
                values = values.astype(BITS[width])
        if mask is not None:
            values = np.where(mask, values, self.bits(name))
        self.registers[name] = values

    def address(self, operand: Operand) -> Array:
        """Of each thread."""
        assert isinstance(operand, Address)
        base = self.bits(operand.base).astype(np.uint64)
        return base + np.uint64(operand.offset & (2**64 - 1)) if operand.offset else base


@lru_cache(maxsize=100_000)
def _constant(bits: int, kind: Any) -> Array:
    size = 8 * kind.itemsize
    return np.array(bits & ((1 << size) - 1), BITS[size]).view(kind)


Handler = Callable[[Ctas, Instruction, Array | None], None]
_HANDLERS: dict[tuple[str, str], Handler] = {}


def instruction(*names: str, of: str = "") -> Callable[[Handler], Handler]:
    """Register what executes instructions, those of one family of types or of any."""

    def register(handler: Handler) -> Handler:
        for name in names:
            _HANDLERS[name, of] = handler
        return handler

    return register


def handler_of(statement: Instruction) -> Handler:
    """What executes a statement."""
    name, kind = statement.parts[0], family(statement.parts[-1])
    found = _HANDLERS.get((name, kind)) or _HANDLERS.get((name, ""))
    if found is None:
        raise PtxError(f"unknown instruction: {statement.text}")
    return found
