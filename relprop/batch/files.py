"""A job's shards as files: opened, written, removed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from relprop.atomic import replacing, sync_folder
from relprop.batch import parquet
from relprop.batch.manifest import FILE, Manifest
from relprop.batch.shard_reader import ShardReader
from relprop.batch.shard_writer import ShardWriter
from relprop.errors import FileFormatError, RelpropError
from relprop.io.files import printable

__all__ = [
    "Reader",
    "VanishedError",
    "Writer",
    "open_shard",
    "present_shards",
    "require_sound",
    "shard_writer",
    "writing_shard",
]

Reader = ShardReader | parquet.ParquetReader
Writer = ShardWriter | parquet.ParquetShardWriter


class VanishedError(RelpropError):
    """The job's folder is gone while the job runs."""


def open_shard(folder: Path, manifest: Manifest, shard: int) -> Reader:
    """Open one shard for reading.

    Raises:
        FileFormatError: missing, damaged, of another job or another shard.
    """
    kind = parquet.ParquetReader if manifest.format == "parquet" else ShardReader
    return kind(folder / manifest.name(shard), manifest, shard)


def shard_writer(stream: BinaryIO, manifest: Manifest, shard: int) -> Writer:
    """What writes a shard in the job's format into an open file."""
    kind = parquet.ParquetShardWriter if manifest.format == "parquet" else ShardWriter
    return kind(stream, manifest, shard)


@contextmanager
def writing_shard(folder: Path, manifest: Manifest, shard: int) -> Iterator[BinaryIO]:
    """An open file that becomes the shard when the block ends well, and nothing otherwise.

    Raises:
        VanishedError: the folder is no longer that of the job.
        FileFormatError: the disk is full, or writing fails otherwise.
    """
    path = folder / manifest.name(shard)
    try:
        _require_folder(folder)
        with replacing(path) as temporary:
            with temporary.open("wb") as stream:
                yield stream
            _require_folder(folder)
        sync_folder(path.parent)
    except OSError as error:
        _require_folder(folder)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = "no space left" if full else printable(error.strerror or error)
        raise FileFormatError(f"{printable(path)}: cannot be written: {what}") from None


def _require_folder(folder: Path) -> None:
    if not (folder / FILE).is_file():
        raise VanishedError(
            f"{printable(folder)}: the job's folder or its {FILE} has vanished while the job ran; "
            "what is not on the disk is lost; run the command again"
        )


def present_shards(folder: Path, manifest: Manifest) -> set[int]:
    """The shards that have a file, told from the names alone."""
    found = set()
    names = {Path(manifest.name(shard)).name: shard for shard in range(manifest.count)}
    for parent in sorted({Path(manifest.name(shard)).parent for shard in names.values()}):
        try:
            listing = os.listdir(folder / parent)
        except FileNotFoundError:
            continue
        found |= {names[name] for name in listing if name in names}
    return found


def require_sound(folder: Path, manifest: Manifest, shard: int, quick: bool) -> Reader:
    """Open a shard and check it: its header and size, and its checksum unless `quick`.

    Raises:
        FileFormatError: something is wrong with it.
    """
    reader = open_shard(folder, manifest, shard)
    if not quick:
        reader.check_sum()
    return reader
