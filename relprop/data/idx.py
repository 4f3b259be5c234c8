"""The IDX format of MNIST's files: a big-endian header, then one array."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from relprop.errors import FileFormatError

__all__ = ["read_idx"]

DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_DIMENSIONS = 8


def read_idx(path: str | os.PathLike[str], *, max_bytes: int = 1 << 31) -> Tensor:
    """Read one IDX file, plain or gzip-compressed (told by its content, not its name).

    No more is unpacked than the header declares, and no more than `max_bytes`.

    Returns: a tensor of the header's shape and type (uint8, int8, int16, int32, float32, float64).

    Raises: FileFormatError for a missing, truncated, overlong or damaged file, another format, an
    absurd shape, or more than `max_bytes` of data.

    Source: the format's description in "The MNIST database of handwritten digits", LeCun et al.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as stream:
            shape, dtype = _header(path, stream)
            # an empty axis beside huge ones is as absurd as a huge array
            if math.prod(max(n, 1) for n in shape) * dtype.itemsize > max_bytes:
                raise FileFormatError(
                    f"read_idx: {path} declares shape {shape}; at most {max_bytes} bytes are read. "
                    f"If the file is right, pass a larger max_bytes."
                )
            expected = math.prod(shape) * dtype.itemsize
            # a byte more shows that the data end here, however far a bomb would unpack
            content = stream.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise FileFormatError(f"read_idx: cannot read {path}: {error}") from error
    if len(content) != expected:
        came = "more" if len(content) > expected else f"{len(content)}"
        raise FileFormatError(
            f"read_idx: {path} declares shape {shape}, {expected} bytes of data, but holds {came}: "
            f"it is truncated or damaged. Get it again."
        )
    array = np.frombuffer(content, dtype).reshape(shape)
    return torch.from_numpy(array.astype(dtype.newbyteorder("=")))


def _header(
    path: Path, stream: BinaryIO | gzip.GzipFile
) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and element type."""
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
    return struct.unpack(f">{dimensions}I", sizes), np.dtype(DTYPES[magic[2]])
