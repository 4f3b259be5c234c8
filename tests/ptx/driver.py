"""A driver for Triton whose device executes PTX: an ordinary launch on CPU tensors runs there."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from ptx.execution import execute
from ptx.memory import Storages
from ptx.text import Program, PtxError, read

__all__ = ["Binary", "PtxDriver", "install"]

SHARED = {80: 166_912, 90: 232_448}
"""Bytes of shared memory a CTA may use, by compute capability."""

Edit = Callable[[str], str]


@dataclass
class Faults:
    """What is done to a kernel before it runs: to its text, to the size of its shared memory."""

    text: Edit | None = None
    shared: Callable[[int], int] | None = None


@dataclass
class Statistics:
    """What ran: launches, programs and executed instructions by kernel."""

    launches: dict[str, list[int]] = field(default_factory=dict)

    def count(self, name: str, programs: int, steps: int) -> None:
        row = self.launches.setdefault(name, [0, 0, 0])
        row[:] = row[0] + 1, row[1] + programs, row[2] + steps


@dataclass(frozen=True)
class Binary:
    """A kernel as "loaded": Triton's handle of the function."""

    text: str
    shared: int


@lru_cache(maxsize=256)
def _program(text: str) -> Program:
    return read(text)


class Utilities:
    """What Triton asks of a device."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED[self.arch], "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(
        self, name: str, binary: bytes, shared: int, device: int
    ) -> tuple[None, Binary, int, int, int]:
        """Module, function, registers, spilled registers, most threads of a CTA."""
        return None, Binary(binary.decode(), shared), 0, 0, 1024


class Launcher:
    """Runs a loaded kernel on the arguments of a launch."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.name: str = metadata.name
        self.signature = tuple(source.signature.values())

    def __call__(
        self, x: int, y: int, z: int, stream: int, function: Binary, packed: object,
        metadata: object, enter: object, leave: object, *arguments: Any,
    ) -> None:  # fmt: skip
        active = triton.runtime.driver.active
        assert isinstance(active, PtxDriver)
        faults = active.faults
        program = _program(faults.text(function.text) if faults.text else function.text)
        shared = faults.shared(function.shared) if faults.shared else function.shared
        storages = Storages()
        values = [_bits(kind, value, storages) for kind, value in _flat(self.signature, arguments)]
        values += [0] * (len(program.parameters) - len(values))  # scratch that nobody asked for
        parameters = dict(zip(program.parameters, values, strict=True))
        steps = execute(program, (x, y, z), parameters, storages, shared)
        active.statistics.count(self.name, x * y * z, steps)


def _flat(kinds: Any, values: Any) -> Iterator[tuple[str, Any]]:
    """Run-time arguments with their types; tuples are taken apart."""
    for kind, value in zip(kinds, values, strict=True):
        if isinstance(kind, tuple):
            yield from _flat(kind, value)
        elif kind != "constexpr":
            yield kind, value


def _bits(kind: str, value: Any, storages: Storages) -> int:
    """An argument as a parameter's bits; a tensor's storage becomes reachable."""
    if kind.startswith("*"):
        if value is None:
            return 0
        storages.add(value)
        return int(value.data_ptr())
    if kind in ("fp32", "f32"):
        return int(struct.unpack("<I", struct.pack("<f", value))[0])
    if kind in ("fp64", "f64"):
        return int(struct.unpack("<Q", struct.pack("<d", value))[0])
    if kind[0] in "iu":
        return int(value)
    raise PtxError(f"no argument of type {kind} is known")


class PtxDriver:
    """The device: compiles for an architecture, executes what was compiled.

    Args:
        arch: compute capability: 80 or 90.
    """

    launcher_cls = Launcher

    def __init__(self, arch: int) -> None:
        self.arch, self.utils = arch, Utilities(arch)
        self.statistics, self.faults = Statistics(), Faults()

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def _stages(*arguments: Any) -> tuple[str, str] | None:
    """Triton's hook: its PTX stands in for the binary, so that ptxas does not run.

    Without arguments it is asked what such a binary's place in the cache depends on.
    """
    if not arguments:
        return "-ptx-executor", "'ptx-executor'"
    stages = arguments[1]
    stages["cubin"] = lambda text, metadata: text.encode()
    return None


def install(arch: int) -> PtxDriver:
    """Make such a device Triton's active one, for the rest of the process."""
    driver = PtxDriver(arch)
    triton.runtime.driver.set_active(driver)
    triton.knobs.runtime.add_stages_inspection_hook = _stages
    return driver
