"""What kernels read and write, from the arguments of their launches.

A tensor counts with its size, once for each launch that reads or writes it; caches may hold some of
it, and a kernel may read a tensor more than once.  The library's own products are not listed.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

__all__ = ["Launch", "recorded"]

_CONTRACTION = (
    {"x": None, "w": None, "bias": "BIASED", "box": "BOXED"},
    {"z": "SAVE", "y": "OUTPUT"},
)
_ADJOINT = (
    {"s": None, "w": None, "a": "READ", "box": "BOXED", "lower": "LOWER"},
    {"out": None},
)
_KERNELS: dict[str, tuple[dict[str, str | None], dict[str, str | None]]] = {
    "conv_contraction": _CONTRACTION,
    "dense_contraction": _CONTRACTION,
    "conv_adjoint": _ADJOINT,
    "dense_adjoint": _ADJOINT,
    "product_contraction": ({"p": None, "bias": "BIASED"}, {"z": "SAVE", "y": "OUTPUT"}),
    "product_adjoint": ({"p": None, "a": "READ", "lower": "LOWER"}, {"out": None}),
    "quotient": ({"r": None, "z": None}, {"s": None}),
    "modified_weights": ({"w": None}, {"out": None}),
    "sum_values": ({"a": None, "b": None}, {"y": None}),
    "sum_shares": (
        {"a": None, "b": None, "r": None, "lower0": "LOWER0", "lower1": "LOWER1"},
        {"out0": None, "out1": None},
    ),
    "max_pool_kernel": ({"x": None}, {"y": None, "winners": None}),
    "max_pool_adjoint": ({"r": None, "winners": None, "lower": "LOWER"}, {"out": None}),
    "average_pool_kernel": ({"x": None}, {"y": None}),
    "average_pool_adjoint": ({"r": None, "y": None, "a": None, "lower": "LOWER"}, {"out": None}),
    "linear_resample_kernel": ({"x": None}, {"y": None}),
    "linear_resample_adjoint": (
        {"r": None, "y": None, "a": None, "lower": "LOWER"},
        {"out": None},
    ),
    "flat_dense": ({"r": None}, {"out": None}),
    "flat_quotient": ({"r": None}, {"s": None}),
}
"""For each kernel the tensors that it reads and writes, and the flag on which that depends."""


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: name of the kernel.
        reads, writes: bytes of the tensors.
    """

    kernel: str
    reads: int
    writes: int


def _bytes(tensor: Tensor) -> int:
    """Of what lies in memory: an expanded axis counts once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * prod(size for size, stride in sizes if stride or not size)


def launch_of(kernel: str, arguments: Mapping[str, Any]) -> Launch:
    """The traffic of a launch with these arguments by name."""

    def total(tensors: Mapping[str, str | None]) -> int:
        return sum(
            _bytes(arguments[name])
            for name, flag in tensors.items()
            if flag is None or arguments[flag] not in (None, False)
            if not (name == "lower" and arguments[flag or name] == "input")
        )

    reads, writes = _KERNELS[kernel]
    added = {"out": "ADD"} if "ADD" in arguments else {}
    return Launch(kernel, total({**reads, **added}), total(writes))


@contextlib.contextmanager
def recorded(*, run: bool = True) -> Iterator[list[Launch]]:
    """Within the block every launch is listed; with `run` false, none takes place."""
    from triton.runtime.interpreter import GridExecutor
    from triton.runtime.jit import JITFunction

    from relprop import kernels

    launcher, name = (GridExecutor, "__call__") if kernels.interpreted() else (JITFunction, "run")
    original = getattr(launcher, name)
    found: list[Launch] = []

    def listed(self: Any, *args: Any, **kwargs: Any) -> Any:
        function = self.fn
        names = inspect.signature(function).parameters
        own = {key: value for key, value in kwargs.items() if key in names}
        bound = inspect.signature(function).bind_partial(*args, **own)
        found.append(launch_of(function.__name__, bound.arguments))
        return original(self, *args, **kwargs) if run else None

    setattr(launcher, name, listed)
    try:
        yield found
    finally:
        setattr(launcher, name, original)
