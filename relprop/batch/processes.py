"""Several workers of one machine, in processes of their own; one that is killed is replaced."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from relprop.batch.locks import JobLock
from relprop.batch.preparing import join_job, local_device, readers_of
from relprop.batch.spec import JobSpec
from relprop.batch.status import Status, Stop
from relprop.batch.worker import Tally, Worker, shard_order
from relprop.errors import RelpropError
from relprop.io.files import printable

__all__ = ["run_processes"]

RESTARTS = 20
WAIT_SECONDS = 0.5


class _Told:
    """Sends what a worker reports to the process that started it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def advance(self, samples: int, busy: dict[str, float]) -> None:
        self._pipe.send(("advance", samples, dict(busy)))

    def line(self, text: str) -> None:
        self._pipe.send(("line", text))


def run_processes(spec: JobSpec, status: Status, stop: Stop) -> Tally:
    """Run `spec.workers` workers and wait for them.

    A second signal kills them.  A worker that dies is started again, at most 20 times in all.
    """
    running: dict[Any, tuple[int, BaseProcess]] = {}
    tally = Tally()
    restarts = 0
    try:
        for rank in range(spec.workers):
            pipe, process = _start(spec, rank)
            running[pipe] = rank, process
        told = False
        while running:
            if stop() and not told:
                told = True
                for _, process in running.values():
                    process.terminate()
            for pipe in wait(list(running), WAIT_SECONDS):
                rank, process = running[pipe]
                message = _received(pipe)
                if message is not None and message[0] != "tally":
                    _relay(message, rank, status)
                    continue
                del running[pipe]
                process.join()
                if message is not None:
                    tally.add(message[1])
                    continue
                code = process.exitcode or 0
                cause = signal.Signals(-code).name if code < 0 else f"exit status {code}"
                restarts += 1
                if stop() or restarts > RESTARTS:
                    tally.error = tally.error or f"worker {rank} ended by {cause}"
                    continue
                status.line(f"worker {rank} ended by {cause}; started again")
                pipe, process = _start(spec, rank)
                running[pipe] = rank, process
    finally:
        for _, process in running.values():
            process.kill()
    tally.stopped |= stop()
    return tally


def _received(pipe: Any) -> Any:
    """The next message; None when the worker is gone."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


def _relay(message: Any, rank: int, status: Status) -> None:
    if message[0] == "line":
        status.line(message[1])
    else:
        status.advance(message[1], message[2], rank)


def _start(spec: JobSpec, rank: int) -> tuple[Any, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(spec, rank, theirs))
    process.start()
    theirs.close()
    return ours, process


def _work(spec: JobSpec, rank: int, pipe: Connection) -> None:
    """The life of one worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent passes it on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    told, tally, stop = _Told(pipe), Tally(), Stop()
    with contextlib.suppress(KeyboardInterrupt), stop.listening(False, (signal.SIGTERM,)):
        folder = Path(spec.job)
        worker = None
        try:
            prepared, manifest = join_job(spec, folder, local_device(spec, rank))
            lock = JobLock(folder)
            worker = Worker(spec, prepared, manifest, folder, lock, told, stop)
            readers = readers_of(spec, prepared.source.read_slice is not None)
            tally = worker.run(shard_order(folder, manifest, rank, spec.workers), readers)
        except RelpropError as error:
            tally = worker.tally if worker is not None else tally
            tally.error = printable(error, 2000)
    with contextlib.suppress(OSError):
        pipe.send(("tally", tally))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
