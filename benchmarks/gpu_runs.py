"""Running one stage of `benchmarks.gpu`: a process of its own, within its time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpu_report import Outcome
from benchmarks.gpu_suite import Stage

__all__ = ["ROOT", "Runner", "environment_of", "process", "run"]

ROOT = Path(__file__).resolve().parent.parent

Runner = Callable[[Sequence[str], Mapping[str, str], Path, int], int | None]
"""Runs a command with an environment, output to a file, within seconds: its exit status, None if
time ran out."""


def run(
    stage: Stage,
    folder: Path,
    records: Path,
    environment: Mapping[str, str],
    commit: str,
    runner: Runner,
) -> Outcome:
    """Run a stage, its log in `folder`, its record in `records`; how it ended."""
    environment = {**environment, "RELPROP_TUNE": "1" if stage.tunes else "0"}
    today = datetime.now(UTC).date().isoformat()
    if stage.tool and shutil.which(stage.tool) is None:
        return Outcome("skipped", 0.0, commit, today, f"{stage.tool} is not installed")
    record = records / f"gpu-{stage.name}-{today}"
    command = [text.replace("{record}", str(record)) for text in stage.arguments]
    records.mkdir(parents=True, exist_ok=True)
    log = folder / f"{stage.name}.log"
    began = time.monotonic()
    status = runner([sys.executable, *command], environment, log, stage.seconds)
    seconds = round(time.monotonic() - began, 1)
    if status is None:
        return Outcome("timed out", seconds, commit, today, f"see {log.name}")
    if status:
        return Outcome("failed", seconds, commit, today, f"exit status {status}, see {log.name}")
    return Outcome("passed", seconds, commit, today)


def process(
    command: Sequence[str], environment: Mapping[str, str], log: Path, seconds: int
) -> int | None:
    """Run in a process group of its own, so that a time-out ends its children too."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(environment), stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def environment_of(folder: Path) -> dict[str, str]:
    """The environment of the stages: imports come from this checkout, `kernels/` included.

    `relprop.kernels` is the folder `kernels/`, which only an installation knows.  A folder of links
    stands in for it, and the safe path keeps the checkout's own `relprop/` from hiding it.
    """
    package = folder / "site" / "relprop"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for entry in (ROOT / "relprop").iterdir():
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    (package / "kernels").symlink_to(ROOT / "kernels")
    path = [str(package.parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return environment | {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "RELPROP_KERNEL_DEVICE": "cuda",
        "RELPROP_CACHE_DIR": os.environ.get("RELPROP_CACHE_DIR", str(folder / "choices")),
    }
