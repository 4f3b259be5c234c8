"""Launches that compile for a target, are recorded, and do not run.

The launchers run on meta tensors under a driver that names a target but owns no device, so that
Triton specialises each argument just as it would at a launch, compiles, and stops there.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from benchmarks.compile_kernels.builds import TARGETS, Build

__all__ = ["Recorder", "recording"]


class Recorder:
    """Stands in for a device: names a target, keeps what is compiled, launches nothing."""

    def __init__(self, target: str) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = target
        self.number = list(TARGETS).index(target)
        self.gpu_target = GPUTarget(*TARGETS[target])
        self.case = ""
        self.builds: list[Build] = []
        self.logs: dict[str, str] = {}

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.gpu_target

    def add(self, function: Any, compiled: Any, options: dict[str, Any], log: str) -> None:
        """Keep one compilation."""
        tile = "x".join(str(options[key]) for key in ("BM", "BN", "BK", "B") if key in options)
        tile += f" w{options.get('num_warps', 4)} s{options.get('num_stages', '-')}"
        if compiled.hash not in self.logs or log:
            self.logs[compiled.hash] = log
        log = self.logs[compiled.hash]
        registers, spills = _resources(compiled.asm, log)
        self.builds.append(
            Build(
                case=self.case,
                kernel=function.fn.__name__,
                target=self.target,
                tile=tile,
                registers=registers,
                spills=spills,
                shared=compiled.metadata.shared,
                instruction=_instruction(compiled.asm),
                serialized="C7515" in log,
            )
        )


def _resources(asm: dict[str, Any], log: str) -> tuple[int | None, int | None]:
    if "amdgcn" in asm:
        registers = re.search(r"\.vgpr_count:\s+(\d+)", asm["amdgcn"])
        spills = re.search(r"\.vgpr_spill_count:\s+(\d+)", asm["amdgcn"])
    else:
        registers = re.search(r"Used (\d+) registers", log)
        spills = re.search(r"(\d+) bytes spill stores", log)
    return (
        int(registers[1]) if registers else None,
        int(spills[1]) if spills else None,
    )


def _instruction(asm: dict[str, Any]) -> str:
    """The tensor-core instruction of a kernel, or "-"."""
    text = asm.get("amdgcn") or asm["ptx"]
    found = re.search(r"(wgmma\.mma_async|mma\.sync|v_mfma_\w+)[\w.]*", text)
    if found is None:
        return "-"
    shape = re.search(r"m\d+n\d+k\d+[\w.]*", found[0])
    return found[1] if shape is None else f"{found[1]} {shape[0]}"


@contextlib.contextmanager
def recording(target: str) -> Iterator[Recorder]:
    """Within the block, launches compile for `target` and do not run."""
    from triton import knobs
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    recorder = Recorder(target)
    original = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            compiled = original(self, *args, grid=grid, warmup=True, **kwargs)
        recorder.add(self, compiled, kwargs, log.getvalue())

    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        knobs.nvidia.dump_ptxas_log = True
        driver.set_active(recorder)
        JITFunction.run = compile_only
        try:
            yield recorder
        finally:
            JITFunction.run = original
            os.environ.pop("TRITON_CACHE_DIR")
