"""Whole CNNs on this machine: explanations per second, ratio to the plain gradient, peak memory.

python -m benchmarks.cnn                     VGG-16 and ResNet-50, batch 4, 224 x 224, float32
python -m benchmarks.cnn --models vgg16 --rounds 3 --size 96 --record out/cnn.csv
python -m benchmarks.cnn --device cuda --batch 64 --precision high --triton

On CUDA everyone's float32 products are IEEE at precision "highest" and may be TF32 otherwise.
"""

from __future__ import annotations

import argparse
import csv
import platform
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import network, variants
from benchmarks.timing import Timing, interleaved, peak_bytes
from relprop.tables import table

__all__ = ["environment", "main", "write_record"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the record if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cnn", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["vgg16", "resnet50"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="highest")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--triton", action="store_true", help="also with backend='triton'")
    parser.add_argument("--only", default="", help="measure variants whose name contains this")
    parser.add_argument("--record", type=Path, help="CSV file to write")
    arguments = parser.parse_args(argv)
    reduced = arguments.precision != "highest"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = reduced
    rows: list[dict[str, Any]] = []
    for name in arguments.models:
        rows += _measure(name, arguments)
    print(_table(rows))
    if arguments.record is not None:
        write_record(arguments.record, rows)
        print(f"wrote {arguments.record}")
    return 0


def _measure(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    model = network(name).to(arguments.device)
    torch.manual_seed(1)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    images = images.to(arguments.device, memory_format=torch.channels_last)
    with torch.no_grad():
        labels = model(images).argmax(1)
    calls = variants(name, model, images, labels, arguments.precision, arguments.triton)
    kept = {
        key: call
        for key, call in calls.items()
        if (arguments.only in key or key.startswith("gradient")) and _runs(key, call)
    }
    timings = interleaved(kept, arguments.rounds)
    base = timings["gradient | autograd"]
    base_bytes = peak_bytes(kept["gradient | autograd"])
    rows = []
    for key, timing in timings.items():
        peak = peak_bytes(kept[key])
        rows.append(_row(name, key, timing, base, peak, base_bytes, arguments))
    return rows


def _runs(key: str, call: Callable[[], Any]) -> bool:
    """Whether a variant works here at all; one that does not is named, and left out."""
    try:
        call()
    except Exception as error:
        print(f"left out: {key}: {type(error).__name__}: {error}", flush=True)
        return False
    return True


def _row(
    name: str,
    key: str,
    timing: Timing,
    base: Timing,
    peak: int,
    base_bytes: int,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    method, _, who = key.partition(" | ")
    return {
        "model": name,
        "method": method,
        "library": who,
        "batch": arguments.batch,
        "size": arguments.size,
        "precision": arguments.precision if "relprop" in who else "highest",
        "explanations_per_s": round(arguments.batch / timing.median, 3),
        "gradients": round(timing.median / base.median, 3),
        "spread": round(timing.spread, 3),
        "peak_mib": round(peak / 2**20, 1),
        "peak_gradients": round(peak / base_bytes, 3),
        "rounds": timing.rounds,
        **environment(arguments.device),
    }


def environment(device: str = "cpu") -> dict[str, Any]:
    """What a record needs to be read later."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit or "unknown",
        "date": datetime.now(UTC).date().isoformat(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def _table(rows: list[dict[str, Any]]) -> str:
    head = ("model", "method", "library", "expl./s", "x gradient", "spread", "MiB", "x gradient's")
    keys = ("model", "method", "library", "explanations_per_s", "gradients", "spread", "peak_mib",
            "peak_gradients")  # fmt: skip
    return table(head, [[str(row[key]) for key in keys] for row in rows])


def write_record(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV: beside, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    beside.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
