"""A job's throughput against the bare `Explainer` loop on batches in memory, and its memory.

    python -m benchmarks.stream DATA               DATA as `relprop explain` takes it
    python -m benchmarks.stream DATA --record CSV

The loop explains the first of the samples, in batches of the same size, and keeps nothing; it is
timed before and after each job, since a machine's speed drifts.  Capture is not counted, and each
job has a fresh folder; medians count.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import relprop
from relprop.atomic import replacing
from relprop.batch import JobSpec
from relprop.batch.locks import JobLock
from relprop.batch.preparing import Prepared, made_manifest, prepare
from relprop.batch.worker import Tally, Worker
from relprop.tables import table

__all__ = ["main"]

WATCH_SECONDS = 0.2


class Silent:
    """A report that nobody reads."""

    def advance(self, samples: int, busy: dict[str, float]) -> None:
        """Nothing."""

    def line(self, text: str) -> None:
        """Print what went wrong."""
        print(text)


class Memory:
    """Resident bytes of this process, watched while a block runs."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(WATCH_SECONDS):
            self.seen.append(resident())

    def quarters(self) -> list[int]:
        """The largest of each quarter of the time."""
        size = max(1, len(self.seen) // 4)
        return [max(self.seen[i : i + size]) for i in range(0, 4 * size, size) if self.seen[i:]]


def resident() -> int:
    """Resident bytes of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def bare_loop(prepared: Prepared, batch: int, samples: int) -> float:
    """Seconds of the bare loop: the predicted class of each batch, nothing kept."""
    explainer = relprop.Explainer(
        prepared.explaining.model, prepared.explaining.explainer.method, frozen=True
    )
    assert prepared.source.read_slice is not None
    whole = prepared.source.read_slice(0, samples)

    def predicted(output: Tensor) -> Tensor:
        return output.argmax(1)

    explainer(whole[:batch], target=predicted)
    started = time.perf_counter()
    for values in whole.split(batch):
        explainer(values, target=predicted)
    return time.perf_counter() - started


def whole_job(prepared: Prepared, spec: JobSpec) -> tuple[Tally, Memory, int]:
    """A job from nothing: its tally, its memory, the bytes it wrote."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lock = JobLock(folder)
        manifest = made_manifest(prepared, spec, folder, lock)
        worker = Worker(spec, prepared, manifest, folder, lock, Silent(), lambda: False)
        with Memory() as memory:
            tally = worker.run(range(manifest.count), spec.readers or 0)
        lock.close()
        written = sum(path.stat().st_size for path in folder.rglob("shard-*"))
    return tally, memory, written


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the record if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream", description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--model", default="fashion_mnist_cnn")
    parser.add_argument("--method", default="epsilon_plus")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--format", default="safetensors")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--reduce")
    parser.add_argument("--loop-samples", type=int, default=12_800)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", type=Path, help="CSV file to write")
    given = parser.parse_args(argv)
    spec = JobSpec.of(argparse.Namespace(**{**vars(given), "job": "", "quiet": True}))
    prepared = prepare(spec)
    samples = prepared.wanted.samples
    bare: list[float] = []
    jobs: list[float] = []
    short = min(samples, given.loop_samples)
    bare.append(short / bare_loop(prepared, given.batch_size, short))
    for _ in range(given.rounds):
        tally, memory, written = whole_job(prepared, spec)
        jobs.append(samples / tally.seconds)
        bare.append(short / bare_loop(prepared, given.batch_size, short))
    row = {
        "data": Path(given.data).name,
        "model": given.model,
        "method": given.method,
        "samples": samples,
        "batch": given.batch_size,
        "format": given.format,
        "dtype": given.dtype,
        "reduce": given.reduce or "",
        "bare_per_s": round(statistics.median(bare), 1),
        "bare_each": " ".join(f"{rate:.0f}" for rate in bare),
        "job_per_s": round(statistics.median(jobs), 1),
        "ratio": round(statistics.median(jobs) / statistics.median(bare), 3),
        **{
            f"{stage}_share": round(spent / tally.seconds, 3) for stage, spent in tally.busy.items()
        },
        "bytes_each": round(written / samples, 1),
        "rss_mib_quarters": " ".join(str(seen >> 20) for seen in memory.quarters()),
        "threads": torch.get_num_threads(),
        "rounds": given.rounds,
        "processor": processor(),
        "torch": str(torch.__version__),
    }
    print(table(list(row), [[str(value) for value in row.values()]]))
    if given.record is not None:
        with replacing(given.record) as temporary, temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(row), lineterminator="\n")
            writer.writeheader()
            writer.writerow(row)
    return 0


def processor() -> str:
    """The processor's name (Linux), else the machine's kind."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


if __name__ == "__main__":
    raise SystemExit(main())
