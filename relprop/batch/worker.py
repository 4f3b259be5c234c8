"""One worker: shards in turn, read, explained, written behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from relprop.atomic import remove_leftovers
from relprop.batch.feed import Feed
from relprop.batch.files import Reader, VanishedError, present_shards, require_sound
from relprop.batch.loading import Task, windows
from relprop.batch.locks import JobLock
from relprop.batch.manifest import Manifest, Record
from relprop.batch.preparing import Prepared
from relprop.batch.rows import Failure
from relprop.batch.sink import Sink
from relprop.batch.spec import JobSpec
from relprop.errors import FileFormatError, InputError, RelpropError
from relprop.io.files import printable

__all__ = ["Report", "Tally", "Worker", "shard_order"]

UNWRITTEN_IN_A_ROW = 3
STAGES = ("read", "explain", "write")


class Report(Protocol):
    """Who is told how a job goes."""

    def advance(self, samples: int, busy: dict[str, float]) -> None:
        """So many samples are done; `busy` has each stage's seconds since the start."""

    def line(self, text: str) -> None:
        """Something that the user should read."""


@dataclass
class Tally:
    """What a worker did.

    Attributes:
        explained, failed: samples of the shards that it wrote or found.
        written, found: shards.
        unwritten: shards that could not be written.
        samples: samples that it explained itself.
        seconds: of work, without opening and planning.
        busy: seconds of each stage: read, explain, write.
        stopped: whether it was told to stop.
        error: why it gave up, in one sentence.
    """

    explained: int = 0
    failed: int = 0
    written: int = 0
    found: int = 0
    unwritten: int = 0
    samples: int = 0
    seconds: float = 0.0
    busy: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    stopped: bool = False
    error: str = ""

    def add(self, other: Tally) -> None:
        """Count another worker's in."""
        for name in ("explained", "failed", "written", "found", "unwritten", "samples"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.busy = {stage: self.busy[stage] + other.busy[stage] for stage in STAGES}
        self.seconds = max(self.seconds, other.seconds)
        self.stopped |= other.stopped
        self.error = self.error or other.error


def shard_order(folder: Path, manifest: Manifest, rank: int, world: int) -> Iterator[int]:
    """A rank's own shards, then those that others have left undone, its neighbours' last."""
    yield from range(rank, manifest.count, world)
    if world > 1:
        missing = set(range(manifest.count)) - present_shards(folder, manifest)
        yield from sorted(missing, reverse=True)


class Worker:
    """Explains shards of a job.

    Args:
        spec, prepared, manifest, folder, lock: the job, opened.
        report: who is told.
        stop: whether to end after the current batch.
    """

    def __init__(
        self,
        spec: JobSpec,
        prepared: Prepared,
        manifest: Manifest,
        folder: Path,
        lock: JobLock,
        report: Report,
        stop: Callable[[], bool],
    ) -> None:
        self.spec, self.prepared, self.manifest = spec, prepared, manifest
        self.folder, self.lock, self.report, self.stop = folder, lock, report, stop
        self.tally = Tally()
        self._unwritten_in_a_row = 0
        self._broken: set[int] = set()

    def run(self, shards: Iterable[int], readers: int) -> Tally:
        """Do those of the shards that are not done.

        Raises:
            VanishedError: the folder is gone.
            RelpropError: nothing can be explained, or nothing written.
        """
        started = time.perf_counter()
        self._feed = Feed(self.prepared.loader, readers, self.prepared.device.type == "cuda")
        sink = Sink(self.folder, self.manifest)
        try:
            try:
                self._stream(iter(shards), sink)
            finally:
                sink.close()
                self._feed.close()
            self._settle(sink)
        finally:
            self.tally.seconds = time.perf_counter() - started
        return self.tally

    def _stream(self, shards: Iterator[int], sink: Sink) -> None:
        busy = self.tally.busy
        for loaded in self._feed(self._tasks(shards)):
            self._settle(sink)
            if self.stop():
                self.tally.stopped = True
                return
            if loaded.task.shard in self._broken:
                continue
            started = time.perf_counter()
            rows, failures = self.prepared.explaining(loaded)
            busy["explain"] += time.perf_counter() - started
            busy["read"] += loaded.seconds
            busy["write"] = sink.busy
            for line in [*loaded.remarks(), *map(located, failures)]:
                self.report.line(line)
            sink.put(loaded.task, rows, failures)
            count = loaded.task.stop - loaded.task.start
            self.tally.samples += count
            self.report.advance(count, busy)

    def _settle(self, sink: Sink) -> None:
        """Take note of the shards that the writing thread is done with."""
        for shard, result in sink.results():
            self.lock.drop_shard(shard)
            if isinstance(result, Record):
                self.tally.written += 1
                self.tally.explained += result.explained
                self.tally.failed += result.failed
                self._unwritten_in_a_row = 0
                continue
            if isinstance(result, (VanishedError, InputError)):
                raise result  # no other shard would fare better
            if not isinstance(result, RelpropError):
                raise RelpropError(f"shard {shard}: {type(result).__name__}: {result}") from result
            self._broken.add(shard)
            self.report.line(printable(result, 1000))
            self.tally.unwritten += 1
            self._unwritten_in_a_row += 1
            if self._unwritten_in_a_row >= UNWRITTEN_IN_A_ROW:
                raise RelpropError(
                    f"{printable(self.folder)}: {self._unwritten_in_a_row} shards in a row could "
                    "not be written; stopping. Run the command again once that is mended"
                )

    def _tasks(self, shards: Iterator[int]) -> Iterator[Task]:
        for shard in shards:
            if self.stop():
                self.tally.stopped = True
                return
            if not self.lock.take_shard(shard):
                continue  # another worker is at it
            if self._is_done(shard):
                self.lock.drop_shard(shard)
                continue
            remove_leftovers(self.folder / self.manifest.name(shard))
            first, stop = self.manifest.span(shard)
            yield from windows(first, stop, self.manifest.batch_size, shard)

    def _is_done(self, shard: int) -> bool:
        if not (self.folder / self.manifest.name(shard)).exists():
            return False
        try:
            reader = require_sound(self.folder, self.manifest, shard, self.spec.quick)
            failures = reader.failures()
        except FileFormatError as error:
            self.report.line(f"{printable(error, 1000)}; done again")
            return False
        if any(self._is_mended(failure) for failure in failures):
            self.report.line(f"{printable(reader.path)}: samples that had failed can be read now")
            return False
        self._found(reader, failures)
        return True

    def _found(self, reader: Reader, failures: list[Failure]) -> None:
        self.tally.found += 1
        self.tally.explained += reader.explained
        self.tally.failed += reader.failed
        for failure in failures:
            self.report.line(located(failure))
        self.report.advance(reader.explained + reader.failed, self.tally.busy)

    def _is_mended(self, failure: Failure) -> bool:
        """Whether a sample that failed can be explained now, on its own."""
        task = Task(0, failure.index, failure.index + 1, True)
        loaded = self.prepared.loader(task)
        return not loaded.failures and self.prepared.explaining(loaded)[0] is not None


def located(failure: Failure) -> str:
    """A failure's line, which names the sample."""
    inside = failure.name in failure.reason
    return printable(failure.reason if inside else f"{failure.name}: {failure.reason}", 1000)
