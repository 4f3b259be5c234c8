"""Reading: the samples of one batch, put together; what cannot be read has a stand-in.

A batch is a fixed run of a shard's samples.  Last bits may depend on a batch's size, so it stays
the same when a sample fails: a copy of a sound one takes its place and is dropped afterwards.  So a
rerun that finds the sample mended gives its neighbours the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from relprop.batch.rows import Failure
from relprop.errors import InputError, RelpropError
from relprop.io.files import printable
from relprop.io.sources import Failed, Item, Source

__all__ = ["Inputs", "Loaded", "Loader", "Task", "windows"]


@dataclass(frozen=True)
class Task:
    """One batch to read: samples `[start, stop)` of a shard; `last` ends the shard."""

    shard: int
    start: int
    stop: int
    last: bool


@dataclass(frozen=True)
class Inputs:
    """What a model is called with: tensors whose first axis are the samples.

    Attributes:
        args, kwargs: positional and keyword arguments.
        lengths: valid steps of each sample, where they are padded.
        trimmed: whether `lengths` only cuts the stored relevance; else the explainer gets them.
    """

    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor] = field(default_factory=dict)
    lengths: Tensor | None = None
    trimmed: bool = False

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same with every tensor changed."""
        lengths = None if self.lengths is None else change(self.lengths)
        kwargs = {name: change(value) for name, value in self.kwargs.items()}
        return Inputs(tuple(map(change, self.args)), kwargs, lengths, self.trimmed)


@dataclass(frozen=True)
class Loaded:
    """A batch that was read.

    Attributes:
        task: which.
        groups: samples of one shape, together: their places in the batch, and their inputs.
        names, labels: one a place.
        failures: the places that have a stand-in, and why.
        seconds: what reading took.
        notes: what is to be said of a place's sample.
    """

    task: Task
    groups: list[tuple[Tensor, Inputs]]
    names: list[str]
    labels: list[int | None]
    failures: dict[int, Failure]
    seconds: float
    notes: dict[int, str] = field(default_factory=dict)

    def remarks(self) -> list[str]:
        """A line for each note."""
        return [f"{self.names[place]}: {note}" for place, note in self.notes.items()]

    def value(self, place: int) -> Tensor:
        """The model's first input for the sample at a place."""
        for places, inputs in self.groups:
            for row in (places == place).nonzero():
                return inputs.args[0][int(row)]
        raise IndexError(place)


class Loader:
    """Reads batches of a source.

    Args:
        source: the data set.
        collate: what turns a list of samples into a model's inputs: a tensor, a tuple of tensors,
            or a dict with `inputs` and perhaps `kwargs`, `lengths` and `trim`; None stacks them.
    """

    def __init__(self, source: Source, collate: Callable[[list[Any]], Any] | None = None) -> None:
        self.source, self.collate = source, collate

    def __call__(self, task: Task) -> Loaded:
        """Read one batch."""
        started = time.perf_counter()
        names = list(self.source.names[task.start : task.stop])
        if self.source.read_slice is not None and self.collate is None:
            labels = self.source.labels
            own = None if labels is None else labels[task.start : task.stop]
            try:
                values = self.source.read_slice(task.start, task.stop)
            except RelpropError:
                pass  # read one by one, which tells the sample that is at fault
            else:
                every = torch.arange(len(names))
                kept: list[int | None] = [None] * len(names) if own is None else list(own)
                seconds = time.perf_counter() - started
                return Loaded(task, [(every, Inputs((values,)))], names, kept, {}, seconds)
        return self._one_by_one(task, names, started)

    def _one_by_one(self, task: Task, names: list[str], started: float) -> Loaded:
        values: list[Any] = []
        labels: list[int | None] = []
        failures: dict[int, Failure] = {}
        notes: dict[int, str] = {}
        for place, index in enumerate(range(task.start, task.stop)):
            item = self._item(index)
            if isinstance(item, Failed):
                failures[place] = Failure(index, names[place], item.reason)
            elif item.note:
                notes[place] = item.note
            values.append(None if isinstance(item, Failed) else item.value)
            labels.append(None if isinstance(item, Failed) else item.label)
        sound = next((v for i, v in enumerate(values) if i not in failures), None)
        stand_in = next((i for i in range(len(values)) if i not in failures), None)
        if stand_in is None:
            return Loaded(task, [], names, labels, failures, time.perf_counter() - started)
        for place in failures:
            values[place], labels[place] = sound, labels[stand_in]
        groups = self._groups(task, values, names, failures)
        return Loaded(task, groups, names, labels, failures, time.perf_counter() - started, notes)

    def _item(self, index: int) -> Item | Failed:
        """A sample; code of the user's may raise anything."""
        try:
            return self.source.item(index)
        except Exception as error:
            reason = f"{type(error).__name__}: {printable(error, 200)}"
            return Failed(self.source.names[index], f"cannot be read ({reason})")

    def _groups(
        self, task: Task, values: list[Any], names: list[str], failures: dict[int, Failure]
    ) -> list[tuple[Tensor, Inputs]]:
        if self.collate is not None:
            try:
                return [(torch.arange(len(values)), _collated(self.collate(values), len(values)))]
            except Exception as error:
                reason = f"--collate: {type(error).__name__}: {printable(error, 200)}"
                for place, name in enumerate(names):
                    failures.setdefault(place, Failure(task.start + place, name, reason))
                return []
        kinds: dict[Any, list[int]] = {}
        for place, value in enumerate(values):
            if not isinstance(value, Tensor):
                reason = f"a {type(value).__name__}; expected a tensor (or give --collate)"
                failures[place] = Failure(task.start + place, names[place], reason)
                continue
            kinds.setdefault((value.shape, value.dtype), []).append(place)
        return [
            (torch.tensor(places), Inputs((torch.stack([values[i] for i in places]),)))
            for places in kinds.values()
        ]


def _collated(made: Any, count: int) -> Inputs:
    if isinstance(made, Mapping):
        given = made["inputs"]
        lengths = made.get("lengths")
        inputs = Inputs(
            given if isinstance(given, tuple) else (given,),
            dict(made.get("kwargs", {})),
            None if lengths is None else torch.as_tensor(lengths),
            bool(made.get("trim", False)),
        )
    else:
        inputs = Inputs(made if isinstance(made, tuple) else (made,))
    for value in (*inputs.args, *inputs.kwargs.values()):
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != count:
            raise InputError(
                f"gave {type(value).__name__} {list(getattr(value, 'shape', []))}; expected "
                f"tensors with {count} samples on their first axis"
            )
    return inputs


def windows(first: int, stop: int, batch: int, shard: int) -> Iterator[Task]:
    """The batches of a shard's samples `[first, stop)`."""
    for start in range(first, stop, batch):
        end = min(start + batch, stop)
        yield Task(shard, start, end, end == stop)
