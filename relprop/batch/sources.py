"""Further sources: safetensors, a torch Dataset of the user's, and whatever fsspec opens."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from relprop.batch.loading import imported
from relprop.cli.files import printable, require_file
from relprop.cli.sources import (
    IMAGE_SUFFIXES,
    INPUT_NAMES,
    LABEL_NAMES,
    Labelled,
    Numbered,
    Source,
    SourceOptions,
)
from relprop.errors import FileFormatError, InputError, RelpropError

__all__ = ["named_dataset", "open_safetensors", "open_url"]

CHUNK = 1 << 20
PAIR = 2


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
    wanted = (options.array,) if options.array else INPUT_NAMES
    name = next((key for key in wanted if key in shapes), None)
    if name is None and len(shapes) == 1 and options.array is None:
        name = next(iter(shapes))
    if name is None or len(shapes[name]) < PAIR:
        raise InputError(
            f"{printable(path)}: no tensor [N, ...] named {' or '.join(wanted)}; it holds "
            f"{printable(', '.join(shapes), 500)}; pick one with --array"
        )
    count = shapes[name][0]
    key = next((k for k in LABEL_NAMES if shapes.get(k) == [count] and k != name), None)
    labels = None if key is None else _whole(file.get_tensor(key))
    rows = file.get_slice(name)

    def read_slice(start: int, stop: int) -> Tensor:
        return options.preprocess.normalise(_plain(rows[start:stop], 1), 1)

    names = Numbered(printable(path.stem), count)
    return Source(printable(path), names, lambda i: read_slice(i, i + 1)[0], labels, read_slice)


def _plain(rows: Tensor, lead: int) -> Tensor:
    """Bytes of grey images get their channel axis; other whole numbers become int64."""
    if rows.dtype is torch.uint8:
        return rows.unsqueeze(lead) if rows.ndim == PAIR + lead else rows
    return rows if rows.is_floating_point() else rows.long()


def _whole(labels: Tensor) -> list[int | None] | None:
    return None if labels.is_floating_point() else [int(label) for label in labels]


def named_dataset(spec: str, options: SourceOptions) -> Source:
    """A torch Dataset by import path: `package.module:name`, an object, or what makes one.

    An item is an input, or a pair of an input and a label.

    Raises:
        InputError: code is not trusted, fails, or gives no sequence.
    """
    found = imported(spec, options.trust, "data")
    try:
        dataset = found() if callable(found) and not hasattr(found, "__getitem__") else found
        dataset = dataset() if isinstance(dataset, type) else dataset
        count = len(dataset)
    except Exception as error:
        raise InputError(
            f"data {printable(spec)!r}: {type(error).__name__}: {printable(error)}; expected a "
            "Dataset with a length, or a callable without arguments that returns one"
        ) from error

    def read(index: int) -> Any:
        item = dataset[index]
        if isinstance(item, tuple | list) and len(item) == PAIR and _is_label(item[1]):
            return Labelled(item[0], int(item[1]))
        return item

    return Source(printable(spec), Numbered(printable(spec.partition(":")[2]), count), read)


def _is_label(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_floating_point()
    return isinstance(value, int)


def open_url(spec: str, options: SourceOptions, open_file: Callable[..., Source]) -> Source:
    """Data behind a URL that fsspec opens, such as s3://bucket/images or memory://x.npy.

    A folder of images is read file by file; anything else is copied to a temporary file first,
    at most `options.max_bytes` of it.

    Args:
        spec: the URL.
        options: how to read it.
        open_file: opens a local path, as `relprop.cli.sources.open_source` does.

    Raises:
        FileFormatError: nothing there, too large, or not readable.
        RelpropError: fsspec, or what it needs for this protocol, is not installed.
    """
    try:
        import fsspec
    except ImportError:
        raise RelpropError("data behind a URL need fsspec: pip install fsspec") from None
    try:
        system, path = fsspec.core.url_to_fs(spec)
        folder = system.isdir(path)
        files = sorted(system.find(path)) if folder else []
    except ImportError as error:
        raise RelpropError(f"{printable(spec)}: {printable(error)}") from None
    except Exception as error:
        raise _unreadable(spec, error) from None
    if not folder:
        return replace(open_file(_copied(system, path, spec, options), options), title=spec)
    images = [file for file in files if PurePosixPath(file).suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise FileFormatError(f"{printable(spec)}: no image files in this folder")
    if options.labels is not None:
        raise InputError("--labels: not for a folder behind a URL")

    def read(index: int) -> Tensor:
        file = images[index]
        try:
            if system.size(file) > options.max_bytes:
                raise FileFormatError(f"{printable(file)}: more than {options.max_bytes:,} bytes")
            stored = system.cat_file(file)
        except FileFormatError:
            raise
        except Exception as error:
            raise _unreadable(file, error) from None
        return options.preprocess.load(Path(file), options.max_pixels, stored)

    names = [printable(file.removeprefix(path).lstrip("/")) for file in images]
    return Source(printable(spec), names, read)


def _copied(system: Any, path: str, spec: str, options: SourceOptions) -> str:
    """A file behind a URL, copied into a temporary folder that ends with the process."""
    folder = Path(tempfile.mkdtemp(prefix="relprop-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = folder / f"data{PurePosixPath(path).suffix}"
    held = 0
    try:
        with system.open(path, "rb") as stream, target.open("wb") as copy:
            while chunk := stream.read(CHUNK):
                held += len(chunk)
                if held > options.max_bytes:
                    raise FileFormatError(
                        f"{printable(spec)}: more than the cap of {options.max_bytes:,} bytes"
                    )
                copy.write(chunk)
    except FileFormatError:
        raise
    except Exception as error:
        raise _unreadable(spec, error) from None
    return str(target)


def _unreadable(what: object, error: Exception) -> FileFormatError:
    reason = printable(error) or type(error).__name__
    return FileFormatError(f"{printable(what)}: cannot be read ({reason})")
