"""Verifying a job: every sample once, every checksum right."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from relprop.batch.files import Reader, open_shard, present_shards
from relprop.batch.manifest import Manifest, read_manifest
from relprop.errors import FileFormatError
from relprop.io.files import printable

__all__ = ["Verdict", "verify_job"]


@dataclass
class Verdict:
    """What `verify_job` found.

    Attributes:
        explained, failed: samples in sound shards.
        shards: sound shards.
        missing: shards without a file.
        faults: what is wrong, one sentence each.
        failures: samples that the job itself says it could not explain, one sentence each.
    """

    explained: int = 0
    failed: int = 0
    shards: int = 0
    missing: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every sample is explained, once, and every file is whole."""
        return not (self.missing or self.faults or self.failed)


def verify_job(path: Path) -> Verdict:
    """Read all of a job and check it: counts, duplicates, checksums.

    Raises:
        FileFormatError: there is no manifest, or a damaged one.
    """
    manifest = read_manifest(path)
    verdict = Verdict()
    present = present_shards(path, manifest)
    verdict.missing = sorted(set(range(manifest.count)) - present)
    known = {record.shard: record for record in manifest.shards}
    for shard in sorted(present):
        try:
            reader = open_shard(path, manifest, shard)
            reader.check_sum()
            _check_samples(reader, manifest, shard)
            record = known.get(shard)
            if record is not None and record != reader.record:
                raise FileFormatError(
                    f"{printable(reader.path)}: not the file that the manifest lists"
                )
            failures = reader.failures()
        except FileFormatError as error:
            verdict.faults.append(printable(error, 1000))
            continue
        verdict.shards += 1
        verdict.explained += reader.explained
        verdict.failed += reader.failed
        verdict.failures += [f"{f.name}: {f.reason}" for f in failures]
    return verdict


def _check_samples(reader: Reader, manifest: Manifest, shard: int) -> None:
    """Each sample of the shard stands in it once, explained or failed."""
    first, stop = manifest.span(shard)
    explained = np.asarray(reader.array("index"), np.int64)
    failed = np.array([failure.index for failure in reader.failures()], np.int64)
    every = np.sort(np.concatenate([explained, failed]))
    if len(explained) != reader.explained or len(failed) != reader.failed:
        raise FileFormatError(f"{printable(reader.path)}: its counts do not add up")
    if not np.array_equal(every, np.arange(first, stop)):
        twice = len(every) - len(np.unique(every))
        raise FileFormatError(
            f"{printable(reader.path)}: not samples {first} to {stop - 1}, each once "
            f"({twice} are there twice)"
        )
    if np.any(np.diff(explained) <= 0):
        raise FileFormatError(f"{printable(reader.path)}: its samples are out of order")
