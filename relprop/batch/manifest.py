"""A job's manifest: what the job is, and, once shards are there, what each of them holds.

`manifest.json` fixes everything that the bits of a shard depend on, the batch size among it.  A
shard's file name follows from its number; names in a manifest are checked, never followed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from relprop.atomic import replacing
from relprop.batch.spec import FORMATS, MAX_SHARD_SIZE
from relprop.errors import FileFormatError, InputError
from relprop.io.files import printable, require_file

__all__ = ["FILE", "Manifest", "Record", "read_manifest", "require_same", "write_manifest"]

FILE = "manifest.json"
FORMAT = "relprop.job"
VERSION = 1
MAX_BYTES = 2**30
MAX_SAMPLES = 2**48
FOLDER_SHARDS = 1000
"""Shards of one sub-folder: file systems dislike folders of many files."""


@dataclass(frozen=True)
class Record:
    """What a manifest says of a shard that is there.

    Attributes:
        shard: its number.
        explained, failed: how many samples.
        bytes: the file's size.
        sha256: the checksum that the file itself states.
    """

    shard: int
    explained: int
    failed: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a job is.

    Attributes:
        identity: model, weights, method, data and form of the output: what may not change.
        environment: versions, device and threads, on which last bits depend.
        samples: inputs of the data set.
        shard_size: samples of a shard; the last may have fewer.
        batch_size: samples explained together, counted from a shard's first.
        shards: the shards that were there when the manifest was written.
    """

    identity: dict[str, Any]
    environment: dict[str, Any]
    samples: int
    shard_size: int
    batch_size: int
    shards: tuple[Record, ...] = ()

    @property
    def id(self) -> str:
        """What every shard of this job carries: a hash of all that its bits depend on."""
        words = [self.identity, self.environment, self.samples, self.shard_size, self.batch_size]
        return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def count(self) -> int:
        """The number of shards."""
        return math.ceil(self.samples / self.shard_size)

    @property
    def format(self) -> str:
        """The kind of the shards' files."""
        return str(self.identity["format"])

    def span(self, shard: int) -> tuple[int, int]:
        """The samples `[first, stop)` of a shard."""
        first = shard * self.shard_size
        return first, min(first + self.shard_size, self.samples)

    def name(self, shard: int) -> str:
        """The file of a shard, relative to the job's folder."""
        return f"shards/{shard // FOLDER_SHARDS:04d}/shard-{shard:06d}.{self.format}"

    def difference(self, wanted: Manifest) -> str:
        """What of a wanted job is not what this one is, in words; empty if all is the same."""
        keys = [key for key, value in self.identity.items() if wanted.identity.get(key) != value]
        if len(keys) > 1:  # a plan follows from model and method: said where it alone is another
            keys = [key for key in keys if key != "plan"]
        changed = [
            f"{key} is {printable(wanted.identity.get(key), 80)}, "
            f"was {printable(self.identity[key], 80)}"
            for key in keys
        ]
        if wanted.samples != self.samples or wanted.shard_size != self.shard_size:
            changed.append(
                f"{wanted.samples} samples in shards of {wanted.shard_size}, was {self.samples} in "
                f"shards of {self.shard_size}"
            )
        return "; ".join(changed)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, whole or not at all."""
    shards = [
        {
            "shard": record.shard,
            "file": manifest.name(record.shard),
            "samples": list(manifest.span(record.shard)),
            "explained": record.explained,
            "failed": record.failed,
            "bytes": record.bytes,
            "sha256": record.sha256,
        }
        for record in manifest.shards
    ]
    words = {
        "format": FORMAT,
        "version": VERSION,
        "id": manifest.id,
        "identity": manifest.identity,
        "environment": manifest.environment,
        "samples": manifest.samples,
        "shard_size": manifest.shard_size,
        "batch_size": manifest.batch_size,
        "shard_count": manifest.count,
        "shards": shards,
    }
    with replacing(folder / FILE) as temporary:
        temporary.write_text(json.dumps(words, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest, taking nothing in it on trust.

    Raises:
        FileFormatError: missing, damaged, of another kind or version, or saying what cannot be.
    """
    path = folder / FILE
    if require_file(path) > MAX_BYTES:
        raise FileFormatError(f"{printable(path)}: larger than a manifest can be")
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{printable(path)}: not readable ({printable(error)})") from None
    try:
        return _checked(words)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{printable(path)}: damaged ({printable(error)})") from None


def _checked(words: dict[str, Any]) -> Manifest:
    if words["format"] != FORMAT or words["version"] != VERSION:
        raise ValueError(
            f"format {printable(words['format'], 40)!r}, version {printable(words['version'], 40)};"
            f" expected {FORMAT!r}, version {VERSION}"
        )
    identity, environment = words["identity"], words["environment"]
    if not isinstance(identity, dict) or not isinstance(environment, dict):
        raise ValueError("identity and environment are not objects")
    if identity["format"] not in FORMATS:
        raise ValueError(f"shards of format {printable(identity['format'], 40)!r}")
    manifest = Manifest(
        identity,
        environment,
        _whole(words, "samples", 1, MAX_SAMPLES),
        _whole(words, "shard_size", 1, MAX_SHARD_SIZE),
        _whole(words, "batch_size", 1, MAX_SHARD_SIZE),
    )
    if words["id"] != manifest.id:
        raise ValueError("its id is not that of its content: it was edited, or is damaged")
    return replace(manifest, shards=_records(manifest, words["shards"]))


def _records(manifest: Manifest, rows: Sequence[dict[str, Any]]) -> tuple[Record, ...]:
    records: list[Record] = []
    for row in rows:
        shard = _whole(row, "shard", 0, manifest.count - 1)
        if row["file"] != manifest.name(shard):
            raise ValueError(f"shard {shard} in a file {printable(row['file'], 80)!r}")
        if records and shard <= records[-1].shard:
            raise ValueError(f"shard {shard} is listed twice, or out of order")
        first, stop = manifest.span(shard)
        explained = _whole(row, "explained", 0, stop - first)
        failed = _whole(row, "failed", stop - first - explained, stop - first - explained)
        size = _whole(row, "bytes", 1, MAX_SAMPLES)
        records.append(Record(shard, explained, failed, size, str(row["sha256"])))
    return tuple(records)


def _whole(words: dict[str, Any], key: str, low: int, high: int) -> int:
    value = words[key]
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{key} is {printable(value, 40)}; expected {low} to {high}")
    return value


def require_same(old: Manifest, wanted: Manifest, folder: Path, accept_versions: bool) -> None:
    """Refuse to go on in a folder with another model, method, data set or form.

    Raises:
        InputError: something differs; it says what.
    """
    if changed := old.difference(wanted):
        raise InputError(
            f"{printable(folder)}: holds another job: {changed}; give this one a folder of its own"
        )
    ours = {k: v for k, v in old.environment.items() if k != "threads"}
    theirs = {k: v for k, v in wanted.environment.items() if k != "threads"}
    if ours != theirs and not accept_versions:
        raise InputError(
            f"{printable(folder)}: begun with {_pairs(ours)}, this is {_pairs(theirs)}, so last "
            "bits may differ; use what it was begun with, or add --accept-versions"
        )


def _pairs(words: dict[str, Any]) -> str:
    return printable(", ".join(f"{key} {value}" for key, value in words.items()), 120)
