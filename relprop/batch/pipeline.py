"""The stages of one worker beside the explaining: reading ahead, and writing behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from torch import Tensor

from relprop.batch.files import Writer, shard_writer, writing_shard
from relprop.batch.loading import Loaded, Loader, Task
from relprop.batch.manifest import Manifest, Record
from relprop.batch.rows import Failure, Rows
from relprop.batch.summaries import Summaries
from relprop.errors import InputError, RelpropError

__all__ = ["Feed", "Sink"]

AHEAD = 2
"""Batches read ahead for each reader."""

RESTARTS = 20
WATCH_SECONDS = 1.0


class Feed:
    """Reads batches ahead, in a thread or in processes, and hands them out in order.

    A reading process that is killed is replaced, and what it had not delivered is read again.

    Args:
        load: reads one batch.
        readers: processes; 0 is a thread of this one.
        pin: copy batches into page-locked memory, for a GPU.
    """

    def __init__(self, load: Loader, readers: int, pin: bool) -> None:
        self._load, self._readers, self._pin = load, readers, pin
        self._executor = self._start()
        self._depth = AHEAD * max(1, readers)
        self.restarts = 0

    def __call__(self, tasks: Iterator[Task]) -> Iterator[Loaded]:
        """The batches of `tasks`, which is advanced only as far as reading goes ahead."""
        pending: deque[tuple[Task, Future[Loaded]]] = deque()
        while True:
            while len(pending) < self._depth and (task := next(tasks, None)) is not None:
                pending.append((task, self._submit(task)))
            if not pending:
                return
            try:
                loaded = pending[0][1].result()
            except BrokenProcessPool:
                self._restart()
                pending = deque((task, self._submit(task)) for task, _ in pending)
                continue
            pending.popleft()
            yield self._pinned(loaded) if self._pin else loaded

    def close(self) -> None:
        """End the readers."""
        self._executor.shutdown(wait=self._readers == 0, cancel_futures=True)

    def _start(self) -> Executor:
        if not self._readers:
            executor = ThreadPoolExecutor(1, "relprop-read")
            _keep_off_cores(executor.submit)
            return executor
        context = multiprocessing.get_context("fork")
        return ProcessPoolExecutor(self._readers, context, _begin_reader, (self._load,))

    def _restart(self) -> None:
        self.restarts += 1
        if self.restarts > RESTARTS:
            raise RelpropError(
                f"reading: its processes died {self.restarts} times, perhaps for want of memory; "
                "try --readers 0"
            )
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._executor = self._start()

    def _submit(self, task: Task) -> Future[Loaded]:
        if not self._readers:
            return self._executor.submit(self._load, task)
        try:
            return self._executor.submit(_read, task)
        except BrokenProcessPool as error:
            broken: Future[Loaded] = Future()
            broken.set_exception(error)
            return broken

    def _pinned(self, loaded: Loaded) -> Loaded:
        groups = [(places, inputs.map(Tensor.pin_memory)) for places, inputs in loaded.groups]
        return Loaded(
            loaded.task, groups, loaded.names, loaded.labels, loaded.failures, loaded.seconds
        )


def _keep_off_cores(submit: Callable[[Callable[[], None]], Future[None]]) -> None:
    """Let a thread beside the explaining one compute with one core alone.

    Two threads of a process have a team of OpenMP threads each, which wait for one another on the
    same cores.  The number is a thread's own, but new threads start with the one set last.
    """
    threads = torch.get_num_threads()
    submit(lambda: torch.set_num_threads(1)).result()
    torch.set_num_threads(threads)


_LOADER: list[Loader] = []


def _begin_reader(loader: Loader) -> None:
    """Set up a reading process: Ctrl-C is its parent's affair; it ends when its parent does."""
    _LOADER[:] = [loader]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def _read(task: Task) -> Loaded:
    return _LOADER[0](task)


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
