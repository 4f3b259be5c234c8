"""Sums over a job's relevance, made while it streams: by channel, by class, over time.

Each shard keeps its own sums in float64, so that an interrupted job counts nothing twice; reading
adds them up in the shards' order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from relprop.errors import InputError

__all__ = ["KINDS", "Summaries", "merged"]

KINDS = ("channel", "class", "time")
MAX_BYTES = 2**30
SEQUENCE_AXES = 2


class Summaries:
    """The sums of one shard.

    Args:
        kinds: "channel": mean |R| of each channel (the first axis of a sample, the last of a
            sequence `[T, features]`); "class": the mean map of each explained class; "time": mean
            relevance and mean |R| at each step (the first axis of a sample `[T]`, `[T, features]`).
    """

    def __init__(self, kinds: Sequence[str]) -> None:
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise InputError(f"--summary {unknown[0]}; expected {', '.join(KINDS)}")
        self.kinds = tuple(kinds)
        self._count = 0
        self._sums: dict[str, Tensor] = {}
        self._classes: dict[int, Tensor] = {}
        self._counts: dict[int, int] = {}

    def add(self, maps: Tensor, target: Tensor) -> None:
        """Count a batch in.

        Args:
            maps: relevance `[n, ...]` on the CPU, a row for each explained target.
            target: the class of each row, int64 `[n]`; -1 where there is none.

        Raises:
            InputError: maps that have no channels, no time, or too many entries a class.
        """
        if not self.kinds:
            return
        self._count += len(maps)
        if "channel" in self.kinds:
            self._sum("channel", _channels(maps))
        if "time" in self.kinds:
            self._sum("time", _times(maps))
        if "class" in self.kinds:
            self._by_class(maps, target)

    def tensors(self) -> dict[str, Tensor]:
        """What the shard's file keeps."""
        if not self.kinds:
            return {}
        found = {f"summary.{name}": total for name, total in self._sums.items()}
        if self._classes:
            known = sorted(self._classes)
            found["summary.class"] = torch.stack([self._classes[label] for label in known])
            found["summary.class.label"] = torch.tensor(known)
            found["summary.class.count"] = torch.tensor([self._counts[label] for label in known])
        found["summary.count"] = torch.tensor([self._count])
        return found

    def _sum(self, name: str, batch: Tensor) -> None:
        if name in self._sums and self._sums[name].shape != batch.shape:
            raise InputError(f"--summary {name}: inputs of several shapes have no common sum")
        self._sums[name] = self._sums[name] + batch if name in self._sums else batch

    def _by_class(self, maps: Tensor, target: Tensor) -> None:
        if target.ndim != 1:
            raise InputError("--summary class: targets are no classes")
        for label in target.unique().tolist():
            rows = maps[target == label].double().sum(0)
            if label not in self._classes:
                if (len(self._classes) + 1) * rows.nbytes > MAX_BYTES:
                    raise InputError(
                        f"--summary class: {len(self._classes) + 1} mean maps of shape "
                        f"{list(rows.shape)} take more than {MAX_BYTES:,} bytes a shard; add "
                        "--reduce pool:14x14"
                    )
                self._classes[label] = torch.zeros_like(rows)
            self._classes[label] += rows
            self._counts[label] = self._counts.get(label, 0) + int((target == label).sum())


def merged(shards: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Means over all shards.

    Returns:
        "channel": `[C]`; "time": `[2, T]`, relevance and |R|; "class": `[classes, ...]` with
        "class.label" and "class.count"; "count": how many maps there were.
    """
    sums: dict[str, Tensor] = {}
    classes: dict[int, Tensor] = {}
    counts: dict[int, int] = {}
    for shard in shards:
        for name in ("channel", "time", "count"):
            if (part := shard.get(f"summary.{name}")) is not None:
                sums[name] = sums[name] + part if name in sums else part.clone()
        if "summary.class" in shard:
            labels = shard["summary.class.label"].tolist()
            for row, label in enumerate(labels):
                part = shard["summary.class"][row]
                classes[label] = classes[label] + part if label in classes else part.clone()
                counts[label] = counts.get(label, 0) + int(shard["summary.class.count"][row])
    found: dict[str, Tensor] = {
        name: sums[name] / sums["count"] for name in ("channel", "time") if name in sums
    }
    if classes:
        known = sorted(classes)
        found["class"] = torch.stack([classes[label] / counts[label] for label in known])
        found["class.label"] = torch.tensor(known)
        found["class.count"] = torch.tensor([counts[label] for label in known])
    if "count" in sums:
        found["count"] = sums["count"]
    return found


def _channels(maps: Tensor) -> Tensor:
    own = maps.ndim - 1
    if own < SEQUENCE_AXES:
        raise InputError(
            f"--summary channel: maps of shape {list(maps.shape[1:])} have no channels"
        )
    axis = -1 if own == SEQUENCE_AXES else 1
    flat = maps.abs().double().movedim(axis, 1).flatten(2)
    return flat.mean(2).sum(0)


def _times(maps: Tensor) -> Tensor:
    own = maps.ndim - 1
    if not 1 <= own <= SEQUENCE_AXES:
        raise InputError(
            f"--summary time: maps of shape {list(maps.shape[1:])}; expected sequences [T] or "
            "[T, features]"
        )
    steps = maps.double().reshape(len(maps), maps.shape[1], -1)
    return torch.stack([steps.sum((0, 2)), steps.abs().sum((0, 2))])
