"""Grids of pictures, and PNG files without a library for them."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np

from relprop.atomic import replacing
from relprop.errors import InputError
from relprop.image.colours import Pixels

__all__ = ["grid", "save_png"]


def grid(images: Pixels, columns: int, pad: int = 2) -> Pixels:
    """Pictures `[N, H, W, 3]` side by side, `columns` in a row, `pad` white pixels around each.

    Returns: bytes `[rows * (H + pad) + pad, columns * (W + pad) + pad, 3]`.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or columns < 1 or pad < 0:
        raise InputError(
            f"image.grid: images {images.shape}, {columns} columns, pad {pad}; expected "
            f"[N, H, W, 3], at least one column, pad >= 0."
        )
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    canvas = np.full(
        (rows * (height + pad) + pad, columns * (width + pad) + pad, 3), 255, dtype=np.uint8
    )
    for index, picture in enumerate(images):
        top = pad + (index // columns) * (height + pad)
        left = pad + (index % columns) * (width + pad)
        canvas[top : top + height, left : left + width] = picture
    return canvas


def save_png(path: str | os.PathLike[str], rgb: Pixels) -> Path:
    """Write bytes `[H, W, 3]` as a PNG file, whole or not at all; returns its path."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise InputError(
            f"image.save_png: {rgb.dtype} {rgb.shape}; expected uint8 [H, W, 3], not empty."
        )
    height, width, _ = rgb.shape
    # Every row starts with its filter type, 0: none.
    rows = np.concatenate([np.zeros((height, 1), np.uint8), rgb.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    with replacing(path) as temporary:
        temporary.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + _chunk(b"IHDR", header)
            + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
            + _chunk(b"IEND", b"")
        )
    return Path(path)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
