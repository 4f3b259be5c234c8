"""Reading a job: its explanations in order, across shards, mapped from the disk."""

from __future__ import annotations

import bisect
import operator
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
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
    `job[a:b]`, and `job[[3, 1]]`, is a dict of the same keys for all of them, tensors stacked where
    their shapes allow.  `job["score"]` is one of these columns alone, `job["a.png"]` the
    explanation of the sample of that name.
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

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return self._slice(*place.indices(len(self)))
        if isinstance(place, str):
            return self._named(place)
        if isinstance(place, Sequence | Tensor | np.ndarray) and len(np.shape(place)):
            wanted: Any = np.asarray(place) if len(place) else []  # a mask, too
            places = np.arange(len(self))[wanted].tolist()
            return _joined([self._slice(i, i + 1, 1) for i in places])
        place = operator.index(place)  # a tensor, too
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

    def _named(self, word: str) -> Any:
        """A column, or else the explanation of the sample of that name.

        Raises:
            KeyError: there is neither.
        """
        for at, shard in enumerate(self.shards):
            reader = self._reader(shard)
            if word in _columns(reader):
                return self._slice(0, len(self), 1, word)[word]
            if word in (names := reader.names()):
                return self[(self._ends[at - 1] if at else 0) + names.index(word)]
        known = ", ".join(_columns(self._reader(self.shards[0]))) if self.shards else "none yet"
        raise KeyError(
            f"{printable(self.folder)}: no column, and no explained sample, is named "
            f"{printable(word)!r}; the columns are {known}"
        )

    def _reader(self, shard: int) -> Reader:
        if shard not in self._open:
            self._open[shard] = open_shard(self.folder, self.manifest, shard)
            while len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _slice(self, start: int, stop: int, step: int, only: str | None = None) -> dict[str, Any]:
        if step != 1:
            return _joined([self._slice(i, i + 1, 1) for i in range(start, stop, step)])
        parts = []
        at = bisect.bisect_right(self._ends, start)
        while start < stop:
            base = self._ends[at - 1] if at else 0
            end = min(stop, self._ends[at])
            reader = self._reader(self.shards[at])
            names = _columns(reader) if only is None else [only]
            rows = start - base, end - base
            parts.append({name: _column(reader, name, *rows) for name in names})
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


def _columns(reader: Reader) -> list[str]:
    return ["index", "name", *(name for name in ("relevance", *COLUMNS) if name in reader)]


def _column(reader: Reader, name: str, start: int, stop: int) -> Any:
    if name == "name":
        return reader.names(start, stop)
    if name == "relevance":
        return reader.relevance(start, stop)
    array = reader.array(name)[start:stop]
    part = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    if name == "position":  # a Parquet file's lists are flat
        return part.reshape(np.shape(reader.relevance(start, stop)))
    return part


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
