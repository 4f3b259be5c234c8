"""A launch: CTAs in lockstep, parted where their branches differ."""

from __future__ import annotations

import numpy as np

from ptx import access, conversion, copies, floats, integers, matrix, predicates, wgmma
from ptx.machine import Ctas, Handler, Launch, handler_of, instruction
from ptx.memory import Storages
from ptx.shared import SharedMemory
from ptx.text import Immediate, Instruction, Program, PtxError, Register
from ptx.values import TYPES, Array

__all__ = ["FAMILIES", "execute"]

FAMILIES = (access, conversion, copies, floats, integers, matrix, predicates, wgmma)
"""What defines instructions; importing it is enough."""
TOGETHER = 64
"""CTAs that run in lockstep."""
CONTROL = ("bra", "ret", "exit")


def execute(
    program: Program,
    grid: tuple[int, int, int],
    parameters: dict[str, int],
    storages: Storages,
    shared: int,
) -> int:
    """Run a kernel on memory as it is, and count the instructions that CTAs in lockstep ran.

    Raises:
        PtxError: it did what no kernel may do, or an instruction is not known.
    """
    launch, word = Launch(program, grid, parameters, storages), _narrowest(program)
    axes = np.meshgrid(*(np.arange(size) for size in grid[::-1]), indexing="ij")
    places = np.stack([axis.ravel() for axis in axes[::-1]], 1)
    steps, padded = 0, -(-shared // 16) * 16
    for first in range(0, len(places), TOGETHER):
        some = places[first : first + TOGETHER]
        waiting = [Ctas(launch, some, SharedMemory(len(some), padded, word))]
        while waiting:
            steps += _run(waiting.pop(), waiting)
    return steps


def _narrowest(program: Program) -> int:
    """Octets of the narrowest access to shared memory, at most 4."""
    sizes = [
        np.dtype(TYPES[i.parts[-1]]).itemsize
        for i in program.code
        if i.parts[0] in ("ld", "st") and i.has("shared")
    ]
    return min([4, *sizes])


def _run(ctas: Ctas, waiting: list[Ctas]) -> int:
    """Run CTAs until they return or part; those that branch elsewhere then wait."""
    program = ctas.launch.program
    handlers = program.handlers
    if not handlers:
        handlers += [None if i.parts[0] in CONTROL else handler_of(i) for i in program.code]
    steps = 0
    with np.errstate(all="ignore"):
        while ctas.counter < len(program.code):
            if ctas.parted:
                ctas.converge()
            i, handler = program.code[ctas.counter], handlers[ctas.counter]
            ctas.counter += 1
            steps += 1
            mask = ctas.active
            if i.guard:
                guard = ctas.bits(i.guard)
                guard = ~guard if i.negated else guard
                mask = guard if mask is None else guard & mask
            if handler is not None:
                _step(ctas, i, handler, mask)
            elif i.parts[0] != "bra":
                if mask is not None:
                    raise PtxError(f"some threads return alone: {i.text}")
                break
            elif not _branch(ctas, i, mask, waiting):
                break
    return steps


def _step(ctas: Ctas, i: Instruction, handler: Handler, mask: Array | None) -> None:
    try:
        handler(ctas, i, mask)
    except PtxError as error:
        if i.text[:60] in str(error):
            raise
        raise PtxError(f"{error}, in: {i.text[:120]}") from error


def _branch(ctas: Ctas, i: Instruction, mask: Array | None, waiting: list[Ctas]) -> bool:
    """Whether the CTAs go on together."""
    label = i.operands[-1]
    assert isinstance(label, Register)
    target = ctas.launch.program.labels[label.name]
    if mask is None or mask is ctas.active:
        ctas.counter = target
        return True
    threads = mask.reshape(ctas.number, ctas.threads)
    taken = threads.all(1)
    if ctas.active is not None or (taken != threads.any(1)).any():
        here = ~mask if ctas.active is None else ctas.active & ~mask
        ctas.part(target, mask)
        ctas.part(ctas.counter, here)
        ctas.counter = min(ctas.counter, target)
        ctas.active = ctas.parted.pop(ctas.counter)
        if not ctas.active.any() and ctas.parted:  # nobody stays, or nobody leaves
            ctas.counter = min(ctas.parted)
            ctas.active = ctas.parted.pop(ctas.counter)
        if not ctas.parted:
            ctas.active = None
        return True
    if taken.all():
        ctas.counter = target
    elif taken.any():
        elsewhere = ctas.take(np.nonzero(taken)[0])
        elsewhere.counter = target
        waiting += [elsewhere, ctas.take(np.nonzero(~taken)[0])]
        return False
    return True


@instruction("bar", "barrier")
def barrier(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    if mask is not None or (i.operands and i.operands[0] != Immediate(0)):
        raise PtxError(f"not all threads of a CTA come to this barrier: {i.text}")
    if not i.has("warp"):
        ctas.shared.barrier()


@instruction("fence", "membar")
def fence(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    if i.has("proxy") and mask is None:
        ctas.shared.fence()


@instruction("griddepcontrol", "nanosleep")
def nothing(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    """What only takes time."""
