"""MNIST and Fashion-MNIST: images in [-1, 1], labels, and a small real sample that is always there.

Pixels are `x = 2 u / 255 - 1` for a byte `u`: the background is -1.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from relprop.data.idx import read_idx
from relprop.data.mirrors import cache_folder, download, fetch_split
from relprop.data.sets import SETS, DataSet, files_of, lookup
from relprop.data.tasks import (
    SEEDS,
    TASKS,
    Sequences,
    Task,
    data_set_of,
    majority_task,
    single_task,
    split_indices,
    strips,
)
from relprop.errors import FileFormatError, InputError

__all__ = [
    "TASKS",
    "Sequences",
    "Task",
    "cache_folder",
    "class_names",
    "download",
    "fashion_mnist",
    "load",
    "majority",
    "majority_task",
    "mnist",
    "names",
    "pixels",
    "read_idx",
    "sample",
    "sample_indices",
    "single_task",
    "strips",
    "task",
]

PathLike = str | os.PathLike[str]

SAMPLES = Path(__file__).parent / "samples"


def names() -> tuple[str, ...]:
    """Names of the data sets: `mnist`, `fashion_mnist`."""
    return tuple(SETS)


def class_names(name: str) -> tuple[str, ...]:
    """Names of the ten classes of a data set, by label."""
    return lookup(name).classes


def pixels(images: Tensor) -> Tensor:
    """Bytes `[...]` as float32 `x = 2 u / 255 - 1`, in [-1, 1]."""
    return images.to(torch.float32).mul_(2).div_(255).sub_(1)


def mnist(
    split: str = "test", root: PathLike | None = None, *, download: bool = True
) -> tuple[Tensor, Tensor]:
    """Images and labels of MNIST; see `load`."""
    return load("mnist", split, root, download=download)


def fashion_mnist(
    split: str = "test", root: PathLike | None = None, *, download: bool = True
) -> tuple[Tensor, Tensor]:
    """Images and labels of Fashion-MNIST; see `load`."""
    return load("fashion_mnist", split, root, download=download)


def load(
    name: str, split: str = "test", root: PathLike | None = None, *, download: bool = True
) -> tuple[Tensor, Tensor]:
    """Images float32 `[N, 1, 28, 28]` in [-1, 1] and labels int64 `[N]` of a split.

    `split` is "test" (10,000) or "train" (60,000).  With `root`, the IDX files (plain or .gz) in
    that folder, or in the places below it where packages put them.  Without, the first of: the
    cache folder, an installed package, a download into the cache (if `download`).

    Raises: InputError for an unknown name or split; FileFormatError for a missing source (it lists
    the ways to get one) or a damaged file.
    """
    dataset = lookup(name)
    files_of(split)
    reason = ""
    if found := _idx_files(dataset, split, root):
        return _prepare(dataset, *found, *(read_idx(path) for path in found))
    if root is None and download:
        try:
            fetch_split(dataset, split, cache_folder(name))
        except (FileFormatError, OSError) as error:
            reason = f" The download failed: {error}"
        else:
            return load(name, split, cache_folder(name))
    raise FileFormatError(_how_to_get(dataset, split, root) + reason)


def sample(name: str) -> tuple[Tensor, Tensor]:
    """Images float32 `[200, 1, 28, 28]` in [-1, 1] and labels int64 `[200]`, shipped with relprop.

    The first 20 test images of each class of a data set; image i has label i mod 10.

    Raises: InputError for an unknown name; FileFormatError for a missing or damaged file.
    """
    images, labels, _ = _shipped(name)
    return pixels(images).unsqueeze(1), labels


def sample_indices(name: str) -> Tensor:
    """Where in the official test set the images of `sample` stand: int64 `[200]`."""
    return _shipped(name)[2]


def _shipped(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Bytes `[200, 28, 28]` of the sample, labels and indices int64 `[200]`."""
    path = SAMPLES / f"{lookup(name).name}.safetensors"
    try:
        tensors = load_file(path)
        images, labels, indices = (tensors[key] for key in ("images", "labels", "indices"))
    except (OSError, SafetensorError, KeyError) as error:
        raise FileFormatError(
            f"relprop.data.sample({name!r}): cannot read {path}: {error}. Install relprop again."
        ) from error
    return images, labels.to(torch.int64), indices.to(torch.int64)


def majority(
    name: str, split: str = "test", root: PathLike | None = None, *, download: bool = True
) -> Task:
    """The majority task `mnist_maj` or `fashion_mnist_maj`; see `task`."""
    if name not in TASKS or name == data_set_of(name):
        majorities = [known for known in TASKS if known != data_set_of(known)]
        raise InputError(
            f"relprop.data: no majority task {name!r}; there are {', '.join(majorities)}."
        )
    return task(name, split, root, download=download)


def task(
    name: str, split: str = "test", root: PathLike | None = None, *, download: bool = True
) -> Task:
    """A task's split: samples (image `[1, 28, 28]` or `[1, 28, 84]`, label, mask of its blocks).

    Args:
        name: one of `TASKS`.
        split: "train" (48,000 of the official training images), "validation" (the other 12,000),
            "test" (the official 10,000), or "sample" (of the 200 shipped images, always there).
        root, download: see `load`.

    Raises: InputError for an unknown name or split; what `load` raises.
    """
    source = data_set_of(name)
    if split not in SEEDS:
        raise InputError(f"relprop.data: split is {split!r}; expected one of {', '.join(SEEDS)}.")
    if split == "sample":
        images, labels = sample(source)
    else:
        files = "test" if split == "test" else "train"
        images, labels = load(source, files, root, download=download)
        if files == "train":
            own = split_indices(len(labels), split)
            images, labels = images[own], labels[own]
    if name == source:
        return single_task(images, labels)
    return majority_task(images, labels, SEEDS[split])


def _idx_files(dataset: DataSet, split: str, root: PathLike | None) -> tuple[Path, Path] | None:
    for folder in _folders(dataset, root):
        images, labels = (
            next((p for p in (folder / file, folder / f"{file}.gz") if p.is_file()), None)
            for file in files_of(split)
        )
        if images and labels:
            return images, labels
    return None


def _folders(dataset: DataSet, root: PathLike | None) -> tuple[Path, ...]:
    if root is None:
        return (cache_folder(dataset.name), *map(Path, dataset.packages))
    inside = (".", dataset.name, f"{dataset.title}/raw", "data", "package/data")
    packages = (place for place in dataset.packages if not Path(place).is_absolute())
    return tuple(Path(root) / place for place in (*inside, *packages))


def _prepare(
    dataset: DataSet, images_path: Path, labels_path: Path, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    if images.dtype != torch.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise FileFormatError(
            f"{dataset.title}: {images_path} holds {tuple(images.shape)} {images.dtype}; expected "
            f"uint8 images [N, 28, 28]."
        )
    one_each = labels.shape == images.shape[:1] and not labels.is_floating_point()
    if not one_each or not ((labels >= 0) & (labels < 10)).all():
        raise FileFormatError(
            f"{dataset.title}: {labels_path} holds labels {tuple(labels.shape)} {labels.dtype} for "
            f"{len(images)} images; expected one whole number from 0 to 9 for each."
        )
    labels = labels.to(torch.int64)
    _refuse_other_set(dataset, labels_path, labels)
    return pixels(images).unsqueeze(1), labels


def _refuse_other_set(dataset: DataSet, path: Path, labels: Tensor) -> None:
    """Both sets name their files alike; mixed up, every explanation would silently be nonsense."""
    header = b"\0\0\x08\x01" + len(labels).to_bytes(4, "big")
    digest = hashlib.sha256(header + labels.to(torch.uint8).numpy().tobytes()).hexdigest()
    for other in SETS.values():
        if other is not dataset and digest in other.digests.values():
            raise FileFormatError(
                f"{dataset.title}: {path} holds the labels of {other.title}. Name the folder of "
                f"{dataset.title}, or load {other.name!r}."
            )


def _how_to_get(dataset: DataSet, split: str, root: PathLike | None) -> str:
    images, labels = files_of(split)
    where = root if root is not None else "the cache folder or an installed package"
    return (
        f"{dataset.title}, split {split!r}: not found in {where}. Get it in one of these ways: "
        f"root=<folder> with {images} and {labels} (plain or .gz); the same files in "
        f"{cache_folder(dataset.name)}; {dataset.how_to_install}; "
        f"relprop.data.download({dataset.name!r}), from {' or '.join(dataset.mirrors)}. "
        f"A small real sample needs none of them: relprop.data.sample({dataset.name!r})."
    )
