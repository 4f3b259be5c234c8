"""A job's throughput against the bare `Explainer` loop on batches in memory, and its memory.

    python -m benchmarks.stream DATA               DATA as `relprop explain` takes it
    python -m benchmarks.stream DATA --record CSV
    python -m benchmarks.stream DATA --workers 2 --rounds 3

A machine's speed drifts, so job and loop take turns, shard by shard, each first every other time:
the loop explains the samples of a shard in batches of the same size and keeps nothing; the job
reads, explains and writes them.  Several workers take turns with the loop job by job; the loop has
all threads of the process, the workers share them out.  Capture is not counted, and each round has
a fresh folder.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

import relprop
from benchmarks.jobs import FreshJob, fresh_job
from benchmarks.recording import environment, write_record
from relprop.batch import JobSpec
from relprop.batch.preparing import Prepared, prepare
from relprop.batch.processes import run_processes
from relprop.batch.status import Status, Stop
from relprop.batch.worker import Tally
from relprop.tables import table

__all__ = ["main"]

WATCH_SECONDS = 0.2


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


@dataclass
class Turns:
    """Seconds of each turn, by the clock and of the processors."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def time(self, work: Callable[[], object]) -> None:
        """One turn."""
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def bare_loop(prepared: Prepared, batch: int) -> Callable[[Tensor], None]:
    """The bare loop over inputs in memory: the predicted class of each batch, nothing kept."""
    explaining = prepared.explaining
    explainer = relprop.Explainer(explaining.model, explaining.explainer.method, frozen=True)

    def predicted(output: Tensor) -> Tensor:
        return output.argmax(1)

    def loop(values: Tensor) -> None:
        for part in values.split(batch):
            explainer(part, target=predicted)

    return loop


def take_turns(job: FreshJob, loop: Callable[[Tensor], None], bare: Turns, own: Turns) -> Tally:
    """A whole job and the loop over the same samples, shard by shard."""
    read = job.prepared.source.read_slice
    assert read is not None
    tally = Tally()
    for shard in range(job.manifest.count):
        values = read(*job.manifest.span(shard))
        turns = [
            lambda values=values: bare.time(lambda: loop(values)),
            lambda shard=shard: own.time(lambda: tally.add(job.run([shard]))),
        ]
        for turn in turns if shard % 2 == 0 else reversed(turns):
            turn()
    return tally


def take_rounds(job: FreshJob, loop: Callable[[Tensor], None], bare: Turns, own: Turns) -> Tally:
    """The loop over all samples, and a whole job by workers in processes of their own."""
    read = job.prepared.source.read_slice
    assert read is not None
    spans = [job.manifest.span(shard) for shard in range(job.manifest.count)]
    tally = Tally()

    def run_loop() -> None:
        torch.set_num_threads(job.spec.workers * int(job.manifest.environment["threads"]))
        values = read(0, job.manifest.samples)
        bare.time(lambda: [loop(values[first:stop]) for first, stop in spans])

    def run_workers() -> None:
        spec = replace(job.spec, job=str(job.folder))
        tally.add(run_processes(spec, Status(job.manifest.samples, quiet=True), Stop()))
        own.wall.append(tally.seconds)

    turns = [run_loop, run_workers]
    for turn in turns if len(bare.wall) % 2 == 0 else reversed(turns):
        turn()
    return tally


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the record if asked."""
    given = arguments(argv)
    spec = JobSpec.of(argparse.Namespace(**{**vars(given), "job": "", "quiet": True}))
    prepared = prepare(spec)
    loop = bare_loop(prepared, given.batch_size)
    bare, own, tally = Turns(), Turns(), Tally()
    compare = take_turns if spec.workers == 1 else take_rounds
    with fresh_job(prepared, spec, samples=given.batch_size) as warm:
        compare(warm, loop, Turns(), Turns())
    with Memory() as memory:
        for _ in range(given.rounds):
            with fresh_job(prepared, spec) as job:
                tally.add(compare(job, loop, bare, own))
                written = job.written() / job.manifest.samples
    mib = " ".join(str(seen >> 20) for seen in memory.quarters())  # of this process alone
    ratios = [loop / job for loop, job in zip(bare.wall, own.wall, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    row = {
        "data": Path(given.data).name,
        "model": given.model,
        "method": given.method,
        "samples": prepared.wanted.samples,
        "batch": given.batch_size,
        "format": given.format,
        "dtype": given.dtype,
        "reduce": given.reduce or "",
        "loop_per_s": round(tally.samples / sum(bare.wall), 1),
        "job_per_s": round(tally.samples / sum(own.wall), 1),
        "ratio": round(sum(bare.wall) / sum(own.wall), 3),
        "ratio_quartiles": f"{low:.3f} {middle:.3f} {high:.3f}",
        "cpu_ratio": round(sum(bare.cpu) / sum(own.cpu), 3) if own.cpu else "",
        "workers": spec.workers,
        **{
            f"{stage}_share": round(spent / sum(own.wall) / spec.workers, 3)
            for stage, spent in tally.busy.items()
        },
        "bytes_each": round(written, 1),
        "rss_mib_quarters": mib if spec.workers == 1 else "",
        "rounds": given.rounds,
        **environment(prepared.device.type),
    }
    print(table(list(row), [[str(value) for value in row.values()]]))
    if given.record is not None:
        write_record(given.record, [row])
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The parsed words of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream", description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--model", default="fashion_mnist_cnn")
    parser.add_argument("--method", default="epsilon_plus")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--shard-size", type=int, default=4096)
    parser.add_argument("--format", default="safetensors")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--reduce")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--record", type=Path, help="CSV file to write")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
