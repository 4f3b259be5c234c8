"""Loads and stores: parameters, global memory, shared memory."""

from __future__ import annotations

import numpy as np

from ptx.machine import Ctas, instruction
from ptx.text import Address, Instruction, PtxError
from ptx.values import BITS, TYPES, Array, unsigned

SPACES = ("param", "global", "shared")


def space_of(i: Instruction) -> str:
    for space in SPACES:
        if i.has(space):
            return space
    raise PtxError(f"no such memory: {i.text}")


def chosen_of(ctas: Ctas, mask: Array | None) -> Array:
    """The threads that take part."""
    return np.arange(ctas.size) if mask is None else np.nonzero(mask)[0]


@instruction("ld")
def load(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    kind, space = unsigned(TYPES[i.parts[-1]]), space_of(i)
    if space == "param":
        place = i.operands[1]
        assert isinstance(place, Address)
        bits = ctas.launch.parameters[place.base] & int(np.iinfo(kind).max)
        ctas.write(i.operands[0], np.full(ctas.size, bits, kind), mask)
        return
    targets, chosen = i.registers(0), chosen_of(ctas, mask)
    if not len(chosen):
        return
    size = np.dtype(kind).itemsize * len(targets)
    address = ctas.address(i.operands[1])[chosen]
    if space == "global":
        octets = ctas.launch.storages.load(address, size)
    else:
        places = ctas.cta[chosen], address, size, ctas.warp[chosen]
        octets = ctas.shared.load(*places, "ld.shared")
    values = np.zeros((ctas.size, len(targets)), kind)
    values[chosen] = np.ascontiguousarray(octets).view(kind)
    for target, column in zip(targets, values.T):
        ctas.write(target, column, mask)


@instruction("st")
def store(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    kind, space = unsigned(TYPES[i.parts[-1]]), space_of(i)
    chosen = chosen_of(ctas, mask)
    if not len(chosen):
        return
    columns = [ctas.full(source, kind)[chosen] for source in i.registers(1)]
    octets = np.ascontiguousarray(np.stack(columns, 1)).view(BITS[8])
    address = ctas.address(i.operands[0])[chosen]
    if space == "global":
        ctas.launch.storages.store(address, octets)
    elif space == "shared":
        ctas.shared.store(ctas.cta[chosen], address, octets, ctas.warp[chosen], "st.shared")
    else:
        raise PtxError(f"no store into that memory: {i.text}")
