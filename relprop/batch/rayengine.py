"""Many machines: Ray Data hands shards to a pool of actors, each of which commits its own files.

One row is one shard.  An actor holds model, plan and data; it needs the job's folder and the data
under the same paths on every machine.  Needs ray (`pip install 'relprop[ray]'`).
"""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path
from typing import Any

from relprop.batch.files import present_shards
from relprop.batch.locks import JobLock
from relprop.batch.manifest import Manifest
from relprop.batch.preparing import join_job
from relprop.batch.spec import JobSpec
from relprop.batch.status import Status, Stop
from relprop.batch.worker import Tally, Worker
from relprop.errors import FileFormatError, RelpropError
from relprop.io.files import printable

__all__ = ["require_ray", "run_ray"]


def run_ray(spec: JobSpec, manifest: Manifest, folder: Path, status: Status, stop: Stop) -> Tally:
    """Run a job on the Ray cluster of RAY_ADDRESS, or on this machine without one.

    Ray starts actors that die again, and repeats what they were at.  Once `stop` is asked the
    actors end, and what they were at is left to the next run.
    """
    ray = require_ray()
    threads = int(manifest.environment["threads"])
    began = not ray.is_initialized()
    if began:
        _begin(ray, spec.workers * threads)
    tally = Tally()
    began_at, ended_at = math.inf, 0.0
    try:
        for row in _rows(ray, spec, manifest, threads):
            _note(row, tally, status)
            # Ray's own start is not counted, and rows may come long after their shards were done
            began_at, ended_at = min(began_at, row["began"]), max(ended_at, row["ended"])
            tally.seconds = ended_at - began_at
            if stop():
                tally.stopped = True
                break
    except Exception as error:
        if isinstance(error, RelpropError):
            raise
        raise RelpropError(f"Ray: {printable(_cause(error), 500)}") from error
    finally:
        if began:
            ray.shutdown()
    if len(present_shards(folder, manifest)) == manifest.count:
        tally.stopped = False
    return tally


def require_ray() -> Any:
    """The module ray, or an error that says how to get it."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise RelpropError("--engine ray needs Ray: pip install 'relprop[ray]'") from None
    return ray


def _begin(ray: Any, processors: int) -> None:
    """Join the cluster that the environment names, or start one here."""
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = os.environ.get("RAY_ADDRESS")
    if not address:  # "local": else Ray joins what was ever started on this machine
        cores = max(os.cpu_count() or 1, processors)
        ray.init("local", num_cpus=cores, include_dashboard=False, **quiet)
        return
    try:
        ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RelpropError(
            f"RAY_ADDRESS {printable(address)}: {printable(error)}; start that cluster ('ray "
            "start'), give this process its token if it wants one, or unset RAY_ADDRESS"
        ) from error


def _rows(ray: Any, spec: JobSpec, manifest: Manifest, threads: int) -> Any:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    shards = ray.data.from_items(
        [{"shard": shard} for shard in range(manifest.count)], override_num_blocks=manifest.count
    )
    gpus = 1 if _on_gpu(manifest) else 0
    done = shards.map_batches(
        ShardActor,
        fn_constructor_args=(spec, os.getcwd()),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=spec.workers),
        num_cpus=0 if gpus else threads,
        num_gpus=gpus,
    )
    return done.iter_rows()


def _on_gpu(manifest: Manifest) -> bool:
    return str(manifest.environment["device"]) != "cpu"


def _note(row: dict[str, Any], tally: Tally, status: Status) -> None:
    for line in filter(None, str(row["lines"]).split("\n")):
        status.line(line)
    if row["error"]:
        raise RelpropError(str(row["error"]))
    own = Tally(
        written=int(row["written"]),
        found=int(row["found"]),
        unwritten=int(row["unwritten"]),
        explained=int(row["explained"]),
        failed=int(row["failed"]),
        samples=int(row["samples"]),
        busy={stage: float(row[stage]) for stage in tally.busy},
    )
    tally.add(own)
    status.advance(own.explained + own.failed, tally.busy)


def _cause(error: BaseException) -> str:
    """The last line of what Ray wraps around an error."""
    return str(error).strip().rpartition("\n")[2] or type(error).__name__


class _Kept:
    """Keeps what a worker reports, to be told with its row."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def advance(self, samples: int, busy: dict[str, float]) -> None:
        """The row says it."""

    def line(self, text: str) -> None:
        self.lines.append(text)


class ShardActor:
    """Does shards, one row each.

    Args:
        spec: the job.
        home: the folder that its relative paths start from.
    """

    def __init__(self, spec: JobSpec, home: str) -> None:
        os.chdir(home)
        self.spec, self.folder = spec, Path(spec.job)
        self.prepared, self.manifest = join_job(spec, self.folder)
        self.lock = JobLock(self.folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do the shards of a batch of rows; a row each tells what was done."""
        rows = [self._row(int(shard)) for shard in batch["shard"]]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _row(self, shard: int) -> dict[str, Any]:
        kept = _Kept()
        worker = Worker(
            self.spec, self.prepared, self.manifest, self.folder, self.lock, kept, lambda: False
        )
        error, began = "", time.time()
        try:
            worker.run([shard], self.spec.readers or 0)
        except (RelpropError, FileFormatError) as problem:
            error = printable(problem, 2000)
        tally = worker.tally
        return {
            "shard": shard,
            "explained": tally.explained,
            "failed": tally.failed,
            "written": tally.written,
            "found": tally.found,
            "unwritten": tally.unwritten,
            "samples": tally.samples,
            "began": began,
            "ended": time.time(),
            **tally.busy,
            "lines": "\n".join(kept.lines),
            "error": error,
        }
