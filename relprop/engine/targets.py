"""Targets: which entries of the output are explained, and the relevance they start with.

Inside the engine relevance has a leading axis of K targets a sample; `seed` makes it and
`squeeze_targets` turns it into what the caller gets.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop.capture.call import Call, check_finite
from relprop.errors import InputError
from relprop.graph import Graph

__all__ = [
    "STARTS",
    "Start",
    "Starting",
    "Target",
    "resolve_target",
    "seed",
    "squeeze_targets",
    "start_sums",
]

STARTS = ("output", "one", "relu")
"""The starting values that have a name."""

Start = str | Tensor | Callable[[Tensor], Tensor]
"""A name of `STARTS`, a function of the output, or a relevance shaped like the output."""


@dataclass(frozen=True, eq=False)
class Target:
    """Resolved targets.

    Attributes:
        index: position of each target in its sample's output, int64 `[K, batch, dims]` on the CPU,
            `dims` counting the axes of the output besides the batch's.
        keep_axis: whether the caller gets an axis of K targets.
        batch_axis: the batch's axis in the output, >= 0.
    """

    index: Tensor
    keep_axis: bool
    batch_axis: int

    @property
    def count(self) -> int:
        """K, the number of targets of each sample."""
        return self.index.shape[0]


def resolve_target(
    target: Any, output_shape: Sequence[int], batch: int, batch_axis: int = 0
) -> Target:
    """Check a target against the output and bring it into one form.

    Args:
        target: an int for all samples; a list or 1-d integer tensor or array, one a sample; a 2-d
            integer tensor or array `[batch, K]`; a tuple that indexes one entry of an output of
            several dimensions, or a list of such tuples, one a sample; None where the output has
            one value a sample.
        output_shape: shape of the output, batch included.
        batch: number of samples.
        batch_axis: the batch's axis in the output.

    Raises:
        InputError: a target is of another type, negative, out of range, or not one a sample.
    """
    axis = _batch_axis(output_shape, batch, batch_axis)
    sizes = tuple(int(n) for i, n in enumerate(output_shape) if i != axis)
    index, keep_axis = _index(target, sizes, batch)
    return Target(index, keep_axis, axis)


def _batch_axis(shape: Sequence[int], batch: int, axis: int) -> int:
    if not -len(shape) <= axis < len(shape) or shape[axis] != batch:
        raise InputError(
            f"target: the output has shape {tuple(shape)}; expected its axis {axis} to count the "
            f"{batch} samples of the batch"
        )
    return axis % len(shape)


def _is_integer(value: Any) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim == 0 and _is_integer(value.item())
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _index(target: Any, sizes: tuple[int, ...], batch: int) -> tuple[Tensor, bool]:
    """The targets as int64 `[K, batch, dims]`, and whether K is an axis of the result."""
    if target is None:
        if any(size != 1 for size in sizes):
            raise InputError(
                f"target: None, but the output has {_describe(sizes)} a sample; expected a target, "
                "for instance the index of a class"
            )
        return torch.zeros(1, batch, len(sizes), dtype=torch.int64), False
    if isinstance(target, (Tensor, np.ndarray)) and target.ndim > 0:
        return _array_index(target, sizes, batch)
    if isinstance(target, list):
        _check_count(len(target), batch)
        rows = [_entry(value, sizes, f"target[{i}]") for i, value in enumerate(target)]
        return torch.tensor(rows, dtype=torch.int64).reshape(1, batch, len(sizes)), False
    entry = torch.tensor(_entry(target, sizes, "target"), dtype=torch.int64)
    return entry.expand(1, batch, len(sizes)), False


def _array_index(
    target: Tensor | np.ndarray[Any, Any], sizes: tuple[int, ...], batch: int
) -> tuple[Tensor, bool]:
    """The same for a tensor or array `[batch]` or `[batch, K]`."""
    if not _holds_integers(target):
        raise InputError(f"target: {target.dtype} entries; expected integers, as from .long()")
    if target.ndim > 2 or (target.ndim == 2 and target.shape[1] == 0):
        raise InputError(
            f"target: shape {tuple(target.shape)}; expected [batch], or [batch, K] for K >= 1 "
            "targets a sample"
        )
    if len(sizes) != 1:
        raise InputError(f"target: an array of integers, but {_advice(sizes)}")
    _check_count(target.shape[0], batch)
    index = torch.as_tensor(target).detach().cpu().to(torch.int64)
    wrong = ((index < 0) | (index >= sizes[0])).nonzero()
    if len(wrong):
        place = tuple(wrong[0].tolist())
        name = f"target[{', '.join(map(str, place))}]"
        raise _out_of_range(name, (int(index[place]),), sizes)
    rows = index if index.ndim == 2 else index.unsqueeze(1)
    return rows.T.unsqueeze(-1), index.ndim == 2


def _holds_integers(target: Tensor | np.ndarray[Any, Any]) -> bool:
    if isinstance(target, np.ndarray):
        return bool(np.issubdtype(target.dtype, np.integer))
    dtype = target.dtype
    return not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)


def _entry(value: Any, sizes: tuple[int, ...], name: str) -> tuple[int, ...]:
    """One position in a sample's output."""
    if not (_is_integer(value) or (isinstance(value, tuple) and all(map(_is_integer, value)))):
        raise InputError(
            f"{name}: {value!r} of type {type(value).__name__}; expected an integer, or a tuple of "
            "integers where the output has several dimensions (for K targets a sample pass a 2-d "
            "integer tensor)"
        )
    if isinstance(value, tuple):
        position = tuple(int(i) for i in value)
        accepted = len(position) == len(sizes)
    else:
        position, accepted = (int(value),), len(sizes) == 1
    if not accepted:
        raise InputError(f"{name}: {value!r}, but {_advice(sizes)}")
    if any(not 0 <= i < size for i, size in zip(position, sizes, strict=True)):
        raise _out_of_range(name, position, sizes)
    return position


def _out_of_range(name: str, position: tuple[int, ...], sizes: tuple[int, ...]) -> InputError:
    shown = position[0] if len(position) == 1 else position
    ranges = " x ".join(f"0 to {size - 1}" for size in sizes)
    return InputError(
        f"{name}: {shown} is out of range; expected {ranges}, the output having "
        f"{_describe(sizes)} a sample"
    )


def _advice(sizes: tuple[int, ...]) -> str:
    if not sizes:
        return (
            "the output has one value a sample; expected target=None (or, where the inputs are one "
            "sample without a batch axis, x.unsqueeze(0))"
        )
    if len(sizes) == 1:
        return (
            f"the output has {_describe(sizes)} a sample; expected an int for all, or a list or "
            "1-d tensor with one a sample"
        )
    return (
        f"the output has {_describe(sizes)} a sample; expected a tuple of {len(sizes)} integers, "
        "or a list of such tuples, one a sample"
    )


def _describe(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes)) + (" value" if sizes == (1,) else " values")


def _check_count(count: int, batch: int) -> None:
    if count != batch:
        raise InputError(
            f"target: {count} entries for a batch of {batch}; expected one a sample, or an int "
            "for all"
        )


def seed(target: Target | None, output: Tensor, start: Start) -> Tensor:
    """The relevance of the output that a run begins with, `[K, *output.shape]`.

    Zero but at the targets.  float64 for a float64 output, else float32.

    Args:
        target: the resolved target; None if `start` is a tensor.
        output: the output explained.
        start: "output", "one", "relu" (of the output), a function from the output to a tensor
            shaped like it, or a tensor shaped like the output: the whole relevance, K = 1.

    Raises:
        InputError: the output is not real floating point, or the start is unknown, of another
            shape, or a tensor beside a target.
    """
    if not output.is_floating_point():
        raise InputError(f"output: {output.dtype}; expected floating point to explain")
    dtype = torch.float64 if output.dtype is torch.float64 else torch.float32
    output = output.detach().to(dtype)
    if isinstance(start, Tensor):
        if target is not None:
            raise InputError(
                "start: a tensor beside a target; expected target=None, the tensor being the whole "
                "relevance of the output"
            )
        return _like_output("start", start, output).unsqueeze(0)
    values = _start_values(start, output)
    if target is None:
        raise InputError(f"start: {start!r} needs a target; only a tensor stands alone")
    return _scatter(values, target)


def _start_values(start: str | Callable[[Tensor], Tensor], output: Tensor) -> Tensor:
    if start == "output":
        return output
    if start == "one":
        return torch.ones_like(output)
    if start == "relu":
        return output.relu()
    if callable(start):
        return _like_output("start(output)", start(output), output)
    near = difflib.get_close_matches(str(start), STARTS, n=1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    raise InputError(
        f"start: {start!r}; expected one of {', '.join(map(repr, STARTS))}, a function of the "
        f"output, or a tensor shaped like it{hint}"
    )


def _like_output(name: str, value: Any, output: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise InputError(
            f"{name}: {type(value).__name__}; expected a tensor shaped like the output"
        )
    if value.shape != output.shape or value.is_complex() or value.dtype is torch.bool:
        raise InputError(
            f"{name}: shape {tuple(value.shape)}, {value.dtype}; expected real numbers of shape "
            f"{tuple(output.shape)}, like the output"
        )
    return value.detach().to(device=output.device, dtype=output.dtype)


def _scatter(values: Tensor, target: Target) -> Tensor:
    count, batch, _ = target.index.shape
    device = values.device
    sample = torch.arange(batch, device=device).expand(count, batch)
    which = torch.arange(count, device=device).unsqueeze(1).expand(count, batch)
    where = target.index.to(device).unbind(-1)
    relevance = values.new_zeros(count, *values.shape)
    picked = values.movedim(target.batch_axis, 0)[(sample, *where)]
    relevance.movedim(target.batch_axis + 1, 1)[(which, sample, *where)] = picked
    return relevance


def squeeze_targets(relevance: Tensor, target: Target | None, batch_axis: int = 0) -> Tensor:
    """Give the axis of K targets the place the caller expects.

    Args:
        relevance: `[K, ...]`.
        target: None, or without `keep_axis`, drops the axis (K is 1); a target given as
            `[batch, K]` has it put directly after the batch axis, K = 1 too.
        batch_axis: the batch's axis in what comes after K, >= 0.
    """
    if target is None or not target.keep_axis:
        return relevance.squeeze(0)
    return relevance.movedim(0, batch_axis + 1).contiguous()


def start_sums(relevance: Tensor, batch_axis: int = 0) -> Tensor:
    """Relevance of each target of each sample, `[K, batch]`, from `[K, ...]`.

    `batch_axis` is the batch's axis in what comes after K, >= 0.
    """
    per_sample = relevance.movedim(batch_axis + 1, 1)
    return per_sample.unsqueeze(-1).flatten(2).sum(-1)


class Starting:
    """From an output to the starting relevance; remembers the target it resolved."""

    def __init__(
        self, target: Any, start: Any, call: Call, nan_policy: str, graph: Graph, value: str
    ) -> None:
        self.target, self.start, self.call, self.nan_policy = target, start, call, nan_policy
        self.graph, self.value = graph, value
        self.resolved: Target | None = None
        self.axis = 0

    def __call__(self, output: Tensor) -> Tensor:
        if self.nan_policy == "raise":
            check_finite("the model's output", output)
        batch = self.call.batch
        axis = self.graph.batch_axis(self.value, output.shape, batch, self.call.batch_dim)
        self.axis = axis or 0
        if isinstance(self.start, Tensor):
            if self.target is not None:
                raise InputError("start: a tensor beside a target; expected target=None")
        else:
            if callable(self.target):
                self.target = self.target(output.detach())
            self.resolved = resolve_target(self.target, output.shape, batch, self.axis)
        begun = seed(self.resolved, output, self.start)
        if self.nan_policy == "raise":
            check_finite("the starting relevance", begun)
        return begun
