"""Small trained networks that come with the package: `load("mnist_cnn")`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from relprop.atomic import replacing
from relprop.errors import FileFormatError, InputError
from relprop.models.networks import FashionMNISTConvNet, MNISTConvNet

__all__ = [
    "Shipped",
    "describe",
    "load",
    "names",
    "read_facts",
    "read_weights",
    "shipped",
    "write_weights",
]

FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Shipped:
    """A shipped network: its class, and the data set it was trained on."""

    network: type[nn.Module]
    dataset: str


MODELS = {
    "mnist_cnn": Shipped(MNISTConvNet, "mnist"),
    "fashion_mnist_cnn": Shipped(FashionMNISTConvNet, "fashion_mnist"),
}


def names() -> tuple[str, ...]:
    """Names of the shipped networks: `mnist_cnn`, `fashion_mnist_cnn`."""
    return tuple(MODELS)


def shipped(name: str) -> Shipped:
    """The network class and data set of a name.  Raises InputError that lists the names."""
    if name not in MODELS:
        raise InputError(f"relprop.models: no model {name!r}; there are {', '.join(MODELS)}.")
    return MODELS[name]


def load(name: str, weights: str | os.PathLike[str] | None = None) -> nn.Module:
    """A trained network in evaluation mode, float32 on the CPU: images in [-1, 1] to 10 logits.

    `weights` is a file of `python -m relprop.models.train` instead of the shipped one.

    Raises: InputError for an unknown name; FileFormatError for a missing or damaged file, or
    tensors that are not this network's.
    """
    model = shipped(name).network()
    model.load_state_dict(read_weights(_path(name, weights), model.state_dict()))
    return model.eval()


def describe(name: str, weights: str | os.PathLike[str] | None = None) -> dict[str, object]:
    """How a network was trained: test accuracy (0 to 1), seed, epochs, versions."""
    shipped(name)
    return read_facts(_path(name, weights))


def read_weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, if they have the names and shapes of `expected`.

    Raises: FileFormatError for a missing or damaged file, other tensors, or NaN or Inf in them.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            _check_shapes(path, found, expected)
            state = {key: file.get_tensor(key) for key in found}
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    for key, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise FileFormatError(f"relprop.models.load: {path}: {key!r} holds NaN or Inf.")
    return state


def read_facts(path: Path) -> dict[str, object]:
    """What a safetensors file's metadata entry "training" states; errors as of `read_weights`."""
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, object] = dict(json.loads((file.metadata() or {})["training"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from error
    return facts


def write_weights(path: Path, state: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
    """A safetensors file with the metadata that `read_facts` reads, all at once or not at all."""
    tensors = {key: tensor.cpu().contiguous() for key, tensor in state.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"training": json.dumps(facts)})


def _path(name: str, weights: str | os.PathLike[str] | None) -> Path:
    return Path(weights) if weights is not None else FOLDER / f"{name}.safetensors"


def _unreadable(path: Path, error: Exception) -> FileFormatError:
    return FileFormatError(
        f"relprop.models: cannot read {path}: {error}. Expected a safetensors file written by "
        f"`python -m relprop.models.train` or `relprop train`."
    )


def _check_shapes(
    path: Path, found: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]
) -> None:
    expected = {key: tuple(tensor.shape) for key, tensor in state.items()}
    wrong = [
        f"{key}: {found.get(key, 'missing')}, expected {expected.get(key, 'no such tensor')}"
        for key in sorted(expected.keys() | found.keys())
        if found.get(key) != expected.get(key)
    ]
    if wrong:
        raise FileFormatError(
            f"relprop.models.load: {path} holds another network's tensors: {'; '.join(wrong)}."
        )
