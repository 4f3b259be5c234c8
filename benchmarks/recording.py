"""Records: what a measurement was made with, and CSV files that a run can be taken up from."""

from __future__ import annotations

import csv
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from relprop.atomic import replacing

__all__ = ["FIELDS", "RECORDS", "environment", "fresh", "merge", "read", "write_record"]

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "records"

FIELDS = (
    "level", "cell", "workload", "method", "library", "precision", "status", "batch", "size",
    "axis", "value", "explanations_per_s", "median_s", "spread", "rounds", "x_gradient", "x_floor",
    "floor_products_s", "floor_bytes_s", "contractions", "adjoints", "multiplications",
    "moved_bytes", "held_bytes", "at_once_bytes", "peak_bytes", "x_gradient_peak", "error",
    "tolerance", "note", "device", "threads", "versions", "commit", "time", "command",
)  # fmt: skip
"""The columns of every record; README.md says what they mean."""


def environment(device: str = "cpu") -> dict[str, Any]:
    """What a record needs to be read later."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def circumstances(device: str, command: str) -> dict[str, Any]:
    """The last columns of a row."""
    found = environment(device)
    return {
        "device": found["device"],
        "threads": found["threads"],
        "versions": versions(),
        "commit": found["commit"],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }


@cache
def commit(root: Path = ROOT) -> str:
    """The commit that is checked out, with a + where what is measured differs from it."""
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return "unknown"
    changed = [*git, "status", "--porcelain", "--untracked-files=no", "relprop", "kernels"]
    dirty = subprocess.run(changed, capture_output=True, text=True).stdout.strip()
    return head.stdout.strip() + ("+" if dirty else "")


@cache
def versions() -> str:
    """Of the libraries that are compared, and of Python."""
    found = [f"python {platform.python_version()}"]
    for package in ("torch", "numpy", "zennit", "captum", "triton"):
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def write_record(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, all at once."""
    with replacing(path) as beside, beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read(paths: Iterable[Path]) -> list[dict[str, str]]:
    """All rows of some records, those that are there."""
    rows: list[dict[str, str]] = []
    for path in paths:
        if path.exists():
            with path.open(newline="") as file:
                rows += csv.DictReader(file)
    return rows


def merge(path: Path, cell: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put a cell's rows into a record, in place of those of the same cell, device and threads."""
    here = (cell, str(rows[0]["device"]), str(rows[0]["threads"]))
    kept = [r for r in read([path]) if (r["cell"], r["device"], r["threads"]) != here]
    whole = [*kept, *rows]  # what an older record lacks stays empty
    write_record(path, [{key: _text(row.get(key, "")) for key in FIELDS} for row in whole])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def fresh(path: Path, device: str, hours: float) -> set[str]:
    """Cells that need no repetition: of this commit, or younger than some hours, on this machine.

    Args:
        path: the record.
        device: "cpu" or "cuda".
        hours: how old a cell of another commit may be.
    """
    here = environment(device)
    same = here["commit"].rstrip("+")  # a tree with changes may have other ones by now
    oldest = datetime.now(UTC) - timedelta(hours=hours)
    return {
        row["cell"]
        for row in read([path])
        if row["device"] == here["device"]
        and row["threads"] == str(here["threads"])
        and (
            row["commit"] == here["commit"] == same or datetime.fromisoformat(row["time"]) > oldest
        )
    }
