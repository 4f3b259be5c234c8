"""Measuring one cell: a network, a task, the methods of the table."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from relprop import data, metrics
from relprop._version import __version__
from relprop.data import Task
from relprop.errors import FileFormatError
from relprop.study import networks as study
from relprop.study.evaluation.cells import Cell, Setting, fingerprint, read_cell, write_cell
from relprop.study.evaluation.explained import CONSERVING, TABLE, Explained
from relprop.study.networks.training import weights_path

__all__ = ["BATCH", "Job", "measure", "network"]

BATCH = 50


@dataclass(frozen=True)
class Job:
    """One cell to measure.

    Attributes:
        setting: on what.
        folder: of the cells.
        data: a folder with the data sets, or None for the places `relprop.data.load` knows.
        weights: a folder that `relprop train` wrote to, instead of the shipped networks.
        batch: samples at a time.
    """

    setting: Setting
    folder: Path
    data: Path | None = None
    weights: Path | None = None
    batch: int = BATCH

    def network(self) -> nn.Module:
        """The trained network.  Raises FileFormatError where there are no weights."""
        return network(self.setting.model, self.setting.task, self.weights)

    def task(self) -> Task:
        """The samples.  Raises FileFormatError where the data set is missing."""
        own = data.task(self.setting.task, self.setting.split, self.data)
        return own.subset(self.setting.samples)

    def known(self) -> Cell | None:
        """The cell, if it was measured before."""
        return read_cell(self.setting, fingerprint(self.network()), self.folder)

    def run(self) -> Cell:
        """Measure the cell and write it to its file."""
        model = self.network()
        cell = measure(model, self.task(), self.setting, self.batch)
        cell = replace(cell, start_from=_start_from(self))
        write_cell(cell, self.folder)
        return cell


def network(name: str, task: str, folder: Path | None = None) -> nn.Module:
    """A trained network: the shipped one, or that of a folder that `relprop train` wrote to.

    Raises:
        FileFormatError: there is none, or the file is damaged.
    """
    return study.load(name, task, _written(name, task, folder))


def _written(name: str, task: str, folder: Path | None) -> Path | None:
    """The file of a network in a folder, None for the shipped one."""
    if folder is None:
        return None
    pair = f"{name}-{task}"
    finished = weights_path(folder / pair)
    return finished if finished.is_file() else folder / f"{pair}.safetensors"


def _start_from(job: Job) -> str:
    """The network whose weights a training began with; empty where the file does not say."""
    name, task = job.setting.model, job.setting.task
    try:
        facts = study.describe(name, task, _written(name, task, job.weights))
    except FileFormatError:  # weights without a record of their training
        return ""
    return str(facts.get("start_from", ""))


def measure(model: nn.Module, task: Task, setting: Setting, batch: int = BATCH) -> Cell:
    """Explain the true class of every sample by the table's methods and sum up.

    Args:
        model: the network, float32, in eval mode.
        task: the samples.
        setting: what to call the cell.
        batch: samples at a time.
    """
    began = time.perf_counter()
    weights = fingerprint(model)
    dtype = getattr(torch, setting.dtype)
    explained = Explained(model.to(dtype), setting.model, TABLE)
    steps, _ = study.steps_and_width(setting.task)
    sums = [
        _Sums.of(explained, images, labels, masks, steps, dtype)
        for images, labels, masks in task.batches(batch)
    ]
    whole = _Sums.joined(sums)
    return Cell(
        setting=setting,
        weights=weights,
        version=__version__,
        accuracy=float(whole.correct.double().mean()),
        cosine={key: float(values.mean()) for key, values in whole.cosine.items()},
        share={key: float(values.median()) for key, values in whole.share.items()},
        conservation={key: float(values.max()) for key, values in whole.error.items()},
        over_time={key: _by_odd(values, task.masks) for key, values in whole.steps.items()},
        seconds=time.perf_counter() - began,
    )


@dataclass(frozen=True)
class _Sums:
    """Measures of samples, `[N]` or `[N, steps]`, by method."""

    correct: Tensor
    cosine: dict[str, Tensor]
    share: dict[str, Tensor]
    error: dict[str, Tensor]
    steps: dict[str, Tensor]

    @classmethod
    def of(
        cls,
        explained: Explained,
        images: Tensor,
        labels: Tensor,
        masks: Tensor,
        steps: int,
        dtype: torch.dtype,
    ) -> _Sums:
        output, maps = explained(images.to(dtype), labels)
        start = output.gather(1, labels.unsqueeze(1)).squeeze(1).relu()
        return cls(
            output.argmax(1) == labels,
            {key: metrics.block_cosine(r, masks) for key, r in maps.items()},
            {key: metrics.share_in_blocks(r, masks) for key, r in maps.items()},
            {
                key: metrics.conservation_error(r, start)
                for key, r in maps.items()
                if key in CONSERVING
            },
            {key: metrics.relevance_over_time(r, steps) for key, r in maps.items()},
        )

    @classmethod
    def joined(cls, parts: list[_Sums]) -> _Sums:
        first = parts[0]
        merged = {
            field: {key: torch.cat([getattr(part, field)[key] for part in parts]) for key in own}
            for field, own in vars(first).items()
            if field != "correct"
        }
        return cls(torch.cat([part.correct for part in parts]), **merged)


def _by_odd(shares: Tensor, masks: Tensor) -> list[list[float]]:
    """Mean shares `[steps]` of the samples whose odd block is the first, the second, …"""
    rows = []
    for block in range(masks.shape[1]):
        own = shares[masks[:, block] == 0]
        rows.append((own.mean(0) if len(own) else shares.new_zeros(shares.shape[1])).tolist())
    return rows
