"""The architectures by name, and the trained weights that come with the package.

The weights are float16, one file for each (network, task).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from relprop import models
from relprop.data.tasks import data_set_of
from relprop.errors import FileFormatError, InputError
from relprop.study.networks.convolutional import ConvFeatures, ConvPlusFeatures, LeNet
from relprop.study.networks.dense import DenseFeatures, Shallow
from relprop.study.networks.recurrent import RLSTM, Deep

__all__ = [
    "ARCHITECTURES", "TITLES", "build", "check_name", "describe", "load", "pairs",
    "steps_and_width", "weights_file",
]  # fmt: skip


def _lenet(steps: int, width: int) -> nn.Module:
    if (steps, width) != (1, 28):
        raise InputError(
            f"lenet: {steps} steps of width {width}; it takes single images whole, 1 step of 28"
        )
    return LeNet()


ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {
    "shallow": Shallow,
    "deep": lambda steps, width: Deep(DenseFeatures(steps, width, (256,))),
    "deep_v2": lambda steps, width: Deep(DenseFeatures(steps, width, (128, 256))),
    "conv_deep": lambda steps, width: Deep(ConvFeatures(steps, width)),
    "conv_plus_deep": lambda steps, width: Deep(ConvPlusFeatures(steps, width)),
    "r_lstm": lambda steps, width: RLSTM(DenseFeatures(steps, width, (256,)), 72, stationary=False),
    "r_lstm_sd": lambda steps, width: RLSTM(
        DenseFeatures(steps, width, (256,)), 72, stationary=True
    ),
    "conv_r_lstm": lambda steps, width: RLSTM(ConvFeatures(steps, width), 96, stationary=False),
    "conv_r_lstm_sd": lambda steps, width: RLSTM(ConvFeatures(steps, width), 96, stationary=True),
    "conv_plus_r_lstm_sd": lambda steps, width: RLSTM(
        ConvPlusFeatures(steps, width), 96, stationary=True
    ),
    "lenet": _lenet,
}
"""From (steps, width of a strip) to an untrained network, by name."""

TITLES = {
    "shallow": "Shallow",
    "deep": "Deep",
    "deep_v2": "DeepV2",
    "conv_deep": "ConvDeep",
    "conv_plus_deep": "Conv⁺Deep",
    "r_lstm": "R-LSTM",
    "r_lstm_sd": "R-LSTM-SD",
    "conv_r_lstm": "ConvR-LSTM",
    "conv_r_lstm_sd": "ConvR-LSTM-SD",
    "conv_plus_r_lstm_sd": "Conv⁺R-LSTM-SD",
    "lenet": "LeNet",
}
"""The architectures' names in print."""

SINGLE, MAJORITY = (1, 28), (12, 7)


def check_name(name: str) -> None:
    """Raises InputError that lists the architectures where `name` is none of them."""
    if name not in ARCHITECTURES:
        raise InputError(
            f"study.networks: no architecture {name!r}; there are {', '.join(ARCHITECTURES)}."
        )


def build(name: str, steps: int, width: int) -> nn.Module:
    """An untrained network; its weights come from torch's random numbers.

    Args:
        name: one of `ARCHITECTURES`.
        steps: number of strips T that an image is read in.
        width: columns of a strip; images are `[batch, 1, 28, steps * width]`.

    Raises: InputError for an unknown name, or sizes that the network cannot have.
    """
    check_name(name)
    if steps < 1 or width < 1:
        raise InputError(f"{name}: {steps} steps of width {width}; expected both above 0")
    return ARCHITECTURES[name](steps, width)


def steps_and_width(task: str) -> tuple[int, int]:
    """How the study cuts a task's images: (1, 28) single images, (12, 7) majority tasks."""
    return SINGLE if task == data_set_of(task) else MAJORITY


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
