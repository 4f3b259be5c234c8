"""Readers of files that may be hostile: what a header declares is checked before anything is read.

Nothing is unpickled.  Every failure is a `FileFormatError` of one sentence that names the file.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from relprop.errors import FileFormatError

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "PICKLED_SUFFIXES",
    "check_zip",
    "listed",
    "open_npy",
    "open_npz",
    "printable",
    "reading",
    "require_file",
]

MAX_PIXELS = 50_000_000
"""Default cap on the pixels of one image, before decoding and after resizing."""

MAX_BYTES = 4 * 1024**3
"""Default cap on what one file may unpack to."""

PICKLED_SUFFIXES = frozenset((".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"))

MAX_MEMBERS = 10_000


def printable(text: object, limit: int = 300) -> str:
    """`text` on one line, without control characters, cut to `limit` characters."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def listed(names: Sequence[object], most: int = 10) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more


def require_file(path: Path) -> int:
    """The size in bytes of a regular file.

    Raises:
        FileFormatError: it is missing, or a folder, a device, a pipe.
    """
    try:
        if not path.is_file():
            what = "not a regular file" if path.exists() else "no such file"
            raise FileFormatError(f"{printable(path)}: {what}")
        return path.stat().st_size
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{printable(path)}: cannot be read ({printable(error)})") from None


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into one `FileFormatError`."""
    try:
        yield
    except (FileFormatError, KeyboardInterrupt):
        raise
    except MemoryError:
        raise FileFormatError(f"{printable(path)}: not enough memory to read it") from None
    except Exception as error:
        reason = printable(error) or type(error).__name__
        raise FileFormatError(f"{printable(path)}: not a readable {what} ({reason})") from None


def _check_array(
    name: str, shape: tuple[int, ...], dtype: np.dtype, available: int, max_bytes: int
) -> None:
    """Refuse an array whose header is absurd, or promises more than `available` bytes hold."""
    if dtype.hasobject or dtype.kind not in "fiub":
        raise FileFormatError(
            f"{name}: holds {dtype!s}; expected real numbers (objects are never unpickled)"
        )
    size = math.prod(int(n) for n in shape) * dtype.itemsize
    if any(n < 0 for n in shape) or dtype.itemsize == 0:
        raise FileFormatError(f"{name}: shape {list(shape)} makes no sense")
    if size > max_bytes:
        raise FileFormatError(
            f"{name}: shape {list(shape)} of {dtype} takes {size:,} bytes, "
            f"more than the cap of {max_bytes:,}"
        )
    if size > available:
        raise FileFormatError(
            f"{name}: truncated; shape {list(shape)} of {dtype} takes {size:,} bytes, "
            f"the file holds {available:,}"
        )


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f".npy format {version[0]}.{version[1]}; expected 1.0 or 2.0")


def open_npy(path: Path, max_bytes: int | None = None) -> np.ndarray:
    """Map a .npy file into memory, after a look at its header; pages are read when used.

    Raises:
        FileFormatError: missing, damaged, truncated, holding objects, or larger than `max_bytes`.
    """
    size = require_file(path)
    with reading(path, ".npy file"):
        with path.open("rb") as stream:
            shape, _, dtype = _read_header(stream)
            held = size - stream.tell()
        _check_array(printable(path), shape, dtype, held, size if max_bytes is None else max_bytes)
        if math.prod(shape) == 0:
            return np.zeros(shape, dtype)  # an empty file cannot be mapped
        return np.load(path, mmap_mode="r", allow_pickle=False)


def check_zip(path: Path, max_bytes: int = MAX_BYTES) -> None:
    """Refuse a zip archive that is damaged or would unpack to more than `max_bytes`."""
    require_file(path)
    with reading(path, "zip archive"), zipfile.ZipFile(path) as archive:
        _check_members(path, archive, max_bytes)


def _check_members(path: Path, archive: zipfile.ZipFile, max_bytes: int) -> None:
    members = archive.infolist()
    total = sum(member.file_size for member in members)
    if len(members) > MAX_MEMBERS or total > max_bytes:
        raise FileFormatError(
            f"{printable(path)}: {len(members):,} members that unpack to {total:,} bytes, "
            f"more than the cap of {MAX_MEMBERS:,} members and {max_bytes:,} bytes"
        )


def open_npz(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """Read every array of a .npz archive, its declared sizes and each header checked first.

    Raises:
        FileFormatError: missing, damaged, truncated, holding objects, or unpacking to more than
            `max_bytes`.
    """
    require_file(path)
    arrays: dict[str, np.ndarray] = {}
    with reading(path, ".npz archive"), zipfile.ZipFile(path) as archive:
        _check_members(path, archive, max_bytes)
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as stream:
                shape, _, dtype = _read_header(stream)
                held = member.file_size - stream.tell()
                _check_array(f"{printable(path)}[{printable(name)}]", shape, dtype, held, max_bytes)
            with archive.open(member) as stream:
                arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    if not arrays:
        raise FileFormatError(f"{printable(path)}: an archive without arrays")
    return arrays
