"""Reading ahead of the explaining, in a thread or in processes; or between its batches.

A thread beside explaining on a CPU gains nothing: the cores are busy, and the explaining threads,
which wait for one another at every product, wait for the one that lost its core to reading (a
quarter of the throughput of a small network on two cores).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relprop.batch.loading import Loaded, Loader, Task
from relprop.errors import RelpropError

__all__ = ["Feed"]

AHEAD = 2
"""Batches read ahead for each reader."""

RESTARTS = 20
WATCH_SECONDS = 1.0


class Feed:
    """Reads batches and hands them out in order.

    A reading process that is killed is replaced, and what it had not delivered is read again.

    Args:
        load: reads one batch.
        readers: processes that read ahead; 0 is a thread of this one, or none, on a CPU.
        cuda: whether a GPU explains: batches are copied into page-locked memory.
    """

    def __init__(self, load: Loader, readers: int, cuda: bool) -> None:
        self._load, self._readers, self._cuda = load, readers, cuda
        self._executor = self._start()
        self._depth = AHEAD * max(1, readers) if readers or cuda else 1
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
            yield self._pinned(loaded) if self._cuda else loaded

    def close(self) -> None:
        """End the readers."""
        self._executor.shutdown(wait=self._readers == 0, cancel_futures=True)

    def _start(self) -> Executor:
        if not self._readers:
            return ThreadPoolExecutor(1, "relprop-read") if self._cuda else _AtOnce()
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
        return replace(loaded, groups=groups)


class _AtOnce(Executor):
    """Does what is submitted before it returns."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


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
