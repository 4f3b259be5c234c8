"""Reading a job: its explanations in order, across shards, mapped from the disk."""

from __future__ import annotations

import bisect
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from relprop.batch.files import Reader, open_shard, present_shards
from relprop.batch.manifest import Manifest, read_manifest
from relprop.batch.rows import COLUMNS, Failure
from relprop.batch.summaries import merged
from relprop.errors import FileFormatError, InputError
from relprop.io.files import printable

__all__ = ["Job", "open_job"]

OPEN_FILES = 64


class Job(Dataset[dict[str, Any]]):
    """The explanations of a job, as a sequence and as a torch Dataset.

    `job[i]` is a dict: `index` (the sample's place in the data set), `name`, `relevance`, `target`,
    `score`, `prediction` and `label` (-1: none), `delta`, and `position` after `--reduce topk`.
    `job[a:b]` is a dict of the same keys for all of them, tensors stacked where their shapes allow.
    Samples that failed are left out; `job.failures()` has them.

    Attributes:
        manifest: what the job is.
        shards: the numbers of the shards that are there.
        missing: the numbers of those that are not, while a job is not done.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        known = {record.shard: record.explained for record in manifest.shards}
        present = sorted(present_shards(folder, manifest))
        self.missing = sorted(set(range(manifest.count)) - set(present))
        self._open: OrderedDict[int, Reader] = OrderedDict()
        self.shards: list[int] = []
        self._ends: list[int] = []
        for shard in present:
            count = known[shard] if shard in known else self._reader(shard).explained
            self.shards.append(shard)
            self._ends.append((self._ends[-1] if self._ends else 0) + count)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, place: Any) -> dict[str, Any]:
        if isinstance(place, slice):
            return self._slice(*place.indices(len(self)))
        if not -len(self) <= place < len(self):
            raise IndexError(f"{place}: {printable(self.folder)} holds {len(self)} explanations")
        place = place % len(self) if place < 0 else place
        found = self._slice(place, place + 1, 1)
        return {key: value[0] for key, value in found.items()}

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]:
        return [self[place] for place in places]

    def __repr__(self) -> str:
        identity = self.manifest.identity
        return (
            f"Job({printable(self.folder)!r}: {len(self)} explanations of "
            f"{identity.get('model')} by {identity.get('method')}, {len(self.missing)} shards "
            "missing)"
        )

    def failures(self) -> list[Failure]:
        """The samples that could not be read or explained, and why."""
        return [failure for shard in self.shards for failure in self._reader(shard).failures()]

    def summary(self) -> dict[str, Tensor]:
        """Means over the whole job, as `--summary` asked: see `relprop.batch.summaries.merged`."""
        return merged(self._reader(shard).summaries() for shard in self.shards)

    def find(self, index: int) -> int:
        """Where the sample at a place of the data set stands among the explanations.

        Raises:
            InputError: it is not among them.
        """
        shard = index // self.manifest.shard_size
        if shard in self.shards:
            at = self.shards.index(shard)
            places = self._reader(shard).array("index")
            row = int(places.searchsorted(index))
            if row < len(places) and places[row] == index:
                return (self._ends[at - 1] if at else 0) + row
        raise InputError(f"{printable(self.folder)}: holds no explanation of sample {index}")

    def _reader(self, shard: int) -> Reader:
        if shard not in self._open:
            self._open[shard] = open_shard(self.folder, self.manifest, shard)
            while len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _slice(self, start: int, stop: int, step: int) -> dict[str, Any]:
        if step != 1:
            return _joined([self._slice(i, i + 1, 1) for i in range(start, stop, step)])
        parts = []
        at = bisect.bisect_right(self._ends, start)
        while start < stop:
            base = self._ends[at - 1] if at else 0
            end = min(stop, self._ends[at])
            parts.append(_rows(self._reader(self.shards[at]), start - base, end - base))
            start, at = end, at + 1
        return _joined(parts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # maps are opened anew in each process


def open_job(path: str | os.PathLike[str]) -> Job:
    """Open a job's folder for reading, also while the job runs.

    Args:
        path: the folder that `relprop explain --job` wrote.

    Returns:
        Its explanations: `len(job)`, `job[3]`, `job[10:20]`, `DataLoader(job)`, `job.summary()`.

    Raises:
        FileFormatError: no such folder, or its manifest or a shard is damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileFormatError(f"{printable(folder)}: no such folder; expected that of a job")
    return Job(folder, read_manifest(folder))


def _rows(reader: Reader, start: int, stop: int) -> dict[str, Any]:
    found: dict[str, Any] = {"index": _part(reader, "index", start, stop)}
    found["name"] = reader.names(start, stop)
    if "relevance" in reader:
        found["relevance"] = reader.relevance(start, stop)
    for name in COLUMNS:
        if name in reader:
            found[name] = _part(reader, name, start, stop)
    if "position" in found:  # a Parquet file's lists are flat
        found["position"] = found["position"].reshape(found["relevance"].shape)
    return found


def _part(reader: Reader, name: str, start: int, stop: int) -> Tensor:
    array = reader.array(name)[start:stop]
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    if not parts:
        return {}
    return {key: _stacked([part[key] for part in parts]) for key in parts[0]}


def _stacked(values: list[Any]) -> Any:
    if len(values) == 1:
        return values[0]
    tensors = all(isinstance(value, Tensor) for value in values)
    if tensors and len({value.shape[1:] for value in values}) == 1:
        return torch.cat(values)
    return [entry for value in values for entry in value]
