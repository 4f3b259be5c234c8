"""The kernels' tests, run in Triton's interpreter, which needs a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from relprop import backends, rules
from relprop.backends import LinearCall
from relprop.errors import InputError
from relprop.graph.maps import Dense

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, interpret: bool) -> subprocess.CompletedProcess[str]:
    """A Python process with or without Triton's interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    pytest_arguments = ["-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    done = run(*pytest_arguments, str(ROOT / "tests" / "kernels"), interpret=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_production_tiles_compile_for_hopper_without_spills() -> None:
    pytest.importorskip("triton")
    arguments = ["--check", "--target", "sm_90", "--only", "conv AlphaBeta"]
    done = run("-m", "benchmarks.compile_kernels", *arguments, interpret=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| conv")]
    products = {row[1]: row[7] for row in rows if row[1].startswith("conv")}
    assert set(products) == {"conv_contraction", "conv_adjoint"}
    assert all(instruction.startswith("wgmma") for instruction in products.values())


@pytest.mark.parametrize("name", ["relprop", "relprop.kernels", "relprop.backends.triton.backend"])
def test_importing_does_not_import_triton(name: str) -> None:
    code = f"import sys, {name}; raise SystemExit('triton' in sys.modules)"
    done = run("-c", code, interpret=False)
    assert done.returncode == 0, done.stderr


def test_without_triton_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'relprop\[triton\]'"):
        backends.get("triton")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs on CPU")
def test_outside_cuda_the_backend_refuses() -> None:
    pytest.importorskip("triton")
    call = LinearCall(Dense(), rules.Epsilon(), path="head")
    with pytest.raises(InputError, match=r"head: backend='triton' runs on a CUDA device"):
        backends.get("triton").forward(call, torch.randn(2, 3), torch.randn(4, 3), None)
