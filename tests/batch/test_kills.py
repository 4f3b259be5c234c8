"""kill -9 at ten random moments for each engine: of a whole job, and of one process below it.

Jobs run in processes forked from this one, which has explained already, so that a kill falls into
the work and not into imports.  What other processes they start import everything anew, so a worker
is killed ten times in one job where its engine starts it again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from job_support import everything, files_of

from relprop.batch import JobSpec, run_job, verify_job
from relprop.errors import RelpropError

KILLS = 10
SAMPLES = 48
DEADLINE = 240.0
ENGINES: dict[str, dict[str, Any]] = {
    "one": {"readers": 0},
    "readers": {"readers": 1},
    "processes": {"workers": 2, "readers": 0},
    "ranks": {"engine": "torchrun", "readers": 0},
    "ray": {"engine": "ray", "workers": 2},
}
QUICK = ("one", "readers", "ranks")


def _params(*engines: str) -> list[Any]:
    """The slow ones are those whose processes import everything anew."""
    marks = {name: () if name in QUICK else pytest.mark.slow for name in engines}
    return [pytest.param(name, marks=marks[name]) for name in engines]


def _spec(home: Path, name: str, **options: Any) -> JobSpec:
    given = {"model": "networks_for_jobs:net", "data": "networks_for_jobs:Slow", "trust": True}
    fixed = {"shard_size": 4, "batch_size": 2, "threads": 1, "quiet": True, "limit": SAMPLES}
    return JobSpec(job=str(home / name), **{**given, **fixed, **options})


@pytest.fixture
def whole(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An undisturbed job, run in this process; afterwards samples take their time."""
    monkeypatch.setenv("SECONDS_A_SAMPLE", "0")
    assert run_job(_spec(home, "whole")) == 0
    monkeypatch.setenv("SECONDS_A_SAMPLE", "0.01")
    return home / "whole"


class Started:
    """A job in processes of groups of their own: two for two ranks, else one."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec, self.folder = spec, Path(spec.job)
        self.log = self.folder.with_name("log")
        self._begun = self._files()
        context = multiprocessing.get_context("fork")
        ranks = 2 if spec.engine == "torchrun" else 1
        self.processes = [context.Process(target=self._live, args=(r,)) for r in range(ranks)]
        for process in self.processes:
            process.start()

    def _live(self, rank: int) -> None:
        os.setpgid(0, 0)
        os.environ.update(RANK=str(rank), WORLD_SIZE="2")
        with self.log.open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        try:
            os._exit(run_job(self.spec))
        except RelpropError as error:
            os.write(2, f"{error}\n".encode())
            os._exit(2)

    def _files(self) -> set[str]:
        return {path.name for path in self.folder.glob("shards/*/*")}

    def running(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def until_progress(self) -> None:
        """Wait until a file is begun, or finished, that was not there at the last call."""
        deadline = time.monotonic() + DEADLINE
        while self.running() and not self._files() - self._begun:
            assert time.monotonic() < deadline, "no progress"
            time.sleep(0.01)
        self._begun = self._files()

    def below(self) -> list[int]:
        """The processes that read or explain for the job."""
        found = [pid for process in self.processes for pid in _descendants(process.pid or 0)]
        if self.spec.engine == "torchrun":
            return [process.pid or 0 for process in self.processes if process.is_alive()]
        if self.spec.engine == "ray":
            return [pid for pid in found if b"ShardActor" in _words(pid)]
        return [pid for pid in found if b"resource_tracker" not in _words(pid)]

    def kill(self) -> None:
        """Kill the job's processes, and everything below them, at once."""
        below = [pid for process in self.processes for pid in _descendants(process.pid or 0)]
        for pid in [*(process.pid or 0 for process in self.processes), *below]:
            _kill(pid)
        for process in self.processes:
            process.join()

    def end(self) -> set[int | None]:
        """Wait for the end; the exit statuses."""
        for process in self.processes:
            process.join(DEADLINE)
        if self.running():
            self.kill()
        return {process.exitcode for process in self.processes}


def _descendants(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        own = [int(word) for word in path.read_text().split()]
    except OSError:
        return []
    return own + [pid for child in own for pid in _descendants(child)]


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
        os.kill(pid, signal.SIGKILL)


def _is_done(folder: Path) -> bool:
    return (folder / "manifest.json").exists() and verify_job(folder).ok


def _require_same(spec: JobSpec, whole: Path) -> None:
    """One more run ends well, and its files are those of a job that nobody disturbed."""
    last, folder = Started(spec), Path(spec.job)
    assert last.end() == {0}, last.log.read_text()
    assert verify_job(folder).ok and everything(folder)["index"].tolist() == list(range(SAMPLES))
    assert files_of(folder) == files_of(whole)


@pytest.mark.parametrize("engine", _params(*ENGINES))
def test_the_whole_job_killed(engine: str, home: Path, whole: Path) -> None:
    """What is done stays sound, and the last run does what is missing."""
    if engine == "ray":
        pytest.importorskip("ray")
    spec, chance = _spec(home, "job", **ENGINES[engine]), random.Random(engine)
    for kill in range(KILLS):
        if _is_done(home / "job"):
            shutil.rmtree(home / "job")  # it was done too early: begin again
        job = Started(spec)
        if kill % 2:  # while it works, else while it starts
            job.until_progress()
        time.sleep(chance.uniform(0, 0.4 if kill % 2 else 2.0))
        job.kill()
        if (home / "job" / "manifest.json").exists():
            assert not verify_job(home / "job").faults
    _require_same(spec, whole)


@pytest.mark.parametrize("engine", _params("readers", "processes", "ray"))
def test_ctrl_c_and_resumed(engine: str, home: Path, whole: Path) -> None:
    """A terminal's SIGINT to the whole process group ends it with 130; the next run goes on."""
    if engine == "ray":
        pytest.importorskip("ray")
    spec = _spec(home, "job", **ENGINES[engine])
    job = Started(spec)
    while job.running() and not list(job.folder.glob("shards/*/shard-*")):
        time.sleep(0.005)
    (process,) = job.processes
    os.killpg(process.pid or 0, signal.SIGINT)
    assert job.end() == {130}, job.log.read_text()
    assert job.log.read_text() == ""  # it is quiet, and no part of it says anything
    verdict = verify_job(home / "job")
    assert not verdict.faults and 0 < verdict.explained < SAMPLES
    _require_same(spec, whole)


@pytest.mark.parametrize("engine", _params("readers", "processes", "ranks", "ray"))
def test_a_worker_killed(engine: str, home: Path, whole: Path) -> None:
    """A reader, an explaining process, a rank, a Ray actor; the job itself lives on."""
    if engine == "ray":
        pytest.importorskip("ray")
    spec, chance = _spec(home, "job", **ENGINES[engine]), random.Random(engine)
    killed = 0
    while killed < KILLS:
        shutil.rmtree(home / "job", ignore_errors=True)
        job = Started(spec)
        while job.running() and killed < KILLS:
            job.until_progress()
            time.sleep(chance.uniform(0, 0.2))
            if job.running() and (below := job.below()):
                _kill(chance.choice(below))
                killed += 1
            if engine == "ranks":
                break  # which nobody starts again: the other does it all
        statuses = job.end()
        assert 0 in statuses and statuses <= {0, -signal.SIGKILL}, job.log.read_text()
        assert not verify_job(home / "job").faults
        _require_same(spec, whole)  # a rank may have died with a shard that no other could take
