"""kill -9 at ten random moments for each engine: of a whole job, and of one process below it.

Jobs run in processes forked from this one, which has imported everything already, so that a kill
falls into the work and not into the imports.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from job_support import everything, files_of

from relprop.batch import JobSpec, run_job, verify_job

KILLS = 5
"""Of each kind: ten for an engine, ten of a lone process."""

ENGINES: dict[str, dict[str, Any]] = {
    "one": {"readers": 0},
    "readers": {"readers": 1},
    "processes": {"workers": 2, "readers": 0},
    "ranks": {"engine": "torchrun", "readers": 0},
    "ray": {"engine": "ray", "workers": 2},
}
QUICK = ("one", "readers")


def _spec(home: Path, name: str, **options: Any) -> JobSpec:
    given = {"model": "networks_for_jobs:net", "data": "networks_for_jobs:Slow", "trust": True}
    fixed = {"shard_size": 4, "batch_size": 2, "threads": 1, "quiet": True}
    return JobSpec(job=str(home / name), **{**given, **fixed, **options})


def _begin(spec: JobSpec) -> Any:
    """A process, in a group of its own, that runs the job; two ranks are two such processes."""

    def life(rank: int) -> None:
        os.setpgid(0, 0)
        os.environ.update(RANK=str(rank), WORLD_SIZE="2")
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        os._exit(run_job(spec))

    context = multiprocessing.get_context("fork")
    ranks = 2 if spec.engine == "torchrun" else 1
    processes = [context.Process(target=life, args=(rank,)) for rank in range(ranks)]
    for process in processes:
        process.start()
    return processes


def _below(pid: int) -> list[int]:
    """All descendants of a process."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        own = [int(word) for word in path.read_text().split()]
    except OSError:
        return []
    return own + [pid for child in own for pid in _below(child)]


def _worker_below(pid: int, ray: bool) -> list[int]:
    """The processes that read or explain for a job."""

    def words(child: int) -> bytes:
        try:
            return Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            return b""

    if ray:
        return [child for child in _below(pid) if words(child).startswith(b"ray::")]
    return [child for child in _below(pid) if b"resource_tracker" not in words(child)]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it has just ended by itself


def _kill_all(processes: Any) -> None:
    """Kill a job's processes, and everything below them, at once."""
    for pid in [pid for process in processes for pid in [process.pid, *_below(process.pid)]]:
        _kill(pid)
    for process in processes:
        process.join()


def _end(processes: Any, seconds: float) -> None:
    """Let a job end; what has not ended by then is killed."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    if any(process.is_alive() for process in processes):
        _kill_all(processes)


def _timed(run: Callable[[], None]) -> float:
    begun = time.monotonic()
    run()
    return time.monotonic() - begun


@pytest.mark.parametrize(
    ("engine", "victim"),
    [
        pytest.param(engine, victim, marks=() if engine in QUICK else pytest.mark.slow)
        for engine in ENGINES
        for victim in ("whole", "worker")
        if (engine, victim) != ("one", "worker")
    ],
)
def test_killed_at_random_moments(engine: str, victim: str, home: Path) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    whole = _begin(_spec(home, "whole"))
    _end(whole, 60)
    assert [process.exitcode for process in whole] == [0]
    spec, folder = _spec(home, "job", **ENGINES[engine]), home / "job"

    def undisturbed() -> None:
        processes = _begin(_spec(home, "timed", **ENGINES[engine]))
        _end(processes, 100)
        assert {process.exitcode for process in processes} == {0}

    seconds = _timed(undisturbed)
    assert files_of(home / "timed") == files_of(home / "whole")
    chance = random.Random(f"{engine} {victim}")
    killed = 0
    while killed < KILLS * (2 if engine == "one" else 1):
        if verify_done(folder):
            shutil.rmtree(folder)  # it is done too early: begin again
        processes = _begin(spec)
        time.sleep(seconds * chance.uniform(0.2, 0.95))
        if victim == "whole":
            _kill_all(processes)
            killed += 1
        else:
            below = [pid for p in processes for pid in _worker_below(p.pid, engine == "ray")]
            own = [p.pid for p in processes] if engine == "ranks" else []
            if below or own:
                _kill(chance.choice(below or own))
                killed += 1
            _end(processes, 4 * seconds + 20)
        if (folder / "manifest.json").exists():
            assert not verify_job(folder).faults
    last = _begin(spec)
    _end(last, 4 * seconds + 20)
    assert {process.exitcode for process in last} == {0}
    assert verify_job(folder).ok and everything(folder)["index"].tolist() == list(range(48))
    assert files_of(folder) == files_of(home / "whole")


def verify_done(folder: Path) -> bool:
    """Whether a job has nothing left to do."""
    return (folder / "manifest.json").exists() and verify_job(folder).ok
