"""Jobs to be timed: model captured and data open before the clock starts, nothing printed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from relprop.batch import JobSpec
from relprop.batch.locks import JobLock
from relprop.batch.manifest import Manifest
from relprop.batch.preparing import Prepared, made_manifest
from relprop.batch.worker import Tally, Worker

__all__ = ["FreshJob", "fresh_job"]


class Silent:
    """A report that nobody reads."""

    def advance(self, samples: int, busy: dict[str, float]) -> None:
        """Nothing."""

    def line(self, text: str) -> None:
        """Print what went wrong."""
        print(text)


class FreshJob:
    """A job of which nothing is done yet.

    Args:
        prepared, spec, manifest, folder, lock: the job, opened.
    """

    def __init__(
        self, prepared: Prepared, spec: JobSpec, manifest: Manifest, folder: Path, lock: JobLock
    ) -> None:
        self.prepared, self.spec, self.manifest = prepared, spec, manifest
        self.folder, self.lock = folder, lock

    def run(self, shards: Iterable[int]) -> Tally:
        """Do some of the shards, from reading to the disk."""
        worker = Worker(
            self.spec, self.prepared, self.manifest, self.folder, self.lock, Silent(), lambda: False
        )
        return worker.run(shards, self.spec.readers or 0)

    def written(self) -> int:
        """Bytes of the shards that are there."""
        return sum(path.stat().st_size for path in self.folder.rglob("shard-*"))


@contextmanager
def fresh_job(
    prepared: Prepared, spec: JobSpec, place: Path | None = None, samples: int | None = None
) -> Iterator[FreshJob]:
    """A job in a temporary folder of its own.

    Args:
        prepared, spec: what `prepare` made, and of which words.
        place: where the folder is made.
        samples: only that many, the first.
    """
    wanted = replace(prepared.wanted, samples=samples or prepared.wanted.samples)
    with tempfile.TemporaryDirectory(prefix="relprop-job-", dir=place) as name:
        lock = JobLock(Path(name))
        try:
            part = replace(prepared, wanted=wanted)
            manifest = made_manifest(part, spec, Path(name), lock)
            yield FreshJob(part, spec, manifest, Path(name), lock)
        finally:
            lock.close()
