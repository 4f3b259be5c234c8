"""The sample of real test images that comes with the package: 20 of each class, offline."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from relprop.data.sets import lookup
from relprop.errors import FileFormatError

__all__ = ["read_sample"]

FOLDER = Path(__file__).parent / "samples"


def read_sample(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Bytes `[200, 28, 28]`, labels int64 `[200]`, indices in the official test set int64 `[200]`.

    Image i has label i mod 10: any ten neighbours hold each class once.

    Raises: InputError for an unknown name; FileFormatError for a missing or damaged file.
    """
    path = FOLDER / f"{lookup(name).name}.safetensors"
    try:
        tensors = load_file(path)
        images, labels, indices = (tensors[key] for key in ("images", "labels", "indices"))
    except (OSError, SafetensorError, KeyError) as error:
        raise FileFormatError(
            f"relprop.data.sample({name!r}): cannot read {path}: {error}. Install relprop again."
        ) from error
    return images, labels.to(torch.int64), indices.to(torch.int64)
