"""Capturing a model as a `Graph` by `torch.export`, with a symbolic batch where it has one."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from relprop.capture.exported import graph_of
from relprop.capture.fx import operation_name
from relprop.capture.time import time_axes, whole_sequences
from relprop.errors import CaptureError
from relprop.graph import Graph

__all__ = ["capture_by_export", "example_batch"]

_LOUD = ("torch.export", "torch._dynamo", "torch.fx", "torch._subclasses.fake_tensor")


def _einsum(*args: Any, **kwargs: Any) -> Any:
    """einsum by products and permutations, as torch computes it itself."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return torch.ops.aten.einsum.default._op_dk(key, *args, **kwargs)


_TAKEN_APART = {torch.ops.aten.einsum.default: _einsum}
"""Operations whose meaning is in their arguments, by what computes them from others."""

EXAMPLE_BATCH = 2
"""A batch of 1 would be specialised by torch.export."""


def example_batch(leaves: Sequence[Any], batch_dim: int) -> list[Any]:
    """The leaves with their batch cut or repeated to `EXAMPLE_BATCH` samples."""
    return [_resize(leaf, batch_dim) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _resize(tensor: Tensor, axis: int) -> Tensor:
    if tensor.ndim <= axis:
        return tensor
    size = tensor.shape[axis]
    if size >= EXAMPLE_BATCH:
        # a copy: strides that tell of the whole batch would tie the capture to its size
        return tensor.narrow(axis, 0, EXAMPLE_BATCH).clone()
    if size == 0:
        shape = list(tensor.shape)
        shape[axis] = EXAMPLE_BATCH
        return tensor.new_zeros(shape)
    return torch.cat([tensor] * EXAMPLE_BATCH, axis)


def capture_by_export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch_dim: int
) -> Graph:
    """The model's graph for inputs like these.

    First with a symbolic batch on axis `batch_dim` of every input, and for a recurrent model with
    symbolic time; if the model ties itself to a number of steps or a batch size, for those of
    these inputs alone.

    Raises:
        CaptureError: torch.export refuses the model; the message holds its reason.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    small_args, small_kwargs = pytree.tree_unflatten(example_batch(leaves, batch_dim), spec)
    axes = free_time(model, leaves, batch_dim)
    if axes:
        with contextlib.suppress(Exception):
            return _for_any_time(model, small_args, small_kwargs, batch_dim, axes)
    try:
        program = _export(model, small_args, small_kwargs, batch_dim)
        return graph_of(model, program, EXAMPLE_BATCH, symbolic=True)
    except Exception as error:
        first = error
    try:
        program = _export(model, args, kwargs, None)
    except Exception:
        raise CaptureError(f"torch.export refuses the model: {_first_line(first)}") from first
    batch = next((x.shape[batch_dim] for x in leaves if _has_axis(x, batch_dim)), 1)
    return graph_of(model, program, batch, symbolic=False)


def free_time(model: nn.Module, leaves: Sequence[Any], batch_dim: int) -> dict[int, int]:
    """The time axes for which one capture may serve any number of steps from two on."""
    if not any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return {}
    axes = time_axes(model, leaves, batch_dim)
    return axes if all(leaves[i].shape[axis] > 1 for i, axis in axes.items()) else {}


def _for_any_time(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch_dim: int,
    axes: dict[int, int],
) -> Graph:
    """The graph with symbolic time.

    Raises:
        CaptureError: the model divides the time axis itself, so that its parts have no fixed size.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    for i, axis in axes.items():
        if leaves[i].shape[axis] <= EXAMPLE_BATCH:  # equal sizes would be taken for one size
            leaves[i] = torch.cat([leaves[i]] * 2, axis)
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    program = _export(model, args, kwargs, batch_dim, axes)
    for node in program.graph_module.graph.nodes:
        if "split" in operation_name(node.target) or "chunk" in operation_name(node.target):
            axis = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
            if any(isinstance(part.shape[axis], torch.SymInt) for part in node.meta["val"]):
                raise CaptureError(f"{node.target} divides an axis of symbolic size")
    graph = graph_of(model, program, EXAMPLE_BATCH, symbolic=True)
    graph.any_time = True
    return graph


def _has_axis(leaf: Any, axis: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > axis


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch_dim: int | None,
    time: Mapping[int, int] = MappingProxyType({}),
) -> torch.export.ExportedProgram:
    dynamic: Any = None
    if batch_dim is not None:
        shapes = torch.export.ShapesCollection()
        batch, steps = torch.export.Dim("batch"), torch.export.Dim("time")
        leaves, spec = pytree.tree_flatten((args, kwargs))
        # every leaf its own object: the collection is keyed by identity
        leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        for index, leaf in enumerate(leaves):
            if _has_axis(leaf, batch_dim):
                free = {time[index]: steps} if index in time else {}
                shapes[leaf] = {batch_dim: batch, **free}
        dynamic = shapes.dynamic_shapes(model, args, kwargs)
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        # torch.export prints the graph so far when it refuses a model; the CaptureError says why
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            whole_sequences(),
        ):
            warnings.simplefilter("ignore")
            program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic, strict=False)
            return program.run_decompositions(dict(_TAKEN_APART))
    finally:
        # torch's cache of fake operations would hold on to this capture's shapes and tensors
        FakeTensorMode.cache_clear()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
