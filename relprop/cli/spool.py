"""A safetensors file written from tensors that arrive one at a time: memory stays small."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relprop.atomic import replacing

__all__ = ["Spool", "write_spools"]

NAMES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}


class Spool:
    """Tensors of one kind, appended to an unnamed temporary file in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()
        self._entries: list[tuple[str, list[int], int]] = []

    def append(self, tensor: Tensor) -> None:
        """Add one tensor: float32, float64 or int64."""
        array = tensor.detach().cpu().contiguous().numpy()
        self._file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        self._entries.append((NAMES[tensor.dtype], list(tensor.shape), array.nbytes))

    @property
    def uniform(self) -> bool:
        """Whether all tensors are of one type and shape."""
        return len({(dtype, tuple(shape)) for dtype, shape, _ in self._entries}) == 1

    def header(self, name: str, offset: int) -> tuple[dict[str, Any], int]:
        """Header entries, and where the next spool's data begin.

        Tensors of one type and shape become one tensor `name` with a new first axis, which needs no
        copy; others are stored apart as `name.000000`, `name.000001`, …
        """
        if self.uniform:
            dtype, shape, _ = self._entries[0]
            end = offset + sum(size for *_, size in self._entries)
            whole = {"dtype": dtype, "shape": [len(self._entries), *shape]}
            return {name: {**whole, "data_offsets": [offset, end]}}, end
        entries = {}
        for index, (dtype, entry_shape, size) in enumerate(self._entries):
            place = {"dtype": dtype, "shape": entry_shape, "data_offsets": [offset, offset + size]}
            entries[f"{name}.{index:06d}"] = place
            offset += size
        return entries, offset

    def copy_to(self, stream: Any) -> None:
        """Write all data to an open binary file."""
        self._file.seek(0)
        shutil.copyfileobj(self._file, stream, 1 << 20)

    def close(self) -> None:
        """Free the temporary file."""
        self._file.close()


def write_spools(path: Path, spools: dict[str, Spool], metadata: dict[str, str]) -> None:
    """Write one safetensors file from all spools, in their order, beside `path`, then rename."""
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, spool in spools.items():
        entries, offset = spool.header(name, offset)
        header.update(entries)
    text = json.dumps(header).encode()
    text += b" " * (8 * math.ceil(len(text) / 8) - len(text))  # data begin at a multiple of 8
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for spool in spools.values():
            spool.copy_to(stream)
