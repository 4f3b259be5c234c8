"""Further sources: a torch Dataset of the user's, and whatever fsspec opens."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from relprop.errors import FileFormatError, InputError, RelpropError
from relprop.io.files import printable
from relprop.io.loading import imported
from relprop.io.pictures import IMAGE_SUFFIXES, require_pillow
from relprop.io.sources import Labelled, Numbered, Source, SourceOptions

__all__ = ["named_dataset", "open_url"]

CHUNK = 1 << 20
PAIR = 2


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

    def scaled(value: Any) -> Any:
        plain = options.preprocess.mean is None and options.preprocess.std is None
        if plain or not isinstance(value, Tensor):
            return value
        return options.preprocess.normalise(value)

    def read(index: int) -> Any:
        item = dataset[index]
        if isinstance(item, tuple | list) and len(item) == PAIR and _is_label(item[1]):
            return Labelled(scaled(item[0]), int(item[1]))
        return scaled(item)

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
        open_file: opens a local path, as `relprop.io.inputs.open_source` does.

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
        raise RelpropError(f"{printable(spec)}: {printable(error)}: {_pip(spec)}") from None
    except Exception as error:
        raise _unreadable(spec, error) from None
    if not folder:
        return replace(open_file(_copied(system, path, spec, options), options), title=spec)
    images = [file for file in files if PurePosixPath(file).suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise FileFormatError(f"{printable(spec)}: no image files in this folder")
    if options.labels is not None:
        raise InputError("--labels: not for a folder behind a URL")
    require_pillow()

    def read(index: int) -> Labelled:
        file = images[index]
        try:
            if system.size(file) > options.max_bytes:
                raise FileFormatError(f"{printable(file)}: more than {options.max_bytes:,} bytes")
            stored = system.cat_file(file)
        except FileFormatError:
            raise
        except Exception as error:
            raise _unreadable(file, error) from None
        value, note = options.preprocess.read(Path(file), options.max_pixels, stored)
        return Labelled(value, note=note)

    def names(among: list[str]) -> list[str]:
        return [printable(file.removeprefix(path).lstrip("/")) for file in among]

    others = sorted(set(files) - set(images))
    return Source(printable(spec), names(images), read, passed=names(others))


def _pip(spec: str) -> str:
    """The line that installs what a URL's protocol needs."""
    from fsspec.registry import known_implementations

    protocol = spec.partition("://")[0]
    parts = str(known_implementations.get(protocol, {}).get("class", "")).split(".")
    return (
        f"pip install 'fsspec[{parts[2]}]'" if parts[0] == "fsspec" else f"pip install {parts[0]}"
    )


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
