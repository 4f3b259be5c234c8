"""Cells of the table, each a small JSON file, so that an interrupted evaluation goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from relprop._version import __version__
from relprop.atomic import replacing

__all__ = ["SAMPLES", "Cell", "Setting", "fingerprint", "read_cell", "write_cell"]

SAMPLES = {"test": 10_000, "sample": 200}
"""The splits that are measured on, and how many samples each has."""


@dataclass(frozen=True)
class Setting:
    """What a cell is measured on.

    Attributes:
        task: one of `relprop.data.TASKS`.
        model: one of `relprop.study.networks.ARCHITECTURES`.
        split: "test", or "sample" for the images shipped with relprop.
        samples: how many, from the first.
        dtype: "float32" or "float64".
    """

    task: str
    model: str
    split: str
    samples: int
    dtype: str = "float32"

    def path(self, folder: Path) -> Path:
        """The cell's file."""
        words = (self.task, self.model, self.split, str(self.samples), self.dtype)
        return folder / f"{'-'.join(words)}.json"


@dataclass(frozen=True)
class Cell:
    """What was measured of one network on one task.

    Attributes:
        setting: on what.
        weights: a digest of the network's weights.
        version: of relprop.
        accuracy: share of the samples classified correctly.
        cosine: mean cosine similarity of the blocks' relevance to the right blocks, by method.
        share: median share of relevance in the right blocks, by method.
        conservation: greatest |ΣR − relu(y)| / max(1, relu(y)) of a sample, by method, of the
            methods that conserve relevance.
        over_time: by method, for each block that may be the odd one out the mean share of relevance
            of every time step.
        seconds: what it took.
        start_from: the network whose weights the training began with, empty for none.
    """

    setting: Setting
    weights: str
    version: str
    accuracy: float
    cosine: Mapping[str, float]
    share: Mapping[str, float]
    conservation: Mapping[str, float]
    over_time: Mapping[str, list[list[float]]]
    seconds: float
    start_from: str = ""


def fingerprint(model: nn.Module) -> str:
    """A digest of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_cell(cell: Cell, folder: Path) -> None:
    """Write a cell's file, whole or not at all."""
    with replacing(cell.setting.path(folder)) as temporary:
        temporary.write_text(json.dumps(asdict(cell), indent=1) + "\n", encoding="utf-8")


def read_cell(setting: Setting, weights: str, folder: Path) -> Cell | None:
    """The cell measured before on these weights by this relprop; None if there is none.

    A file that is damaged or of another version counts as none: it is measured anew.
    """
    try:
        words = json.loads(setting.path(folder).read_text(encoding="utf-8"))
        cell = Cell(**{**words, "setting": Setting(**words["setting"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    measured = (cell.setting, cell.weights, cell.version)
    return cell if measured == (setting, weights, __version__) else None
