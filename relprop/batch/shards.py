"""One shard as one safetensors file, written as batches arrive and read by memory mapping.

Relevance comes first and streams to the disk; the header's place is kept free and filled in last,
so that no more than a batch is ever in memory.  The header states a checksum of everything else.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from relprop.batch.manifest import Manifest, Record
from relprop.batch.rows import COLUMNS, Failure, Rows, little_endian, pack_failures, unpack_failures
from relprop.cli.files import printable, require_file
from relprop.errors import FileFormatError

__all__ = ["ShardReader", "ShardWriter"]

FORMAT = "relprop.shard"
VERSION = "1"
DATA = 4096
"""Where data begin: the header and the length before it fit in one page."""

DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
CODES = {np.dtype(value): key for key, value in DTYPES.items()}
CHUNK = 1 << 22


class ShardWriter:
    """Writes one shard.

    Args:
        stream: an empty binary file, open for writing.
        manifest, shard: the job, and which of its shards this is.
    """

    def __init__(self, stream: BinaryIO, manifest: Manifest, shard: int) -> None:
        self._stream, self._manifest, self._shard = stream, manifest, shard
        self._hash = hashlib.sha256()
        self._offset = 0
        self._header: dict[str, Any] = {}
        self._index: list[np.ndarray] = []
        self._names: list[bytes] = []
        self._columns: dict[str, list[np.ndarray]] = {}
        self._shapes: list[tuple[int, ...]] = []
        self._dtype = np.dtype("<f4")
        stream.seek(DATA)

    def add(self, rows: Rows) -> None:
        """Append a batch."""
        self._index.append(little_endian(rows.index))
        self._names += [name.encode() for name in rows.names]
        for name, column in rows.columns.items():
            self._columns.setdefault(name, []).append(little_endian(column))
        if rows.relevance is None:
            return
        uniform = isinstance(rows.relevance, Tensor)
        for part in [rows.relevance] if uniform else rows.relevance:
            array = little_endian(part)  # type: ignore[arg-type]
            self._dtype = array.dtype
            shape = array.shape[1:] if uniform else array.shape
            self._shapes += [shape] * (len(array) if uniform else 1)
            self._append(array)

    def finish(self, extra: dict[str, Tensor], failures: list[Failure]) -> Record:
        """Write what follows the relevance, and the header."""
        self._close_relevance()
        count = sum(map(len, self._index))
        self._put("index", np.concatenate([np.zeros(0, "<i8"), *self._index]))
        for name in COLUMNS:
            if name in self._columns:
                self._put(name, np.concatenate(self._columns[name]))
        for name, tensor in extra.items():
            self._put(name, little_endian(tensor))
        self._put("name_ends", np.cumsum([len(name) for name in self._names], dtype="<i8"))
        self._put("names", np.frombuffer(b"".join(self._names), np.uint8))
        self._put("failures", np.frombuffer(pack_failures(failures), np.uint8))
        first, stop = self._manifest.span(self._shard)
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "job": self._manifest.id,
            "shard": str(self._shard),
            "first": str(first),
            "stop": str(stop),
            "explained": str(count),
            "failed": str(len(failures)),
        }
        self._header = {"__metadata__": metadata, **self._header}
        metadata["sha256"] = _checksum(self._hash.digest(), self._header)
        text = json.dumps(self._header, separators=(",", ":")).encode()
        if len(text) > DATA - 8:
            raise FileFormatError(f"shard {self._shard}: its header needs {len(text)} bytes")
        self._stream.seek(0)
        self._stream.write((DATA - 8).to_bytes(8, "little") + text.ljust(DATA - 8))
        size = DATA + self._offset
        return Record(self._shard, count, len(failures), size, metadata["sha256"])

    def _close_relevance(self) -> None:
        """One tensor where all shapes are equal; else a flat one, and the shapes."""
        if not self._shapes:
            return
        name = CODES[self._dtype]
        shape: list[int] = [len(self._shapes), *self._shapes[0]]
        ragged = len(set(self._shapes)) > 1
        if ragged:
            shape = [sum(map(math.prod, self._shapes))]
        place = {"dtype": name, "shape": shape, "data_offsets": [0, self._offset]}
        self._header["relevance"] = place
        if ragged:
            self._put("shape", np.array(self._shapes, "<i8"))

    def _put(self, name: str, array: np.ndarray) -> None:
        array = np.ascontiguousarray(array)
        if gap := -self._offset % array.dtype.itemsize:  # readers want aligned tensors
            self._put(f"pad.{self._offset}", np.zeros(gap, np.uint8))
        start = self._offset
        self._append(array)
        self._header[name] = {
            "dtype": CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, self._offset],
        }

    def _append(self, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        self._stream.write(data)
        self._hash.update(data)
        self._offset += array.nbytes


def _checksum(data: bytes, header: dict[str, Any]) -> str:
    metadata = {k: v for k, v in header["__metadata__"].items() if k != "sha256"}
    words = json.dumps({**header, "__metadata__": metadata}, sort_keys=True)
    return hashlib.sha256(data + words.encode()).hexdigest()


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
        if _checksum(found.digest(), self._header) != self.record.sha256:
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
