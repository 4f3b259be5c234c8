"""What the scripts of the study's figures share: arguments, networks, data, cells."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from relprop import data
from relprop.data import Task
from relprop.errors import FileFormatError
from relprop.image.figure import save_figure
from relprop.study import networks as study
from relprop.study.evaluation import SAMPLES, Cell, Job, Setting, evaluate, network
from relprop.study.evaluation.reported import TITLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Places:
    """Where a figure's script reads and writes.

    Attributes:
        out: folder of the figures.
        data: folder with the data sets, or None for the places `relprop.data.load` knows.
        weights: folder of `relprop train` instead of the shipped networks.
        cells: folder of `relprop evaluate`'s cells.
        samples: how many test samples the charts are measured on.
    """

    out: Path = HERE
    data: Path | None = None
    weights: Path | None = None
    cells: Path = Path("out/evaluate")
    samples: int = 1000

    @classmethod
    def of(cls, arguments: Sequence[str] | None, description: str | None) -> Places:
        """From the words after a script's name."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--out", type=Path, default=cls.out, help="folder of the figures")
        parser.add_argument("--data", type=Path, help="folder with the data sets")
        parser.add_argument("--weights", type=Path, help="folder of relprop train")
        parser.add_argument("--cells", type=Path, default=cls.cells, help="of relprop evaluate")
        parser.add_argument("--samples", type=int, default=cls.samples, help="of the charts")
        return cls(**vars(parser.parse_args(arguments)))

    def networks(self, task: str, names: Sequence[str]) -> dict[str, nn.Module]:
        """The trained ones of a task's networks, by name; a line says which there are not."""
        found, missing = {}, []
        for name in names:
            try:
                found[name] = network(name, task, self.weights)
            except FileFormatError:
                missing.append(study.TITLES[name])
        if missing:
            print(f"missing: {', '.join(missing)} for {TITLES[task]}: not trained, left out")
        return found

    def split(self, task: str) -> str:
        """ "test", or "sample" where the data set is missing, and a line that says so."""
        try:
            data.task(task, "test", self.data)
        except FileFormatError:
            print(f"missing: {TITLES[task]}'s test images; those shipped stand in for them")
            return "sample"
        return "test"

    def task(self, name: str) -> Task:
        """A task's test samples, or those shipped with relprop."""
        return data.task(name, self.split(name), self.data)

    def tell(self, task: str, chosen: Sequence[int]) -> None:
        """Print which samples of a task a figure shows."""
        kind = "test" if self.split(task) == "test" else "shipped"
        print(f"{TITLES[task]}: {kind} samples {', '.join(map(str, chosen))}")

    def measured(self, task: str, models: Sequence[str]) -> dict[str, Cell]:
        """The cells of a task's trained networks, by architecture.

        Those measured before on all test samples are taken as they are; the others are measured on
        `samples` of them.
        """
        split = self.split(task)
        samples = min(self.samples, SAMPLES[split])
        found, left = {}, []
        for model in self.networks(task, models):
            known = self._job(Setting(task, model, split, SAMPLES[split])).known()
            if known is None:
                left.append(self._job(Setting(task, model, split, samples)))
            else:
                found[model] = known
        measured = evaluate(left, os.cpu_count() or 1)
        found |= {s.model: cell for s, cell in measured.items() if isinstance(cell, Cell)}
        return {model: found[model] for model in models if model in found}

    def _job(self, setting: Setting) -> Job:
        return Job(setting, self.cells, self.data, self.weights)

    def save(self, figure: Figure, name: str) -> list[Path]:
        """Write a chart as PDF and PNG; returns their paths."""
        return list(save_figure(figure, self.out / name, dpi=200))


def run(
    draw: Callable[[Places], list[Path]],
    description: str | None,
    arguments: Sequence[str] | None = None,
) -> list[Path]:
    """Draw a figure as the words after its script's name ask; prints and returns its files."""
    files = draw(Places.of(arguments, description))
    for file in files:
        print(f"wrote {file}", flush=True)
    return files


def lowest(
    task: Task, networks: Iterable[nn.Module], classes: Sequence[int], first: int = 1000
) -> list[int]:
    """For each class named the lowest index of a sample that all networks classify correctly.

    A class named twice gets the lowest two.  Only the first thousand samples are tried.

    Raises: LookupError where there is none.
    """
    images, labels, _ = task.batch(slice(first))
    right = torch.ones(len(labels), dtype=torch.bool)
    with torch.no_grad():
        for network in networks:
            right &= network(images).argmax(1) == labels
    found: list[int] = []
    for label in classes:
        own = (right & (labels == label)).nonzero().flatten().tolist()
        found.append(next((i for i in own if i not in found), -1))
        if found[-1] < 0:
            raise LookupError(f"no sample of class {label} that all networks classify correctly")
    return found
