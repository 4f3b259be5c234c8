"""The IDX format of MNIST's files: a big-endian header, then one array."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from relprop.errors import FileFormatError

__all__ = ["read_idx"]

DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_DIMENSIONS = 8
# Deflate cannot shrink data by more than this factor (zlib's documentation: 1032:1).
MAX_DEFLATE_RATIO = 1032
CHUNK = 1 << 20


def read_idx(path: str | os.PathLike[str], *, max_bytes: int = 1 << 31) -> Tensor:
    """Read one IDX file, plain or gzip-compressed (told by its content, not its name).

    The header is checked against the file's size before anything is allocated.

    Returns: a tensor of the header's shape and type (uint8, int8, int16, int32, float32, float64).

    Raises: FileFormatError for a missing, truncated, overlong or damaged file, another format, an
    absurd shape, or more than `max_bytes` of data.

    Source: the format's description in "The MNIST database of handwritten digits", LeCun et al.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if zipped else file
            return _read(path, stream, size, zipped, max_bytes)
    except (OSError, EOFError, zlib.error) as error:
        raise FileFormatError(f"read_idx: cannot read {path}: {error}") from error


def _read(path: Path, stream: BinaryIO, size: int, zipped: bool, max_bytes: int) -> Tensor:
    shape, dtype, header = _header(path, stream)
    expected = math.prod(shape) * dtype.itemsize
    if expected > max_bytes:
        raise FileFormatError(
            f"read_idx: {path} declares shape {shape}, {expected} bytes; at most {max_bytes} are "
            f"read. If the file is right, pass a larger max_bytes."
        )
    fits = expected <= size * MAX_DEFLATE_RATIO if zipped else header + expected == size
    if not fits:
        held = f"{size} bytes" + (" compressed" if zipped else "")
        raise FileFormatError(
            f"read_idx: {path} declares shape {shape}, {header + expected} bytes with its header, "
            f"but the file has {held}: it is truncated or damaged. Get it again."
        )
    data = bytearray()
    while chunk := stream.read(min(CHUNK, expected - len(data) + 1)):
        data += chunk
    if len(data) != expected:
        came = "more" if len(data) > expected else f"{len(data)}"
        raise FileFormatError(
            f"read_idx: {path} declares shape {shape}, {expected} bytes of data, but holds {came}: "
            f"it is damaged. Get it again."
        )
    array = np.frombuffer(data, dtype=dtype).reshape(shape)
    return torch.from_numpy(array.astype(dtype.newbyteorder("="), copy=False))


def _header(path: Path, stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype[np.generic], int]:
    """Shape, element type and the header's length in bytes."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES:
        raise FileFormatError(
            f"read_idx: {path} starts with bytes {magic.hex(' ') or '(none)'}; an IDX file starts "
            f"with 00 00, a type code 08-0e and the number of dimensions."
        )
    dimensions = magic[3]
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise FileFormatError(
            f"read_idx: {path} declares {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are read."
        )
    sizes = stream.read(4 * dimensions)
    if len(sizes) != 4 * dimensions:
        raise FileFormatError(f"read_idx: {path} ends within its header. Get it again.")
    shape = struct.unpack(f">{dimensions}I", sizes)
    return shape, np.dtype(DTYPES[magic[2]]), 4 + 4 * dimensions
