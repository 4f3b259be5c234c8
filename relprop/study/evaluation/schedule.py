"""Measuring many cells: those known before are read, the others shared out among processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager

import torch

from relprop.errors import FileFormatError
from relprop.study.evaluation.cells import Cell, Setting
from relprop.study.evaluation.measure import Job

__all__ = ["evaluate"]

Told = Callable[[Setting, Cell, bool], None]
"""Called for each cell as it comes, with whether it was known before."""

_SLOWEST_FIRST = ("conv_plus_", "conv_")


def evaluate(
    jobs: Sequence[Job], workers: int = 1, told: Told = lambda *_: None
) -> dict[Setting, Cell | str]:
    """The cells of all jobs; for those whose trained network is missing, why.

    Args:
        jobs: the cells to measure.
        workers: processes of one thread each; 1 measures here, with all of torch's threads.
        told: hears of every cell.

    Raises:
        FileFormatError: a data set is missing; it says how to get one.
        RelpropError: a cell cannot be measured; those measured before stay.
    """
    found: dict[Setting, Cell | str] = {}
    left = []
    for job in jobs:
        try:
            known = job.known()
        except FileFormatError as error:
            found[job.setting] = str(error)
            continue
        if known is None:
            left.append(job)
        else:
            found[job.setting] = known
            told(job.setting, known, True)
    for job in {job.setting.task: job for job in left}.values():
        job.task()  # a missing data set is found here once, not by every process
    for setting, cell in _measured(sorted(left, key=_rank), min(workers, len(left))):
        found[setting] = cell
        told(setting, cell, False)
    return {job.setting: found[job.setting] for job in jobs}


def _rank(job: Job) -> int:
    """Slow cells first, so that no process ends with one of them alone."""
    prefixes = (*_SLOWEST_FIRST, "")
    return next(i for i, prefix in enumerate(prefixes) if job.setting.model.startswith(prefix))


def _measured(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Setting, Cell]]:
    if workers < 2:
        yield from ((job.setting, job.run()) for job in jobs)
        return
    # fork would copy torch's threads and locks in whatever state they are
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, context, _begin) as pool, _stopping(before):
        futures = {pool.submit(job.run): job.setting for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _begin() -> None:
    """A process for cells: one thread, and gone without a word at Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)


@contextmanager
def _stopping(before: Iterable[multiprocessing.process.BaseProcess]) -> Iterator[None]:
    """On an error or Ctrl-C, end the processes begun meanwhile instead of waiting for them."""
    try:
        yield
    except BaseException:
        for process in set(multiprocessing.active_children()) - set(before):
            process.terminate()
        raise
