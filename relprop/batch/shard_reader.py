"""Reading one safetensors shard, mapped; its header is checked before anything else is touched."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop.batch.manifest import Manifest, Record
from relprop.batch.rows import COLUMNS, Failure, unpack_failures
from relprop.batch.shard_writer import DATA, DTYPES, FORMAT, VERSION, checksum
from relprop.errors import FileFormatError
from relprop.io.files import printable, require_file

__all__ = ["ShardReader"]

CHUNK = 1 << 22


class ShardReader:
    """Reads one shard; its header is checked before anything else is touched.

    Attributes:
        explained, failed: how many samples.
        record: what a manifest says of it.

    Raises:
        FileFormatError: missing, damaged, of another job or another shard.
    """

    def __init__(self, path: Path, manifest: Manifest, shard: int) -> None:
        self.path, self.manifest, self.shard = path, manifest, shard
        size = require_file(path)
        try:
            self._header = _read_header(path, size)
            metadata = self._header["__metadata__"]
            _check_metadata(metadata, manifest, shard)
            self._places = _checked_places(self._header, size)
            self.explained, self.failed = int(metadata["explained"]), int(metadata["failed"])
            self.record = Record(shard, self.explained, self.failed, size, str(metadata["sha256"]))
            self._map = np.memmap(path, np.uint8, "r")
        except (KeyError, TypeError, ValueError, OSError, RecursionError) as error:
            raise FileFormatError(
                f"{printable(path)}: not a whole shard ({printable(error)})"
            ) from None

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def array(self, name: str) -> np.ndarray:
        """A tensor of the file, as a read-only view of the mapped file."""
        dtype, shape, start, stop = self._places[name]
        return self._map[DATA + start : DATA + stop].view(dtype).reshape(shape)

    def tensor(self, name: str) -> Tensor:
        """A copy of a tensor of the file."""
        array = self.array(name)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))

    def relevance(self, start: int, stop: int) -> Tensor | list[Tensor]:
        """Relevance of rows `[start, stop)`: one tensor, or a list where shapes differ."""
        found = self.array("relevance")
        if "shape" not in self:
            part = found[start:stop]
            return torch.from_numpy(part.astype(part.dtype.newbyteorder("=")))
        shapes = self.array("shape")
        ends = np.concatenate([[0], np.cumsum(shapes.prod(1))])
        return [
            torch.from_numpy(found[ends[i] : ends[i + 1]].reshape(shapes[i]).astype(found.dtype))
            for i in range(start, stop)
        ]

    def names(self, start: int = 0, stop: int | None = None) -> list[str]:
        """What the data set calls the explained samples of rows `[start, stop)`."""
        data, ends = self.array("names"), self.array("name_ends")
        stops = ends[start:stop].tolist()
        starts = [int(ends[start - 1]) if start else 0, *stops]
        return [data[a:b].tobytes().decode(errors="replace") for a, b in zip(starts, stops)]

    def failures(self) -> list[Failure]:
        """The samples that could not be explained."""
        return unpack_failures(self.array("failures").tobytes())

    def summaries(self) -> dict[str, Tensor]:
        """The shard's sums, see `relprop.batch.summaries`."""
        return {name: self.tensor(name) for name in self._places if name.startswith("summary.")}

    def check_sum(self) -> None:
        """Read the whole file and compare its checksum.

        Raises:
            FileFormatError: it differs.
        """
        found = hashlib.sha256()
        with self.path.open("rb") as stream:
            stream.seek(DATA)
            while chunk := stream.read(CHUNK):
                found.update(chunk)
        if checksum(found.digest(), self._header) != self.record.sha256:
            raise FileFormatError(f"{printable(self.path)}: damaged: its checksum differs")


def _read_header(path: Path, size: int) -> dict[str, Any]:
    with path.open("rb") as stream:
        head = stream.read(DATA)
    if size < DATA or int.from_bytes(head[:8], "little") != DATA - 8:
        raise ValueError("no header")
    header = json.loads(head[8:])
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    return header


def _check_metadata(metadata: dict[str, str], manifest: Manifest, shard: int) -> None:
    if metadata["format"] != FORMAT or metadata["version"] != VERSION:
        raise ValueError("another format or version")
    if metadata["job"] != manifest.id:
        raise ValueError("it belongs to another job")
    first, stop = manifest.span(shard)
    if [metadata["shard"], metadata["first"], metadata["stop"]] != [
        str(shard), str(first), str(stop),
    ]:  # fmt: skip
        raise ValueError("it holds other samples than its name says")
    if int(metadata["explained"]) + int(metadata["failed"]) != stop - first:
        raise ValueError("its counts do not add up")


Place = tuple[np.dtype, tuple[int, ...], int, int]


def _checked_places(header: dict[str, Any], size: int) -> dict[str, Place]:
    """Where each tensor lies: types known, shapes as large as their places, no holes."""
    places: dict[str, Place] = {}
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
        start, stop = entry["data_offsets"]
        if any(type(n) is not int or n < 0 for n in (*shape, start, stop)):
            raise ValueError(f"{name}: shape {shape} makes no sense")
        if start != end or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name}: shape {shape} and its place do not fit")
        places[name] = dtype, shape, start, stop
        end = stop
    if end != size - DATA:
        raise ValueError(f"{size} bytes, its header describes {end + DATA}")
    explained = int(header["__metadata__"]["explained"])
    for name in ("index", *COLUMNS, "name_ends"):
        if name in places and places[name][1][:1] != (explained,):
            raise ValueError(f"{name}: not one row a sample")
    return places
