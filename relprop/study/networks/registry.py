"""The architectures by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from relprop.data.tasks import data_set_of
from relprop.errors import InputError
from relprop.study.networks.convolutional import ConvFeatures, ConvPlusFeatures, LeNet
from relprop.study.networks.dense import DenseFeatures, Shallow
from relprop.study.networks.recurrent import RLSTM, Deep

__all__ = ["ARCHITECTURES", "TITLES", "build", "check_name", "steps_and_width"]


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
