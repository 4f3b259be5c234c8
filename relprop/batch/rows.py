"""The explanations of one batch on their way to a file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from relprop.errors import FileFormatError

__all__ = ["COLUMNS", "Failure", "Rows", "little_endian", "pack_failures", "unpack_failures"]

COLUMNS = ("target", "score", "prediction", "label", "delta", "position")
"""Columns beside the relevance; `position` where a reduction keeps single entries."""


@dataclass(frozen=True)
class Failure:
    """A sample that could not be read or explained.

    Attributes:
        index: its place in the data set.
        name: what the data set calls it.
        reason: one sentence.
    """

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class Rows:
    """Explanations on the CPU, a row a sample.

    Attributes:
        index: places in the data set, int64 `[n]`, ascending.
        names: what the data set calls them.
        relevance: `[n, ...]`, or one tensor a sample where their shapes differ, or None.
        columns: some of `COLUMNS`, each `[n, ...]`.
        maps: `[m, ...]` what summaries sum, a row for each explained target; None without any.
        classes: the class of each row of `maps`.
        more: where whole explanations are kept, the model's output and relevance of hidden layers.
    """

    index: Tensor
    names: list[str]
    relevance: Tensor | list[Tensor] | None
    columns: dict[str, Tensor]
    maps: Tensor | list[Tensor] | None = None
    classes: Tensor | None = None
    more: dict[str, Tensor | list[Tensor]] = field(default_factory=dict)


def little_endian(tensor: Tensor) -> np.ndarray:
    """A tensor's values as they are stored."""
    array = tensor.detach().cpu().contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def pack_failures(failures: list[Failure]) -> bytes:
    """Failures as JSON."""
    rows = [[failure.index, failure.name, failure.reason] for failure in failures]
    return json.dumps(rows).encode()


def unpack_failures(data: bytes) -> list[Failure]:
    """What `pack_failures` made.

    Raises:
        FileFormatError: it is something else.
    """
    try:
        rows: list[Any] = json.loads(data)
        return [Failure(int(index), str(name), str(reason)) for index, name, reason in rows]
    except (ValueError, TypeError, RecursionError) as error:
        raise FileFormatError(f"its list of failures is damaged ({error})") from None
