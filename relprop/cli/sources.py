"""What the command line explains: a folder of images, arrays, IDX files, a data set's name.

A source is opened once (headers, file lists) and read one input at a time; an input that cannot be
read is handed on as `Failed`, and the rest goes on.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop import data
from relprop.cli.files import MAX_BYTES, MAX_PIXELS, open_npy, open_npz, printable, require_file
from relprop.cli.labels import folder_labels, listed_labels, named_labels
from relprop.cli.preprocess import Preprocess
from relprop.errors import FileFormatError, InputError, RelpropError

__all__ = [
    "Failed",
    "Item",
    "Labelled",
    "Numbered",
    "Source",
    "SourceOptions",
    "native",
    "open_source",
]

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)
PICKLED_SUFFIXES = frozenset((".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"))
MODULE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
INPUT_NAMES = ("x", "inputs", "images", "data", "arr_0")
LABEL_NAMES = ("y", "labels", "targets", "arr_1")


@dataclass(frozen=True)
class Item:
    """One input, without a batch axis."""

    name: str
    value: Tensor
    label: int | None = None


@dataclass(frozen=True)
class Labelled:
    """What a source read that finds an input and its label together."""

    value: Any
    label: int | None


@dataclass(frozen=True)
class Failed:
    """An input that could not be read or explained, and why, in one sentence."""

    name: str
    reason: str


AS_IT_IS = Preprocess()


@dataclass(frozen=True)
class SourceOptions:
    """How data is read.

    Attributes:
        preprocess: size and normalisation of images.
        labels: a file of labels, or "folders": the sub-folder that an image lies in.
        array: which array of a .npz or safetensors file, or column of a table, holds the inputs;
            None looks for the usual names.
        max_pixels, max_bytes: caps checked on headers, before anything is read.
        trust: whether the data's own code may run.
    """

    preprocess: Preprocess = AS_IT_IS
    labels: str | None = None
    array: str | None = None
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    trust: bool = False


class Numbered(Sequence[str]):
    """The names `stem-00000`, `stem-00001`, … made when asked for."""

    def __init__(self, stem: str, count: int) -> None:
        self.stem, self.size = stem, count

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(index)
        return f"{self.stem}-{index % self.size:05d}"


@dataclass(frozen=True)
class Source:
    """Named inputs, read one at a time by position.

    Attributes:
        title: for messages.
        names: one an input.
        read: the input at a position, perhaps with its label; a `RelpropError` that it raises is
            that input's failure.
        labels: one an input, or None.
        read_slice: inputs `[start, stop)` together, `[stop - start, ...]`, where all lie in memory.
    """

    title: str
    names: Sequence[str]
    read: Callable[[int], Any]
    labels: Sequence[int | None] | None = None
    read_slice: Callable[[int, int], Tensor] | None = None

    def item(self, index: int) -> Item | Failed:
        """One input, or why it cannot be read."""
        name = self.names[index]
        try:
            value = self.read(index)
        except (FileFormatError, InputError) as error:
            return Failed(name, printable(error))
        if isinstance(value, Labelled):
            return Item(name, value.value, value.label)
        return Item(name, value, None if self.labels is None else self.labels[index])

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Item | Failed]:
        return (self.item(index) for index in range(len(self)))


def open_source(spec: str, options: SourceOptions) -> Source:
    """The source that a word of the command line names.

    Args:
        spec: `NAME` or `NAME:test|train|sample` of a data set, else a folder or a file (a path
            with a separator is never a name: `./mnist`).
        options: how to read it.

    Raises:
        FileFormatError: nothing there, of another kind, damaged, or larger than the caps.
        InputError: options that do not fit.
    """
    name, _, split = spec.partition(":")
    if name in data.names():
        return _data_set(name, split or "test", options)
    if "://" in spec:
        from relprop.batch.sources import open_url

        return open_url(spec, options, open_source)
    path = Path(spec)
    if path.is_dir():
        return _folder(path, options)
    if MODULE.fullmatch(spec) and not os.path.lexists(path):
        from relprop.batch.sources import named_dataset

        return named_dataset(spec, options)
    if not os.path.lexists(path):
        known = ", ".join(data.names())
        raise FileFormatError(
            f"{printable(spec)}: no such file or folder, nor a data set; data sets are {known} "
            "(add :sample for the images that come with relprop)"
        )
    require_file(path)
    suffix = path.suffix.lower()
    if suffix in PICKLED_SUFFIXES:
        raise FileFormatError(
            f"{printable(path)}: pickled files run code when they are read, so they are not; "
            "save the inputs with numpy.save or numpy.savez"
        )
    if suffix in (".npy", ".npz"):
        return _numpy(path, options)
    if suffix == ".safetensors":
        from relprop.batch.sources import open_safetensors

        return open_safetensors(path, options)
    if suffix == ".parquet":
        from relprop.batch.tables import open_parquet

        return open_parquet(path, options)
    if suffix in IMAGE_SUFFIXES:
        return _images([path], path.parent, options, printable(path))
    return _idx(path, options)


def _data_set(name: str, split: str, options: SourceOptions) -> Source:
    if options.labels is not None or options.preprocess != AS_IT_IS:
        raise InputError(
            f"{name}: a data set brings its own labels and normalisation; drop --labels, --mean, "
            "--std, --resize and --crop"
        )
    images, labels = data.sample(name) if split == "sample" else data.load(name, split)
    names = Numbered(f"{name}-{split}", len(images))
    each, together = images.__getitem__, lambda start, stop: images[start:stop]
    return Source(f"{name}:{split}", names, each, labels.tolist(), together)


def _folder(folder: Path, options: SourceOptions) -> Source:
    from relprop.batch.tables import is_arrow_folder, open_arrow_folder

    if is_arrow_folder(folder):
        return open_arrow_folder(folder, options)
    paths = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        paths += [
            Path(parent, file)
            for file in sorted(files)
            if Path(file).suffix.lower() in IMAGE_SUFFIXES and not file.startswith(".")
        ]
    if not paths:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        raise FileFormatError(f"{printable(folder)}: no image files in this folder ({kinds})")
    return _images(paths, folder, options, printable(folder))


def _images(paths: list[Path], root: Path, options: SourceOptions, title: str) -> Source:
    if importlib.util.find_spec("PIL") is None:
        raise RelpropError("reading image files needs Pillow: pip install 'relprop[figures]'")
    names = [path.relative_to(root).as_posix() for path in paths]
    labels: Sequence[int | None] | None = None
    if options.labels == "folders":
        labels = folder_labels(names)
    elif options.labels is not None:
        labels = named_labels(Path(options.labels), names)

    def read(index: int) -> Tensor:
        return options.preprocess.load(paths[index], options.max_pixels)

    return Source(title, [printable(name) for name in names], read, labels)


def _numpy(path: Path, options: SourceOptions) -> Source:
    if path.suffix.lower() == ".npy":
        return _array(path, open_npy(path), None, options)
    arrays = open_npz(path, options.max_bytes)
    wanted = (options.array,) if options.array else INPUT_NAMES
    name = next((key for key in wanted if key in arrays), None)
    if name is None and len(arrays) == 1 and options.array is None:
        name = next(iter(arrays))
    if name is None:
        raise InputError(
            f"{printable(path)}: no array named {' or '.join(wanted)}; it holds "
            f"{printable(', '.join(arrays))}; pick one with --array"
        )
    labels = next((arrays[key] for key in LABEL_NAMES if key in arrays and key != name), None)
    return _array(path, arrays[name], labels, options)


def _idx(path: Path, options: SourceOptions) -> Source:
    array = data.read_idx(path, max_bytes=options.max_bytes).numpy()
    return _array(path, array, None, options)


def _array(path: Path, array: np.ndarray, own: np.ndarray | None, options: SourceOptions) -> Source:
    if array.ndim < 2:
        raise FileFormatError(
            f"{printable(path)}: an array of shape {list(array.shape)}; expected the inputs "
            "along the first axis, [N, ...]"
        )
    labels = None
    if options.labels is not None:
        labels = listed_labels(Path(options.labels), len(array))
    elif own is not None and own.shape == array.shape[:1] and own.dtype.kind in "iu":
        labels = own.tolist()

    def read(index: int) -> Tensor:
        row = np.array(array[index])
        return options.preprocess.normalise(native(row))

    def read_slice(start: int, stop: int) -> Tensor:
        return options.preprocess.normalise(native(np.array(array[start:stop]), 1), 1)

    names = Numbered(printable(path.stem), len(array))
    return Source(printable(path), names, read, labels, read_slice)


def native(row: np.ndarray, lead: int = 0) -> Tensor:
    """A tensor of an array of any byte order: bytes, float64, float32 or int64 for token ids.

    Bytes of shape `[H, W]`, after `lead` axes of samples, are grey images and get their channel
    axis.
    """
    if row.dtype == np.uint8:
        tensor = torch.from_numpy(row)
        return tensor.unsqueeze(lead) if tensor.ndim == 2 + lead else tensor
    if row.dtype.kind in "iu":
        return torch.from_numpy(row.astype(np.int64))
    return torch.from_numpy(row.astype(np.float64 if row.dtype.itemsize == 8 else np.float32))
