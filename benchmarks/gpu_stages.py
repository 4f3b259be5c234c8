"""The stages of `benchmarks.gpu` that are no other command: device, test shards, accuracy.

python -m benchmarks.gpu_stages accuracy --device cpu     in Triton's interpreter, small shapes
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.recording import write_record
from benchmarks.timing import once
from relprop import backends, rules
from relprop.backends import LinearCall
from relprop.backends.reference import linear as reference
from relprop.graph.maps import Conv, Dense, LinearMap

__all__ = ["main"]

ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage; 0 if what it checks holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_stages", description=__doc__)
    parser.add_argument("stage", choices=["environment", "kernels", "accuracy", "memcheck"])
    parser.add_argument("--record", type=Path, help="CSV file to write")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(argv)
    match options.stage:
        case "environment":
            rows, good = _environment(), True
        case "accuracy":
            rows, good = _accuracy(options.device)
        case "kernels":
            return _shards(min(12, os.cpu_count() or 1))
        case _:
            return _memcheck()
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    if options.record is not None:
        write_record(options.record, rows)
    return 0 if good else 1


def _environment() -> list[dict[str, Any]]:
    """Names, versions, and the rates that everything else is compared with."""
    properties = torch.cuda.get_device_properties(0)
    found: dict[str, Any] = {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "threads": torch.get_num_threads(),
    }
    for package in ("torch", "triton", "numpy", "torchvision", "zennit", "captum"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    seconds = _device_seconds(lambda: target.copy_(source))
    found["copy_gb_per_s"] = round(2 * source.nbytes / seconds / 1e9)
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a = torch.randn(8192, 8192, device="cuda", dtype=dtype)
        seconds = _device_seconds(lambda a=a: a @ a)  # type: ignore[misc]
        found[f"matrix_{name}_tflop_per_s"] = round(2 * 8192**3 / seconds / 1e12, 1)
    return [{"fact": key, "value": value} for key, value in found.items()]


def _device_seconds(call: Callable[[], Any], rounds: int = 10) -> float:
    """Seconds of one call, by the device's own clock, after three that do not count."""
    for _ in range(3):
        call()
    return once(call, rounds)


def _shards(count: int) -> int:
    """The kernels' tests in several processes: compiling is most of their time."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels"]
    running = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"RELPROP_KERNEL_SHARD": f"{number}/{count}", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(count)
    ]
    worst = 0
    for number, process in enumerate(running):
        text, _ = process.communicate()
        print(f"--- shard {number} of {count}\n{text[-20_000:]}", flush=True)
        worst = max(worst, abs(process.returncode))
    return worst


def _memcheck() -> int:
    tests = [
        "tests/kernels/test_layers.py::test_every_rule",
        "tests/kernels/test_pool.py",
        "tests/kernels/test_recurrent.py::test_both_directions_and_lengths",
    ]
    python = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *tests]
    tool = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"]
    # each tensor an allocation of its own: within PyTorch's pool a wrong address is a valid one
    apart = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return subprocess.run([*tool, *python], cwd=ROOT, env=apart).returncode


SAME = Conv((1, 1), ((1, 1), (1, 1)), (1, 1))
SHAPES: list[tuple[str, LinearMap, tuple[int, ...], tuple[int, ...]]] = [
    ("dense 4096", Dense(), (256, 4096), (4096, 4096)),
    ("conv 3x3, 64 channels", SAME, (8, 64, 56, 56), (64, 64, 3, 3)),
    ("conv 3x3, 512 channels", SAME, (8, 512, 14, 14), (512, 512, 3, 3)),
    (
        "conv 1x1, stride 2",
        Conv((2, 2), ((0, 0), (0, 0)), (1, 1)),
        (8, 256, 28, 28),
        (512, 256, 1, 1),
    ),
    (
        "conv 7x7, stride 2, 3 channels",
        Conv((2, 2), ((3, 3), (3, 3)), (1, 1)),
        (4, 3, 112, 112),
        (64, 3, 7, 7),
    ),
]
"""Name, map, input, weight: layers of VGG-16 and ResNet-50."""
SMALL: list[tuple[str, LinearMap, tuple[int, ...], tuple[int, ...]]] = [
    ("dense", Dense(), (4, 24), (8, 24)),
    ("conv 3x3", SAME, (2, 4, 6, 6), (6, 4, 3, 3)),
]
"""For the interpreter."""
RULES = (rules.Epsilon(1e-2), rules.ZPlus(1e-2), rules.AlphaBeta(2, 1, epsilon=1e-2))


def _accuracy(device: str) -> tuple[list[dict[str, Any]], bool]:
    """For each layer, rule and precision: errors to float64, and whether two runs agree bitwise.

    `against_library` is the error of the output over that of PyTorch's own layer with the same
    operands, precision and products: expected to be at most 2.  Where a rule wants the products of
    W+ and of W-, the output is their sum, and rounds as theirs does.
    """
    rows = []
    for name, linear_map, a_shape, w_shape in SHAPES if device == "cuda" else SMALL:
        torch.manual_seed(0)
        a = torch.randn(a_shape).relu().to(device)
        w, b = torch.randn(w_shape).to(device), torch.randn(w_shape[0]).to(device)
        for rule in RULES:
            for precision in backends.PRECISIONS:
                rows.append(
                    {
                        "layer": name,
                        "rule": type(rule).__name__,
                        "precision": precision,
                        **_errors(linear_map, rule, precision, a, w, b),
                    }
                )
                print(rows[-1], flush=True)
    good = all(row["same_bits"] and row["against_library"] <= 2 for row in rows)
    return rows, good


def _errors(
    linear_map: LinearMap,
    rule: rules.LinearRule,
    precision: str,
    a: Tensor,
    w: Tensor,
    b: Tensor,
) -> dict[str, Any]:
    exact = linear_map.contraction(a.double(), w.double(), b.double())
    r = torch.randn(exact.shape).to(a.device)
    expected = reference.linear_relevance(
        linear_map, a.double(), w.double(), b.double(), r.double(), rule
    )
    call = LinearCall(linear_map, rule, nonnegative=True, precision=precision)
    errors: dict[str, tuple[float, float]] = {}
    same = True
    for backend in ("triton", "aten"):
        runs = [_run(backends.get(backend), call, a, w, b, r) for _ in range(2)]
        if backend == "triton":
            same = all(torch.equal(x, y) for x, y in zip(*runs, strict=True))
        z, relevance = runs[0]
        errors[backend] = _relative(z, exact), _relative(relevance, expected)
    library = _relative(_library(linear_map, precision, a, w, b), exact)
    parts = [w] if isinstance(rule, rules.Epsilon) else [w.clamp(min=0), w.clamp(max=0)]
    same_products = sum(
        (_library(linear_map, precision, a, part, b / len(parts)) for part in parts),
        start=torch.zeros((), device=a.device),
    )
    same_error = _relative(same_products, exact)
    floor = torch.finfo(torch.float32).eps / 4
    return {
        "output_error": f"{errors['triton'][0]:.3g}",
        "library_error": f"{library:.3g}",
        "same_products_error": f"{same_error:.3g}",
        "against_library": round(errors["triton"][0] / max(same_error, floor), 3),
        "relevance_error": f"{errors['triton'][1]:.3g}",
        "aten_relevance_error": f"{errors['aten'][1]:.3g}",
        "same_bits": same,
    }


def _run(
    backend: backends.Backend, call: LinearCall, a: Tensor, w: Tensor, b: Tensor, r: Tensor
) -> tuple[Tensor, Tensor]:
    z, saved = backend.forward(call, a, w, b)
    z = z.clone()
    return z, backend.relevance(call, saved, r.unsqueeze(0))[0]


def _library(linear_map: LinearMap, precision: str, a: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """PyTorch's own layer at the same precision: IEEE float32, TF32, bfloat16 operands."""
    reduced = precision == "high"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = reduced
    if precision == "medium":
        a, w, b = a.bfloat16(), w.bfloat16(), b.bfloat16()
    return linear_map.contraction(a, w, b)


def _relative(found: Tensor, exact: Tensor) -> float:
    """Root mean square error over root mean square."""
    return float((found.double() - exact).norm() / exact.norm())


if __name__ == "__main__":
    raise SystemExit(main())
