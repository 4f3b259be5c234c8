"""Faults put into the kernels' sources: each must fail a test of this folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.gpu_runs import ROOT, environment_of
from relprop import kernels


@dataclass(frozen=True)
class Fault:
    """A line of a kernel, what it becomes, and the tests that must notice."""

    path: str
    right: str
    wrong: str
    tests: str = "test_layers.py"

    def __str__(self) -> str:
        return f"{self.path}: {self.wrong.strip()}"


FAULTS = [
    Fault("conv/index.py", "return (source >= 0) & (source < size)", "return source >= 0"),
    Fault("conv/index.py", "return i, i * AXES[A][0] - AXES[A][1]", "return i, i - AXES[A][1]"),
    Fault("conv/index.py", "tl.maximum((AXES[A][3] - first", "tl.maximum((AXES[A][3]"),
    Fault("conv/index.py", "return -(AXES[A][2] // AXES[A][4]), AXES[A][5]",
          "return -(AXES[A][2] // AXES[A][4]), 1"),
    Fault("conv/products.py", "w_mask = w_mask & (c < C)[:, None]", "w_mask = w_mask"),
    Fault("conv/geometry.py", "pads == (0, 0)", "pads[0] == 0"),
    Fault("dense/products.py", "x_mask = row_mask & (k < K)[None, :]", "x_mask = row_mask"),
    Fault("epilogues.py", "return tl.where(z < 0, z - epsilon, z + epsilon)",
          "return tl.where(z <= 0, z - epsilon, z + epsilon)", "test_layer_cases.py"),
    Fault("epilogues.py", "return tl.where(empty, 0.0, r / tl.where(empty, 1.0, denominator))",
          "return tl.where(empty, r, r / tl.where(empty, 1.0, denominator))",
          "test_layer_cases.py"),
    Fault("epilogues.py", "tl.where(own < 0, -half, half)", "half"),
    Fault("epilogues.py", "tl.where(z1 < 0, -s, s)", "s"),
    Fault("epilogues.py", "return s0, tl.where(z0 == 0, 1.0, scale1) * s1",
          "return s0, scale1 * s1", "test_layer_cases.py"),
    Fault("epilogues.py", "own = ACTIVATION(own + bias_row)", "own = ACTIVATION(own)"),
    Fault("operands.py", 'return self.lower == "input" or any(', "return any(",
          "test_fused_quotients.py"),
    Fault("pool/maximum.py", "(value > best)", "(value >= best)", "test_pool.py"),
    Fault("modifiers.py", "return tl.abs(u)", "return u"),
    Fault("flat.py", "(spread % AXES[A][0] == 0)", "(spread >= 0)", "test_layer_cases.py"),
]  # fmt: skip


def with_fault(fault: Fault, folder: Path) -> Mapping[str, str]:
    """The environment of a process that imports the kernels from a folder, one line changed."""
    environment = environment_of(folder)
    own = folder / "site" / "relprop" / "kernels"
    own.unlink()
    shutil.copytree(ROOT / "kernels", own, ignore=shutil.ignore_patterns("__pycache__"))
    source = own / fault.path
    text = source.read_text(encoding="utf-8")
    assert text.count(fault.right) == 1, f"{fault.path}: {fault.right!r} is no longer there"
    source.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
    return {**environment, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.skipif(not kernels.interpreted(), reason="in the interpreter alone")
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_the_fault_is_noticed(fault: Fault, tmp_path: Path) -> None:
    tests = str(Path(__file__).with_name(fault.tests))
    options = ["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", "--tb=line"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options, tests],
        cwd=ROOT,
        env=with_fault(fault, tmp_path),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert os.linesep + "FAILED" in ended.stdout and "1 failed" in ended.stdout
