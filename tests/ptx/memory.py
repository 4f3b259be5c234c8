"""Global memory: the storages of a launch's tensors, and nothing beside them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from ptx.text import PtxError
from ptx.values import Array

__all__ = ["Storages"]


class _Storage(NamedTuple):
    start: int
    end: int
    octets: Array


class Storages:
    """Memory that a launch may touch, by address."""

    def __init__(self) -> None:
        self._known: list[_Storage] = []

    def add(self, tensor: torch.Tensor) -> None:
        """The whole storage of a tensor."""
        storage = tensor.untyped_storage()
        start, size = storage.data_ptr(), storage.nbytes()
        if size and all(known.start != start for known in self._known):
            octets = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(start))
            self._known = sorted([*self._known, _Storage(start, start + size, octets)])

    def load(self, addresses: Array, size: int) -> Array:
        """`[threads, size]` octets."""
        found = np.empty((len(addresses), size), np.uint8)
        for chosen, storage in self._parts(addresses, size, "load"):
            found[chosen] = storage.octets[_places(addresses[chosen], storage, size)]
        return found

    def store(self, addresses: Array, octets: Array) -> None:
        """Write `[threads, size]` octets."""
        size = octets.shape[1]
        for chosen, storage in self._parts(addresses, size, "store"):
            storage.octets[_places(addresses[chosen], storage, size)] = octets[chosen]

    def _parts(self, addresses: Array, size: int, what: str) -> Iterator[tuple[Any, _Storage]]:
        """Which of the addresses lie in which storage.

        Raises:
            PtxError: one is no multiple of the size, or in no storage.
        """
        if not len(addresses):
            return
        if (addresses % np.uint64(size)).any():
            raise PtxError(f"misaligned {size}-byte {what}")
        low, high = int(addresses.min()), int(addresses.max()) + size
        for storage in self._known:
            if storage.start <= low and high <= storage.end:
                yield slice(None), storage
                return
        starts = np.array([storage.start for storage in self._known], np.uint64)
        numbers = np.searchsorted(starts, addresses, side="right") - 1
        for number in np.unique(numbers):
            chosen = np.nonzero(numbers == number)[0]
            last = int(addresses[chosen].max())
            storage = self._known[number] if number >= 0 else _Storage(last, last, octets=starts)
            if last + size > storage.end:
                raise PtxError(
                    f"{what} outside every argument's storage: {size} bytes, "
                    f"{last + size - storage.end} behind the end of {storage.end - storage.start}"
                )
            yield chosen, storage


def _places(addresses: Array, storage: _Storage, size: int) -> Array:
    first = (addresses - np.uint64(storage.start)).astype(np.int64)
    return first[:, None] + np.arange(size)
