"""Fetching a data set's IDX files from its public mirrors, checked by SHA-256."""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.request
import zlib
from http.client import HTTPException
from pathlib import Path
from typing import IO

from relprop.atomic import replacing
from relprop.data.sets import DataSet, files_of, lookup
from relprop.errors import FileFormatError

__all__ = ["cache_folder", "download", "fetch_split"]

# The largest file, the training images, holds 47,040,016 bytes.
MAX_BYTES = 1 << 26
TIMEOUT_SECONDS = 20


def cache_folder(name: str) -> Path:
    """`$RELPROP_DATA/<name>`, else `$XDG_CACHE_HOME/relprop/<name>`, else `~/.cache/...`."""
    if chosen := os.environ.get("RELPROP_DATA"):
        return Path(chosen) / name
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "relprop" / name


def download(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    """Download all four files of a data set, unpacked, into `root` (default: the cache folder).

    Files already there with the right digest are kept.  Returns the folder.

    Raises: FileFormatError where no mirror gives a file with the right SHA-256.
    """
    dataset = lookup(name)
    folder = Path(root) if root is not None else cache_folder(name)
    for split in ("train", "test"):
        fetch_split(dataset, split, folder)
    return folder


def fetch_split(dataset: DataSet, split: str, folder: Path) -> None:
    """Download what `folder` lacks of one split."""
    for file in files_of(split):
        target = folder / file
        if not target.is_file() or _digest(target) != dataset.digests[file]:
            _fetch(dataset, file, target)


def _fetch(dataset: DataSet, file: str, target: Path) -> None:
    failures = []
    for mirror in dataset.mirrors:
        url = f"{mirror}{file}.gz"
        try:
            with _open(url) as response, gzip.open(response) as stream:
                content = stream.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise ValueError(f"the content is larger than {MAX_BYTES} bytes")
            digest = hashlib.sha256(content).hexdigest()
            if digest != dataset.digests[file]:
                raise ValueError(f"SHA-256 of the content is {digest}")
            with replacing(target) as temporary:
                temporary.write_bytes(content)
            return
        except (OSError, EOFError, ValueError, zlib.error, HTTPException) as error:
            failures.append(f"{url}: {error}")
    raise FileFormatError(
        f"{dataset.title}: no mirror gave {file} with SHA-256 {dataset.digests[file]}: "
        + "; ".join(failures)
    )


def _open(url: str) -> IO[bytes]:
    response: IO[bytes] = urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS)
    return response


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
