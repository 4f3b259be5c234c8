"""Arrays of inputs along their first axis: .npy, .npz, safetensors, IDX."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from relprop import data
from relprop.errors import FileFormatError, InputError
from relprop.io.files import open_npy, open_npz, printable, require_file
from relprop.io.labels import listed_labels
from relprop.io.sources import Numbered, Source, SourceOptions

__all__ = ["INPUT_NAMES", "LABEL_NAMES", "native", "open_idx", "open_numpy", "open_safetensors"]

INPUT_NAMES = ("x", "inputs", "images", "data", "arr_0")
LABEL_NAMES = ("y", "labels", "targets", "arr_1")


def open_numpy(path: Path, options: SourceOptions) -> Source:
    """The rows of a .npy file, mapped, or of an array of a .npz archive.

    Raises:
        FileFormatError: damaged, holding objects, or larger than the caps.
        InputError: no array of that name.
    """
    if path.suffix.lower() == ".npy":
        return _array(path, open_npy(path), None, options)
    arrays = open_npz(path, options.max_bytes)
    name = _picked(path, arrays, options)
    labels = next((arrays[key] for key in LABEL_NAMES if key in arrays and key != name), None)
    return _array(path, arrays[name], labels, options)


def open_idx(path: Path, options: SourceOptions) -> Source:
    """The rows of an IDX file.

    Raises:
        FileFormatError: damaged, of another kind, or larger than the caps.
    """
    array = data.read_idx(path, max_bytes=options.max_bytes).numpy()
    return _array(path, array, None, options)


def open_safetensors(path: Path, options: SourceOptions) -> Source:
    """The rows of one tensor of a safetensors file, mapped; labels from another, if there are any.

    Raises:
        FileFormatError: damaged, or its header promises what the file does not hold.
        InputError: no tensor of that name.
    """
    require_file(path)
    try:
        file: Any = safe_open(path, framework="pt").__enter__()  # kept open with the source
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise FileFormatError(
            f"{printable(path)}: not a readable safetensors file ({printable(error)})"
        ) from None
    name = _picked(path, shapes, options)
    count = _require_rows(path, shapes[name])
    labels: Sequence[int | None] | None = None
    if options.labels is not None:
        labels = listed_labels(Path(options.labels), count)
    elif key := next((k for k in LABEL_NAMES if shapes.get(k) == [count] and k != name), None):
        labels = _whole(file.get_tensor(key))
    rows = file.get_slice(name)

    def read_slice(start: int, stop: int) -> Tensor:
        return options.preprocess.normalise(_plain(rows[start:stop], 1), 1)

    names = Numbered(printable(path.stem), count)
    return Source(printable(path), names, lambda i: read_slice(i, i + 1)[0], labels, read_slice)


def _plain(rows: Tensor, lead: int) -> Tensor:
    """Bytes of grey images get their channel axis; other whole numbers become int64."""
    if rows.dtype is torch.uint8:
        return rows.unsqueeze(lead) if rows.ndim == 2 + lead else rows
    return rows if rows.is_floating_point() else rows.long()


def _whole(labels: Tensor) -> list[int | None] | None:
    return None if labels.is_floating_point() else [int(label) for label in labels]


def _picked(path: Path, names: Collection[str], options: SourceOptions) -> str:
    """The array that holds the inputs: the one asked for, of a usual name, or the only one."""
    wanted = (options.array,) if options.array else INPUT_NAMES
    name = next((key for key in wanted if key in names), None)
    if name is None and len(names) == 1 and options.array is None:
        name = next(iter(names))
    if name is None:
        raise InputError(
            f"{printable(path)}: no array named {' or '.join(wanted)}; it holds "
            f"{printable(', '.join(names), 500)}; pick one with --array"
        )
    return name


def _require_rows(path: Path, shape: Sequence[int]) -> int:
    """How many inputs an array holds."""
    if len(shape) < 2:
        raise FileFormatError(
            f"{printable(path)}: an array of shape {list(shape)}; expected the inputs "
            "along the first axis, [N, ...]"
        )
    return shape[0]


def _array(path: Path, array: np.ndarray, own: np.ndarray | None, options: SourceOptions) -> Source:
    count, labels = _require_rows(path, array.shape), None
    if options.labels is not None:
        labels = listed_labels(Path(options.labels), count)
    elif own is not None and own.shape == array.shape[:1] and own.dtype.kind in "iu":
        labels = own.tolist()

    def read(index: int) -> Tensor:
        row = np.array(array[index])
        return options.preprocess.normalise(native(row))

    def read_slice(start: int, stop: int) -> Tensor:
        return options.preprocess.normalise(native(np.array(array[start:stop]), 1), 1)

    names = Numbered(printable(path.stem), count)
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
