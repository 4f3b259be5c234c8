"""The errors of relprop: each says where it happened, what came, what was expected, what to do."""

from __future__ import annotations

__all__ = [
    "CaptureError",
    "FileFormatError",
    "InputError",
    "ModelError",
    "PlanningError",
    "RelpropError",
    "is_out_of_memory",
]


class RelpropError(Exception):
    """Base class of every error that relprop raises on purpose."""


class CaptureError(RelpropError):
    """The model could not be turned into a graph of operations."""


class PlanningError(RelpropError):
    """The graph holds an operation, or a composite a selector, that no rule fits."""


class InputError(RelpropError, ValueError):
    """An input, target or option has the wrong shape, type, range or value."""


class ModelError(InputError):
    """The model itself fails on its inputs."""


class FileFormatError(RelpropError):
    """A file is missing, damaged, of another kind, or larger than is safe to read."""


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch failed to get memory, on a GPU or on the CPU."""
    return any(words in str(error) for words in _OUT_OF_MEMORY)
