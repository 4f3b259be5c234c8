"""One shard as one Parquet file, for the tools of a cluster: zstd, byte-stream-split, small groups.

Needs pyarrow (`pip install 'relprop[parquet]'`).
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from relprop.batch.manifest import Manifest, Record
from relprop.batch.rows import COLUMNS, Failure, Rows, little_endian, pack_failures, unpack_failures
from relprop.errors import FileFormatError, RelpropError
from relprop.io.files import printable, require_file
from relprop.io.tables import pyarrow_parquet

__all__ = ["ParquetReader", "ParquetShardWriter"]

ROW_GROUP = 64
KEY = b"relprop"
CACHED_GROUPS = 4


class ParquetShardWriter:
    """Writes one shard; the same steps as `relprop.batch.shard_writer.ShardWriter`."""

    def __init__(self, stream: BinaryIO, manifest: Manifest, shard: int) -> None:
        self._parquet = pyarrow_parquet()
        self._stream, self._manifest, self._shard = stream, manifest, shard
        self._writer: Any = None
        self._count = 0
        self._hashes: dict[str, Any] = {}

    def add(self, rows: Rows) -> None:
        """Append a batch."""
        import pyarrow

        table = pyarrow.table(self._arrays(rows))
        self._open(table.schema)
        self._writer.write_table(table, row_group_size=ROW_GROUP)
        self._count += len(rows.names)

    def finish(self, extra: dict[str, Tensor], failures: list[Failure]) -> Record:
        """Write the footer, with what describes the shard.  There are no `extra` tensors."""
        import pyarrow

        assert not extra
        if self._writer is None:
            self._open(pyarrow.schema([("index", pyarrow.int64()), ("name", pyarrow.string())]))
        words: dict[str, Any] = {
            "job": self._manifest.id,
            "shard": self._shard,
            "samples": list(self._manifest.span(self._shard)),
            "explained": self._count,
            "failed": len(failures),
            "failures": pack_failures(failures).decode(),
        }
        words["sha256"] = _checksum(self._hashes, words)
        self._writer.add_key_value_metadata({KEY: json.dumps(words).encode()})
        self._writer.close()
        self._stream.flush()
        return Record(self._shard, self._count, len(failures), self._stream.tell(), words["sha256"])

    def _open(self, schema: Any) -> None:
        if self._writer is not None:
            return
        floats = [field.name for field in schema if "float" in str(field.type)]
        paths = [
            f"{name}.list.element" if "list" in str(schema.field(name).type) else name
            for name in floats
        ]
        self._writer = self._parquet.ParquetWriter(
            self._stream,
            schema,
            compression="zstd",
            use_dictionary=False,
            use_byte_stream_split=paths,
            write_page_checksum=True,
        )

    def _arrays(self, rows: Rows) -> dict[str, Any]:
        found: dict[str, Any] = {"index": little_endian(rows.index), "name": rows.names}
        if rows.relevance is not None:
            each = [little_endian(row) for row in rows.relevance]
            found["relevance"] = _lists([row.reshape(-1) for row in each])
            found["shape"] = _lists([np.array(row.shape, "<i4") for row in each])
            for row in each:
                self._count_in("relevance", row.tobytes())
        for name in COLUMNS:
            if name in rows.columns:
                array = little_endian(rows.columns[name])
                found[name] = (
                    array if array.ndim == 1 else _lists(list(array.reshape(len(array), -1)))
                )
                self._count_in(name, array.tobytes())
        self._count_in("index", found["index"].tobytes())
        self._count_in("name", "".join(f"{name}\0" for name in rows.names).encode())
        return found

    def _count_in(self, name: str, data: bytes) -> None:
        self._hashes.setdefault(name, hashlib.sha256()).update(data)


def _lists(rows: list[np.ndarray]) -> Any:
    import pyarrow

    ends = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return pyarrow.ListArray.from_arrays(ends, np.concatenate(rows))


def _checksum(hashes: dict[str, Any], words: dict[str, Any]) -> str:
    parts = {name: found.hexdigest() for name, found in hashes.items()}
    rest = {key: value for key, value in words.items() if key != "sha256"}
    return hashlib.sha256(json.dumps([parts, rest], sort_keys=True).encode()).hexdigest()


class ParquetReader:
    """Reads one shard; the same face as `relprop.batch.shard_reader.ShardReader`."""

    def __init__(self, path: Path, manifest: Manifest, shard: int) -> None:
        self.path, self.manifest, self.shard = path, manifest, shard
        size = require_file(path)
        parquet = pyarrow_parquet()
        try:
            self._file = parquet.ParquetFile(path, page_checksum_verification=True)
            self._words = json.loads((self._file.metadata.metadata or {})[KEY])
            words = self._words
            if words["job"] != manifest.id:
                raise ValueError("it belongs to another job")
            first, stop = manifest.span(shard)
            if words["shard"] != shard or words["samples"] != [first, stop]:
                raise ValueError("it holds other samples than its name says")
            self.explained, self.failed = int(words["explained"]), int(words["failed"])
            if self.explained + self.failed != stop - first:
                raise ValueError("its counts do not add up")
            if self._file.metadata.num_rows != self.explained:
                raise ValueError(f"{self._file.metadata.num_rows} rows for {self.explained}")
            self.record = Record(shard, self.explained, self.failed, size, str(words["sha256"]))
            self._columns = self._file.schema_arrow.names
            groups = range(self._file.num_row_groups)
            sizes = [self._file.metadata.row_group(i).num_rows for i in groups]
            self._starts = np.cumsum([0, *sizes])
            self._group = lru_cache(CACHED_GROUPS)(self._read_group)
        except RelpropError:
            raise
        except Exception as error:  # a damaged file makes Arrow raise anything
            raise FileFormatError(
                f"{printable(path)}: not a whole shard ({printable(error)})"
            ) from None

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def array(self, name: str) -> np.ndarray:
        """A column of all rows."""
        column = self._table(name).combine_chunks()
        if not hasattr(column, "values"):
            return column.to_numpy(zero_copy_only=False)
        return _values(column).reshape(len(column), -1)

    def tensor(self, name: str) -> Tensor:
        """A copy of a column."""
        return torch.from_numpy(np.array(self.array(name)))

    def relevance(self, start: int, stop: int) -> Tensor | list[Tensor]:
        """Relevance of rows `[start, stop)`: one tensor, or a list where shapes differ."""
        found: list[Tensor] = []
        first = int(np.searchsorted(self._starts, start, "right")) - 1
        for group in range(max(first, 0), self._file.num_row_groups):
            low, high = self._starts[group], self._starts[group + 1]
            if low >= stop:
                break
            maps = self._group(group)
            found += maps[max(start - low, 0) : min(stop, high) - low]
        if len({tuple(row.shape) for row in found}) == 1:
            return torch.stack(found)
        return found

    def names(self, start: int = 0, stop: int | None = None) -> list[str]:
        """What the data set calls the explained samples of rows `[start, stop)`."""
        return [str(name) for name in self._table("name").to_pylist()[start:stop]]

    def failures(self) -> list[Failure]:
        """The samples that could not be explained."""
        return unpack_failures(str(self._words.get("failures", "")).encode())

    def summaries(self) -> dict[str, Tensor]:
        """None: sums are kept in safetensors shards."""
        return {}

    def check_sum(self) -> None:
        """Read all rows and compare their checksum.

        Raises:
            FileFormatError: it differs, or a page cannot be read.
        """
        hashes: dict[str, Any] = {}
        try:
            for name in self._columns:
                if name == "shape":
                    continue
                hashes[name] = hashlib.sha256(self._bytes(name))
        except Exception as error:
            raise FileFormatError(f"{printable(self.path)}: damaged ({printable(error)})") from None
        if self.explained == 0:
            hashes = {}
        if _checksum(hashes, self._words) != self.record.sha256:
            raise FileFormatError(f"{printable(self.path)}: damaged: its checksum differs")

    def _bytes(self, name: str) -> bytes:
        if name == "name":
            return "".join(f"{row}\0" for row in self.names()).encode()
        column = self._table(name).combine_chunks()
        values = _values(column) if hasattr(column, "values") else self.array(name)
        return bytes(np.ascontiguousarray(values).tobytes())

    def _table(self, name: str) -> Any:
        return self._file.read([name])[name]

    def _read_group(self, group: int) -> list[Tensor]:
        table = self._file.read_row_group(group, ["relevance", "shape"]).combine_chunks()
        maps, shapes = table["relevance"].combine_chunks(), table["shape"].combine_chunks()
        values, ends = _values(maps), np.cumsum([0, *maps.value_lengths().to_pylist()])
        return [
            torch.from_numpy(np.array(values[a:b])).reshape(shape)
            for a, b, shape in zip(ends[:-1], ends[1:], shapes.to_pylist())
        ]


def _values(column: Any) -> np.ndarray:
    return column.flatten().to_numpy(zero_copy_only=False)
