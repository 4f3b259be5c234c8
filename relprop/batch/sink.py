"""Writing behind the explaining: shards, in a thread of its own."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from relprop.batch.files import Writer, shard_writer, writing_shard
from relprop.batch.loading import Task
from relprop.batch.manifest import Manifest, Record
from relprop.batch.rows import Failure, Rows
from relprop.batch.summaries import Summaries
from relprop.errors import InputError

__all__ = ["Sink"]


class Abandoned(Exception):
    """A shard that is not to be finished."""


class _OpenShard:
    """A shard being written."""

    def __init__(self, folder: Path, manifest: Manifest, shard: int) -> None:
        self.shard = shard
        self._stack = contextlib.ExitStack()
        stream = self._stack.enter_context(writing_shard(folder, manifest, shard))
        self._writer: Writer = shard_writer(stream, manifest, shard)
        self._sums = Summaries(manifest.identity["summary"])
        self._failures: list[Failure] = []

    def add(self, rows: Rows | None, failures: list[Failure]) -> None:
        self._failures += failures
        if rows is None:
            return
        self._writer.add(rows)
        if rows.maps is not None and rows.classes is not None:
            if not isinstance(rows.maps, Tensor):
                raise InputError("--summary: maps of several shapes have no common sum")
            self._sums.add(rows.maps, rows.classes)

    def commit(self) -> Record:
        record = self._writer.finish(self._sums.tensors(), self._failures)
        self._stack.close()
        return record

    def abandon(self, error: Exception) -> Exception:
        """Drop the file; returns the error as what writes files tells it."""
        try:
            self._stack.__exit__(type(error), error, error.__traceback__)
        except Exception as told:
            return told
        return error


class Sink:
    """Writes shards in a thread of its own.

    Args:
        folder, manifest: the job.

    Attributes:
        busy: seconds spent writing.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._queue: queue.Queue[tuple[Task, Rows | None, list[Failure]] | None] = queue.Queue(2)
        self._done: queue.Queue[tuple[int, Record | Exception]] = queue.Queue()
        self._open: _OpenShard | None = None
        self._broken: int | None = None
        self.busy = 0.0
        self._thread = threading.Thread(target=self._run, name="relprop-write", daemon=True)
        self._thread.start()

    def put(self, task: Task, rows: Rows | None, failures: list[Failure]) -> None:
        """Hand over a batch; waits while two others wait."""
        self._queue.put((task, rows, failures))

    def results(self) -> Iterator[tuple[int, Record | Exception]]:
        """The shards that were finished, or could not be written, since the last call."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._done.get_nowait()

    def close(self) -> None:
        """Write what was handed over; a shard that is not whole is dropped."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (message := self._queue.get()) is not None:
            started = time.perf_counter()
            self._guarded(self._write, *message)
            self.busy += time.perf_counter() - started
        if self._open is not None:
            self._open.abandon(Abandoned())

    def _guarded(self, write: Callable[..., None], task: Task, *rest: object) -> None:
        if task.shard == self._broken:
            return
        try:
            write(task, *rest)
        except Exception as error:
            told = error if self._open is None else self._open.abandon(error)
            self._open, self._broken = None, task.shard
            self._done.put((task.shard, told))

    def _write(self, task: Task, rows: Rows | None, failures: list[Failure]) -> None:
        self._broken = None
        if self._open is None:
            self._open = _OpenShard(self._folder, self._manifest, task.shard)
        self._open.add(rows, failures)
        if task.last:
            record = self._open.commit()
            self._open = None
            self._done.put((task.shard, record))
