"""Capturing a model as a `Graph` by `torch.export`, with a symbolic batch where it has one."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.graph_signature import InputKind

from relprop.capture.call import EXAMPLE_BATCH, example_batch, free_time
from relprop.capture.fx import TAKEN_APART, operation_name, shape_of, translated
from relprop.capture.time import library_operation, whole_sequences
from relprop.errors import CaptureError
from relprop.graph import Graph, Node, Ref, Source

__all__ = [
    "capture_by_export",
    "graph_of",
]

_LOUD = ("torch.export", "torch._dynamo", "torch.fx", "torch._subclasses.fake_tensor")


def capture_by_export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch_dim: int,
    shared: Collection[int] = (),
) -> Graph:
    """The model's graph for inputs like these.

    First with a symbolic batch on axis `batch_dim` of every input, and for a recurrent model with
    symbolic time; if the model ties itself to a number of steps or a batch size, for those of
    these inputs alone.

    Raises:
        CaptureError: torch.export refuses the model; the message holds its reason.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    small_args, small_kwargs = pytree.tree_unflatten(example_batch(leaves, batch_dim, shared), spec)
    axes = free_time(model, leaves, batch_dim, shared)
    if axes:
        with contextlib.suppress(Exception):
            return _for_any_time(model, small_args, small_kwargs, batch_dim, shared, axes)
    try:
        program = _export(model, small_args, small_kwargs, batch_dim, shared)
        return graph_of(model, program, EXAMPLE_BATCH, symbolic=True)
    except Exception as error:
        first = error
    try:
        program = _export(model, args, kwargs, None)
    except Exception:
        raise CaptureError(f"torch.export refuses the model: {_first_line(first)}") from first
    own = [x for i, x in enumerate(leaves) if i not in shared and _has_axis(x, batch_dim)]
    batch = own[0].shape[batch_dim] if own else 1
    return graph_of(model, program, batch, symbolic=False)


def _for_any_time(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch_dim: int,
    shared: Collection[int],
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
    program = _export(model, args, kwargs, batch_dim, shared, axes)
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
    shared: Collection[int] = (),
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
            if index not in shared and _has_axis(leaf, batch_dim):
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
            return program.run_decompositions(dict(TAKEN_APART))
    finally:
        # torch's cache of fake operations would hold on to this capture's shapes and tensors
        FakeTensorMode.cache_clear()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def graph_of(
    model: nn.Module, program: torch.export.ExportedProgram, batch: int, symbolic: bool
) -> Graph:
    """The graph of a program exported from a model.

    Args:
        model: the module.
        program: torch.export's.
        batch: number of samples that it was exported for.
        symbolic: whether it holds for any other number too.

    Raises:
        CaptureError: it has an input or an operation that no graph can hold.
    """
    inputs: list[str] = []
    sources: dict[str, Source] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in program.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(name)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            sources[name] = Source(name, spec.target)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            constant = program.constants[str(spec.target)]
            path = spec.target if _holds(model, str(spec.target), constant) else None
            sources[name] = Source(name, path, constant)
        else:
            raise CaptureError(f"the model takes an input of kind {spec.kind.name}: '{name}'")
    for fx_node in program.graph_module.graph.nodes:
        shape = shape_of(fx_node.meta.get("val")) if fx_node.op == "placeholder" else None
        if fx_node.name in sources:
            sources[fx_node.name] = replace(sources[fx_node.name], shape=shape or ())
        elif shape is not None:
            shapes[fx_node.name] = shape
    nodes = _Translation(model, program.graph_module)
    outputs = [
        Ref(spec.arg.name) if hasattr(spec.arg, "name") else getattr(spec.arg, "value", None)
        for spec in program.graph_signature.output_specs
        if spec.kind.name == "USER_OUTPUT"
    ]
    output = pytree.tree_unflatten(outputs, program.call_spec.out_spec)
    outer = nodes.module_outputs()
    return Graph(inputs, sources, nodes.nodes, output, outer, batch, symbolic, input_shapes=shapes)


def _holds(model: nn.Module, path: str, constant: Any) -> bool:
    value: Any = model
    for part in path.split("."):
        value = getattr(value, part, None)
    return isinstance(value, Tensor) and value.shape == getattr(constant, "shape", None)


class _Translation:
    """The nodes of an exported graph module as ours."""

    def __init__(self, model: nn.Module, module: torch.fx.GraphModule) -> None:
        self.types = {path: type(child) for path, child in model.named_modules()}
        self.fx_nodes = [node for node in module.graph.nodes if node.op == "call_function"]
        self.nodes = {node.name: self._node(node) for node in self.fx_nodes}
        self.outside = {node.name: self._readers(node) for node in self.fx_nodes}

    def _node(self, node: torch.fx.Node) -> Node:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise CaptureError(f"the model contains a control-flow operation, {node.target}")
        calls = self._stack(node)
        paths = [path.partition("@")[0] for path in reversed(calls)]
        types = [self.types[path] for path in paths if path in self.types]
        function = library_operation(node.target)
        return translated(node, function, calls[-1] if calls else "", types)

    def _stack(self, node: torch.fx.Node) -> list[str]:
        """Module calls around a node, outermost first: "path", or "path@k" for a repetition."""
        calls = []
        for key, (path, _) in node.meta.get("nn_module_stack", {}).items():
            if not isinstance(path, str) or path.startswith("_empty"):
                continue
            path = path.removeprefix("L['self'].").removeprefix("L['self']")
            calls.append(self._call(path, str(key)))
        return calls

    def _call(self, path: str, key: str) -> str:
        suffix = key.rpartition("@")[2] if "@" in key else ""
        return f"{path}@{suffix}" if suffix.isdigit() and suffix != "0" else path

    def _readers(self, node: torch.fx.Node) -> list[list[str]]:
        return [self._stack(user) if user.op != "output" else [] for user in node.users]

    def module_outputs(self) -> dict[str, tuple[str, ...]]:
        """For each module call those of its values that are read outside of it."""
        found: dict[str, tuple[str, ...]] = {}
        for node in self.fx_nodes:
            if not isinstance(node.meta.get("val"), Tensor):
                continue
            for call in self._stack(node):
                if call and any(call not in stack for stack in self.outside[node.name]):
                    found[call] = (*found.get(call, ()), node.name)
        return found
