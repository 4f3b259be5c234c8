"""The trained weights that come with the package: float16, one file for each (network, task)."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from relprop import models
from relprop.errors import FileFormatError
from relprop.study.networks.registry import ARCHITECTURES, build, steps_and_width

__all__ = ["describe", "load", "pairs", "weights_file"]


def weights_file(name: str, task: str) -> Path:
    """Where the trained weights of an architecture and a task are shipped."""
    return models.FOLDER / f"{name}-{task}.safetensors"


def pairs() -> list[tuple[str, str]]:
    """The (architecture, task) pairs whose trained weights are shipped."""
    found = (path.stem.split("-") for path in sorted(models.FOLDER.glob("*-*.safetensors")))
    return [(name, task) for name, task in found if name in ARCHITECTURES]


def load(name: str, task: str, weights: str | os.PathLike[str] | None = None) -> nn.Module:
    """A trained network in evaluation mode, float32 on the CPU.

    Args:
        name: one of `ARCHITECTURES`.
        task: one of `relprop.data.TASKS`.
        weights: a file that `relprop train` wrote, instead of the shipped one.

    Raises: InputError for an unknown name or task; FileFormatError where no weights are shipped, or
    the file is damaged or holds another network's tensors.
    """
    model = build(name, *steps_and_width(task))
    path = _present(name, task, weights)
    state = models.read_weights(path, model.state_dict())
    model.load_state_dict({key: tensor.to(torch.float32) for key, tensor in state.items()})
    return model.eval()


def describe(
    name: str, task: str, weights: str | os.PathLike[str] | None = None
) -> dict[str, object]:
    """How a network was trained: accuracies, seed, epochs, versions."""
    build(name, *steps_and_width(task))
    return models.read_facts(_present(name, task, weights))


def _present(name: str, task: str, weights: str | os.PathLike[str] | None) -> Path:
    path = Path(weights) if weights is not None else weights_file(name, task)
    if weights is None and not path.is_file():
        shipped = ", ".join(f"{own} ({its})" for own, its in pairs()) or "none"
        raise FileFormatError(
            f"relprop.study.networks: no trained weights of {name!r} for task {task!r} come with "
            f"relprop; there are {shipped}. Train them: relprop train {name} {task}"
        )
    return path
