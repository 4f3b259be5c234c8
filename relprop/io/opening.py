"""From the words of a command, or of a job, to a model, a source and a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from relprop import data, models
from relprop.errors import InputError
from relprop.io.files import printable
from relprop.io.inputs import open_source
from relprop.io.loading import load_model
from relprop.io.preprocess import Preprocess
from relprop.io.sources import Source, SourceOptions

__all__ = ["chosen_device", "method_options", "open_inputs", "output_key", "source_options"]

PREPROCESSING = ("resize", "crop", "mean", "std", "channels", "background")


def open_inputs(options: Any) -> tuple[nn.Module, Source, torch.device]:
    """The model in evaluation mode on its device, and the data, opened.

    Args:
        options: the parsed arguments of a command, or a `relprop.batch.JobSpec`.

    Raises:
        InputError, FileFormatError: one of them is unknown, damaged or not trusted.
    """
    device = chosen_device(options.device)
    source = open_source(options.data, source_options(options))
    if len(source) == 0:
        raise InputError(f"{source.title}: holds no inputs")
    model = load_model(options.model, options.weights, options.trust)
    return model.to(device), source, device


def source_options(options: Any) -> SourceOptions:
    """How the data are read, with what the shipped networks were trained on as their default."""
    given = {key: getattr(options, key) for key in PREPROCESSING}
    given = {key: value for key, value in given.items() if value is not None}
    is_set = options.data.partition(":")[0] in data.names()
    if options.model in models.names() and not is_set:
        # What the shipped networks were trained on: 28 x 28 grey pixels in [-1, 1].
        scale = {"mean": (0.5,), "std": (0.5,), "only_bytes": True}
        own = {} if given.keys() & scale.keys() else scale
        given = {"resize": (28, 28), "channels": 1, **own, **given}
    return SourceOptions(
        Preprocess(**given),
        options.labels,
        options.array,
        options.max_pixels,
        options.max_bytes,
        options.trust,
    )


def method_options(pairs: Any) -> dict[str, Any]:
    """Options of a method; several numbers are one a channel, to broadcast against `[C, H, W]`."""
    return {
        name: torch.tensor(value).reshape(-1, 1, 1) if isinstance(value, list) else value
        for name, value in pairs
    }


def output_key(text: str | None) -> str | int | None:
    """`--output`: a position where it is a whole number, else a name."""
    return int(text) if text is not None and text.lstrip("-").isdecimal() else text


def chosen_device(name: str) -> torch.device:
    """The device of a --device argument; "auto" is CUDA where it is, else the CPU.

    Raises: InputError where the device cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = printable(str(error).partition("\n")[0], 120)
        raise InputError(f"--device {printable(name)}: cannot be used here ({reason})") from None
    return device
