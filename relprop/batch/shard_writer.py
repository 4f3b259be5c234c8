"""Writing one shard as one safetensors file, as batches arrive.

Relevance comes first and streams to the disk; the header's place is kept free and filled in last,
so that no more than a batch is ever in memory.  The header states a checksum of everything else.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from relprop.batch.manifest import Manifest, Record
from relprop.batch.rows import COLUMNS, Failure, Rows, little_endian, pack_failures
from relprop.errors import FileFormatError

__all__ = ["DATA", "DTYPES", "FORMAT", "VERSION", "ShardWriter", "checksum"]

FORMAT = "relprop.shard"
VERSION = "1"
DATA = 4096
"""Where data begin: the header and the length before it fit in one page."""

DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
CODES = {np.dtype(value): key for key, value in DTYPES.items()}


def checksum(data: bytes, header: dict[str, Any]) -> str:
    """The checksum that a header states of itself and of the data.

    Args:
        data: SHA-256 of all after the header.
        header: the header, its own `sha256` not counted.
    """
    metadata = {k: v for k, v in header["__metadata__"].items() if k != "sha256"}
    words = json.dumps({**header, "__metadata__": metadata}, sort_keys=True)
    return hashlib.sha256(data + words.encode()).hexdigest()


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
        metadata["sha256"] = checksum(self._hash.digest(), self._header)
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
