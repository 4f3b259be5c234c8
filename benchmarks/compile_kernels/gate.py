"""The share of the cases that every change is checked with, and the verdict on it.

Each kernel at its production tile, once or twice for each target, in a few minutes of one core; the
full list is for the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from benchmarks.compile_kernels.builds import Build, Key

__all__ = ["CASES", "regressions"]

CASES = frozenset(
    {
        "dense AlphaBeta",
        "dense float32 highest Epsilon",
        "conv AlphaBeta",
        "conv float32 high Epsilon",
        "pixels ZBox",
        "depthwise ZPlus",
        "fused dense highest Epsilon",
        "fused conv medium ZPlus",
        "fused pool Epsilon",
        "library ZPlus",
        "residual split",
        "residual sum",
        "resampling",
        "max pool",
        "adaptive max pool",
        "average pool",
        "adaptive pool",
        "flat conv",
        "flat dense",
        "recurrent lstm 128 bfloat16",
        "recurrent gru 256 bfloat16",
        "recurrent lstm 1024 bfloat16",
    }
)
"""Names of cases."""


def regressions(builds: list[Build], recorded: Mapping[Key, int]) -> list[tuple[Build, list[str]]]:
    """The builds with faults, a spill that the record knows of not being one.

    Args:
        builds: what was compiled.
        recorded: bytes spilled by build, of the committed record; what it lacks must not spill.
    """
    found = []
    for build in builds:
        known = build.spills is not None and build.spills <= recorded.get(build.key, 0)
        faults = (replace(build, spills=0) if known else build).faults
        if faults:
            found.append((build, faults))
    return found
