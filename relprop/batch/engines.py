"""Running a job: in this process, in several of this machine, as a rank, or by Ray."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from relprop.atomic import remove_leftovers
from relprop.batch.files import open_shard, present_shards
from relprop.batch.locks import JobLock
from relprop.batch.manifest import FILE, Manifest, Record, read_manifest, write_manifest
from relprop.batch.preparing import local_device, made_manifest, prepare, readers_of
from relprop.batch.rayengine import require_ray, run_ray
from relprop.batch.spec import JobSpec
from relprop.batch.status import Status, Stop, closing
from relprop.batch.worker import Tally, Worker, shard_order
from relprop.errors import FileFormatError, InputError
from relprop.io.files import listed, printable
from relprop.io.tables import pyarrow_parquet

__all__ = ["run_job", "seal"]

INTERRUPTED = 130


def run_job(spec: JobSpec) -> int:
    """Run a job, or what is left of it.

    Args:
        spec: the job; its folder is made if need be.

    Returns:
        0 if every sample is explained; 1 if some could not be read, explained or written; 2 if the
        job had to give up; 130 if it was told to stop.

    Raises:
        RelpropError: nothing could be begun: it says why.
    """
    rank, world = _rank(spec)
    _require_extras(spec)
    folder = Path(spec.job)
    _make_folder(folder)
    lock = JobLock(folder)
    try:
        if spec.engine == "torchrun":
            lock.take_rank(rank)
        else:
            lock.take_job()
        return _run(spec, folder, lock, rank, world)
    finally:
        lock.close()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileFormatError(f"{printable(folder)}: cannot be made ({reason})") from None


def _require_extras(spec: JobSpec) -> None:
    """Refuse, before anything is begun, what would fail for want of a package; data say it too.

    Raises:
        RelpropError: has the line that installs it.
    """
    if spec.engine == "ray":
        require_ray()
    if spec.format == "parquet":
        pyarrow_parquet()


def _rank(spec: JobSpec) -> tuple[int, int]:
    if spec.engine != "torchrun":
        return 0, 1
    words = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")]
    if not all(word.isdecimal() for word in words) or int(words[0]) >= int(words[1]):
        raise InputError(
            f"--engine torchrun: RANK, WORLD_SIZE are {', '.join(map(repr, words))}; "
            "start it with torchrun --nproc-per-node N -m relprop explain …, or set both in each "
            "task of a scheduler's array"
        )
    return int(words[0]), int(words[1])


def _run(spec: JobSpec, folder: Path, lock: JobLock, rank: int, world: int) -> int:
    many = spec.engine == "ray" or (spec.engine == "local" and spec.workers > 1)
    place = int(os.environ.get("LOCAL_RANK", rank))
    device = local_device(spec, place) if spec.engine == "torchrun" else None
    prepared = prepare(spec, device)
    manifest = made_manifest(prepared, spec, folder, lock)
    stop = Stop()
    status = Status(manifest.samples, spec.quiet, spec.workers if many else 1)
    if prepared.source.passed and not spec.quiet:
        status.line(f"no images, passed over: {listed(prepared.source.passed)}")
    with stop.listening(not spec.quiet):
        if spec.engine == "ray":
            tally = run_ray(spec, manifest, folder, status, stop)
        elif many:
            from relprop.batch.processes import run_processes

            tally = run_processes(spec, status, stop)
        else:
            worker = Worker(spec, prepared, manifest, folder, lock, status, stop)
            readers = readers_of(spec, prepared.source.read_slice is not None)
            order = shard_order(folder, manifest, rank, world)
            try:
                tally = worker.run(order, readers)
            finally:
                status.clear()
    status.clear()
    return _close(spec, folder, lock, manifest, tally, status, world)


def _close(
    spec: JobSpec,
    folder: Path,
    lock: JobLock,
    manifest: Manifest,
    tally: Tally,
    status: Status,
    world: int,
) -> int:
    """Bring the manifest up to date, say what was done, and tell the exit status."""
    if tally.error:
        status.line(tally.error)
    if not (folder / FILE).is_file():
        return 2
    missing = manifest.count - len(present_shards(folder, manifest))
    explained, failed = tally.explained, tally.failed
    if world == 1 or not missing:
        sealed = seal(folder, lock)
        explained = sum(record.explained for record in sealed.shards)
        failed = sum(record.failed for record in sealed.shards)
        missing = manifest.count - len(sealed.shards)
    if not spec.quiet:
        print(closing(tally, 1 if spec.engine == "torchrun" else spec.workers))
        print(_outcome(spec, explained, failed, missing, tally.stopped))
    if tally.error:
        return 2
    if tally.stopped:
        return INTERRUPTED
    return 1 if failed or tally.unwritten or (missing and world == 1) else 0


def _outcome(spec: JobSpec, explained: int, failed: int, missing: int, stopped: bool) -> str:
    words = f"{spec.job}: {explained} explained by {spec.method}, {failed} failed"
    if missing:
        words += f", {missing} shards to do"
        words += "; run the command again to go on" if stopped else ""
    return words


def seal(folder: Path, lock: JobLock) -> Manifest:
    """Write into the manifest what the shards that are there hold; returns it."""
    with lock.making():
        remove_leftovers(folder / FILE)
        manifest = read_manifest(folder)
        records: list[Record] = []
        for shard in sorted(present_shards(folder, manifest)):
            try:
                records.append(open_shard(folder, manifest, shard).record)
            except FileFormatError:
                continue  # damaged: a rerun does it again, verify says so
        if tuple(records) != manifest.shards:
            manifest = replace(manifest, shards=tuple(records))
            write_manifest(folder, manifest)
    return manifest
