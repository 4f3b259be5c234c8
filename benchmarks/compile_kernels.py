"""Compile every kernel at its production tiles without a GPU, and write what the compiler used.

The launchers run on meta tensors under a driver that names a target but owns no device, so that
Triton specialises each argument just as it would at a launch, compiles, and stops there.

    python -m benchmarks.compile_kernels            # writes benchmarks/records/kernels-triton-*.md
    python -m benchmarks.compile_kernels --check    # writes nothing
    python -m benchmarks.compile_kernels --part 0/4 --save a.json    # a share of the cases; then
    python -m benchmarks.compile_kernels --join a.json b.json …      # the record of all shares

The exit status is 1 if a kernel does not compile, spills, serialises its tensor-core products
(ptxas advisory C7515) or needs more shared memory than a program may have.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.compile_recurrent import cases as recurrent_cases
from relprop import rules
from relprop.maps import Conv, Dense, LinearMap

RECORDS = Path(__file__).resolve().parent / "records"
TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}
SHARED_LIMITS = {"sm_80": 166_912, "sm_90": 232_448, "gfx942": 65_536}
"""Bytes of shared memory a program may have."""


@dataclass(frozen=True)
class Case:
    """A layer to compile: every kernel that its three passes launch."""

    name: str
    map: LinearMap
    rule: rules.LinearRule
    a: tuple[int, ...]
    w: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    nonnegative: bool = True
    precision: str = "highest"
    channels_last: bool = True


@dataclass(frozen=True)
class Build:
    """What one compilation reports; None where the compiler did not say."""

    case: str
    kernel: str
    target: str
    tile: str
    registers: int | None
    spills: int | None
    shared: int
    instruction: str
    serialized: bool
    error: str = ""

    @property
    def faults(self) -> list[str]:
        """Why this build must not ship."""
        if self.error:
            return [self.error]
        faults = []
        if self.spills is None:
            faults.append("no report of spills")
        elif self.spills:
            faults.append(f"spills {self.spills} bytes")
        if self.serialized:
            faults.append("serialized tensor-core products (C7515)")
        if self.shared > SHARED_LIMITS[self.target]:
            faults.append(f"{self.shared} bytes of shared memory")
        return faults


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


def cases() -> list[Case]:
    """Each kernel form at a production shape: VGG-16's and ResNet-50's layers, batch 64."""
    conv = Conv((1, 1), ((1, 1), (1, 1)), (1, 1))
    strided = Conv((2, 2), ((1, 1), (1, 1)), (1, 1))
    depthwise = Conv((1, 1), ((1, 1), (1, 1)), (1, 1), groups=96)
    grouped = Conv((1, 1), ((1, 1), (1, 1)), (1, 1), groups=32)
    transposed = Conv((2, 2), ((1, 1), (1, 1)), (1, 1), transposed=True)
    first = Conv((1, 1), ((1, 1), (1, 1)), (1, 1))
    volume = Conv((1, 1, 1), ((1, 1),) * 3, (1, 1, 1))
    dense_a, dense_w = (64, 4096), (4096, 4096)
    token_a, token_w = (64, 197, 768), (3072, 768)
    conv_a, conv_w = (64, 256, 28, 28), (256, 256, 3, 3)
    main: list[rules.LinearRule] = [
        rules.Epsilon(),
        rules.ZPlus(),
        rules.AlphaBeta(),
        rules.Gamma(),
        rules.WSquare(),
    ]
    found = [Case(f"dense {_label(rule)}", Dense(), rule, dense_a, dense_w) for rule in main] + [
        Case(f"conv {_label(rule)}", conv, rule, conv_a, conv_w) for rule in main
    ]
    found += [Case(f"tokens {_label(rule)}", Dense(), rule, token_a, token_w) for rule in main[:4]]
    found += [
        Case("tokens signed AlphaBeta", Dense(), main[2], token_a, token_w, nonnegative=False),
        Case("tokens signed Gamma", Dense(), main[3], token_a, token_w, nonnegative=False),
        Case("dense signed AlphaBeta", Dense(), main[2], dense_a, dense_w, nonnegative=False),
        Case("conv signed AlphaBeta", conv, main[2], conv_a, conv_w, nonnegative=False),
        Case("dense signed Gamma", Dense(), main[3], dense_a, dense_w, nonnegative=False),
        Case("conv signed Gamma", conv, main[3], conv_a, conv_w, nonnegative=False),
        Case("pixels ZBox", first, rules.ZBox(-2.1, 2.6), (64, 3, 224, 224), (64, 3, 3, 3)),
        Case("conv stride 2 AlphaBeta", strided, main[2], conv_a, conv_w),
        Case("grouped ZPlus", grouped, main[1], (64, 512, 28, 28), (512, 16, 3, 3)),
        Case("depthwise ZPlus", depthwise, main[1], (64, 96, 28, 28), (96, 1, 3, 3)),
        Case("transposed ZPlus", transposed, main[1], (64, 256, 14, 14), (256, 128, 4, 4)),
        Case("conv 3-d ZPlus", volume, main[1], (8, 64, 16, 28, 28), (64, 64, 3, 3, 3)),
        Case("conv NCHW ZPlus", conv, main[1], conv_a, conv_w, channels_last=False),
        Case(
            "joint", Dense(), rules.Joint(channels=(0, 1024)), dense_a, dense_w, nonnegative=False
        ),
    ]
    for precision in ("highest", "high", "medium"):
        for rule in (rules.Epsilon(), rules.AlphaBeta()):
            name = f"float32 {precision} {_label(rule)}"
            extra: dict[str, Any] = {"dtype": torch.float32, "precision": precision}
            found.append(Case(f"dense {name}", Dense(), rule, dense_a, dense_w, **extra))
            found.append(Case(f"conv {name}", conv, rule, conv_a, conv_w, **extra))
    found.append(
        Case("dense float16 AlphaBeta", Dense(), main[2], dense_a, dense_w, dtype=torch.float16)
    )
    return found


RULES: list[rules.LinearRule] = [
    rules.Epsilon(),
    rules.ZPlus(),
    rules.AlphaBeta(),
    rules.Gamma(),
]
"""Those of the cases that join steps."""


def _label(rule: rules.LinearRule) -> str:
    return type(rule).__name__


def build(case: Case) -> None:
    """Run the three passes of a case on meta tensors."""
    from relprop import kernels

    a = torch.empty(case.a, dtype=case.dtype, device="meta")
    w = torch.empty(case.w, dtype=case.dtype, device="meta")
    if case.channels_last and len(case.a) in (4, 5):
        layout = torch.channels_last if len(case.a) == 4 else torch.channels_last_3d
        a, w = a.to(memory_format=layout), w.to(memory_format=layout)
    conv = case.map
    wide = isinstance(conv, Conv) and conv.transposed
    b = torch.empty(case.w[1] if wide else case.w[0], device="meta", dtype=case.dtype)
    saved = kernels.contraction(
        conv, case.rule, a, w, b, nonnegative=case.nonnegative, precision=case.precision
    )
    assert saved.y is not None
    s = kernels.quotient(saved, torch.empty((1, *saved.y.shape), device="meta"))
    kernels.adjoint(saved, s, precision=case.precision)


def others() -> list[tuple[str, Callable[[], object]]]:
    """Kernels outside the linear layers, and what joins two of them."""
    from relprop import kernels

    a = torch.empty((64, 64, 112, 112), device="meta").to(memory_format=torch.channels_last)
    r = torch.empty((1, *a.shape), device="meta")
    small = torch.empty((1, 64, 64, 56, 56), device="meta")
    won = small[0].int().to(memory_format=torch.channels_last)
    two, one, no = [2, 2], [1, 1], [0, 0]
    conv = Conv((1, 1), ((1, 1), (1, 1)), (1, 1))
    w = torch.empty((64, 64, 3, 3), device="meta")

    def stack(rule: rules.LinearRule, layer: LinearMap, x: Tensor, w: Tensor, how: str) -> Any:
        """Two layers, the input of the upper one the float32 output of the lower."""
        b = torch.empty(len(w), device="meta", dtype=w.dtype)
        options: dict[str, Any] = {"nonnegative": True, "precision": how}
        below = kernels.contraction(layer, rule, x, w, b, activation="relu", **options)
        assert below.y is not None
        above = kernels.contraction(layer, rule, below.y, w, b, **options)
        assert above.y is not None
        return (
            below,
            above,
            kernels.quotient(above, torch.empty((1, *above.y.shape), device="meta")),
        )

    def fused(rule: rules.LinearRule) -> None:
        """Adjoints of layers, pooling and sums that take the quotient of the layer below."""
        wide = torch.empty((12608, 768), device="meta"), torch.empty((768, 768), device="meta")
        images = a, w.to(memory_format=torch.channels_last)
        for how in ("highest", "high", "medium"):
            for layer, (x, v) in ((Dense(), wide), (conv, images)):
                below, above, s = stack(rule, layer, x, v, how)
                lower = kernels.below(below, x.shape)
                kernels.adjoint(above, s, lower=lower, precision=how)
        kernels.max_pool_relevance(small, won, a.shape, two, two, no, one, lower=lower)
        kernels.average_pool_relevance(small, small[0], a, 1e-6, two, two, no, lower=lower)
        kernels.residual_split(a, a, r, 1e-6, lower=(lower, lower))

    def library(rule: rules.LinearRule) -> None:
        """What follows the library's products."""
        x, v = a.to(torch.float32), w.to(torch.float32)
        options: dict[str, Any] = {"nonnegative": True, "tile": "library"}
        below = kernels.contraction(conv, rule, x, v, None, activation="relu", **options)
        assert below.y is not None
        above = kernels.contraction(conv, rule, below.y, v, None, **options)
        assert above.y is not None
        s = kernels.quotient(above, torch.empty((1, *above.y.shape), device="meta"))
        kernels.adjoint(above, s, lower=kernels.below(below, a.shape), tile="library")

    return [
        ("residual split", lambda: kernels.residual_split(a, a, r, 1e-6)),
        ("residual sum", lambda: kernels.residual_sum(a, a, (1.0, 1.0), "relu")),
        ("resampling", lambda: kernels.linear_resample(a, [224, 224])),
        (
            "resampling",
            lambda: kernels.linear_resample_relevance(
                small[..., :28, :28], small[0, ..., :28, :28], a[..., :14, :14], 1e-6
            ),
        ),
        ("max pool", lambda: kernels.max_pool(a, two, two, no, one)),
        (
            "max pool",
            lambda: kernels.max_pool_relevance(small, won, a.shape, two, two, no, one),
        ),
        ("adaptive max pool", lambda: kernels.adaptive_max_pool(a, [7, 7])),
        (
            "adaptive max pool",
            lambda: kernels.adaptive_max_pool_relevance(
                small[..., :7, :7], won[..., :7, :7], a.shape
            ),
        ),
        ("average pool", lambda: kernels.average_pool(a, two, two, no)),
        (
            "average pool",
            lambda: kernels.average_pool_relevance(small, small[0], a, 1e-6, two, two, no),
        ),
        ("adaptive pool", lambda: kernels.adaptive_average_pool(a, [7, 7])),
        (
            "adaptive pool",
            lambda: kernels.adaptive_average_pool_relevance(
                small[..., :7, :7], small[0, ..., :7, :7], a, 1e-6
            ),
        ),
        *((f"library {_label(rule)}", lambda rule=rule: library(rule)) for rule in RULES),
        *((f"fused quotient {_label(rule)}", lambda rule=rule: fused(rule)) for rule in RULES),
        ("flat conv", lambda: kernels.flat_relevance(conv, rules.Flat(), a, w, r)),
        (
            "flat dense",
            lambda: kernels.flat_relevance(Dense(), rules.Flat(), a[0, 0], w[0, 0], r[0, 0, :1]),
        ),
    ]


def table(builds: list[Build]) -> str:
    """The record: one row a build, faults last."""
    import triton

    lines = [
        f"# Kernels compiled by Triton {triton.__version__}",
        "",
        "Generated by `python -m benchmarks.compile_kernels`, without a GPU: nothing was timed.",
        "Registers are per thread, spills and shared memory in bytes; AMD's registers are VGPRs.",
        "",
        "| case | kernel | target | tile | registers | spills | shared | tensor core | C7515 |",
        "|---|---|---|---|--:|--:|--:|---|---|",
    ]
    for b in builds:
        lines.append(
            f"| {b.case} | {b.kernel} | {b.target} | {b.tile} | {b.registers} | {b.spills} | "
            f"{b.shared} | {b.instruction} | {'yes' if b.serialized else 'no'} |"
        )
    return "\n".join(lines) + "\n"


def compiled(target: str, only: str, part: tuple[int, int]) -> list[Build]:
    """The builds of the cases whose name contains `only`, of every `part[1]`-th case alone."""
    with recording(target) as recorder:
        work = [(case.name, lambda case=case: build(case)) for case in cases()] + others()
        work += recurrent_cases()
        for number, (name, run) in enumerate(work):
            if only not in name or number % part[1] != part[0]:
                continue
            recorder.case = name
            try:
                run()
            except Exception as error:  # whatever the compiler raises
                what = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
                failed = Build(name, "?", target, "?", None, None, 0, "-", False, what)
                recorder.builds.append(failed)
    return recorder.builds


def main(arguments: list[str] | None = None) -> int:
    """Compile, write the record, name the faults."""
    import triton

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="compile the cases whose name contains this")
    parser.add_argument("--target", choices=list(TARGETS), action="append")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--part", default="0/1", help="K/N: every N-th case from the K-th on")
    parser.add_argument("--save", type=Path, help="write the builds to a file, and no record")
    parser.add_argument(
        "--join", type=Path, nargs="+", help="files of builds, instead of compiling"
    )
    options = parser.parse_args(arguments)
    first, _, count = options.part.partition("/")
    builds: list[Build] = []
    if options.join:
        builds = [Build(**row) for path in options.join for row in json.loads(path.read_text())]
        builds.sort(key=lambda b: list(TARGETS).index(b.target))
    else:
        for target in options.target or TARGETS:
            builds += compiled(target, options.only, (int(first), int(count)))
    seen = list(dict.fromkeys(builds))
    partial = options.only or options.target or options.part != "0/1"
    if options.save is not None:
        options.save.write_text(json.dumps([asdict(b) for b in seen]))
    elif options.check or (partial and not options.join):
        print(table(seen))
    else:
        RECORDS.mkdir(exist_ok=True)
        (RECORDS / f"kernels-triton-{triton.__version__}.md").write_text(table(seen))
    faults = [(b, b.faults) for b in seen if b.faults]
    for b, found in faults:
        print(f"{b.case}: {b.kernel} for {b.target}, tile {b.tile}: {', '.join(found)}")
    print(f"Triton {triton.__version__}: {len(seen)} builds, {len(faults)} with faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
