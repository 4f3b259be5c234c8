"""Capture with everything around it: the model untouched, the graph checked, kept per model."""

from __future__ import annotations

import types
import weakref
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from relprop.capture.call import Call, check_modes, free_time, neutral_modes
from relprop.capture.export import capture_by_export
from relprop.capture.record import record
from relprop.capture.untouched import hooks_disabled, untouched
from relprop.errors import CaptureError, InputError, ModelError
from relprop.graph import CAPTURE_LOCK, Graph
from relprop.graph.canonical import canonical
from relprop.graph.nodes import evaluate

__all__ = [
    "ModelState",
    "all_settings",
    "captured",
    "difference",
    "run_model",
]

KEPT = 16
"""Graphs kept per model, for inputs of different shapes; the least recently used goes first."""

_GRAPHS: weakref.WeakKeyDictionary[nn.Module, OrderedDict[Any, _Entry]] = (
    weakref.WeakKeyDictionary()
)


@dataclass(frozen=True)
class _Entry:
    """A graph, and the state of the model for which it holds.

    Without a graph it says why the model cannot be exported, hence is recorded at each call.
    """

    graph: Graph | None
    state: ModelState
    reasons: Sequence[str] = ()

    def holds(self, model: nn.Module, batch: int) -> bool:
        if self.graph is not None and not self.graph.symbolic and self.graph.batch != batch:
            return False
        return self.state.is_of(model)


def captured(model: nn.Module, call: Call) -> Graph:
    """The model's canonical graph for such a call, captured and checked if it is not yet known.

    Raises:
        InputError: the model itself refuses the inputs.
        PlanningError: a module is in training mode.
        CaptureError: the model cannot be captured, or the graph's output is not the model's.
    """
    check_modes(model)
    with CAPTURE_LOCK, neutral_modes():
        graphs = _GRAPHS.setdefault(model, OrderedDict())
        free = free_time(model, call.leaves, call.batch_dim, call.shared)
        kind = torch.get_default_dtype()
        any_time, any_batch = (kind, *call.key(free)), (kind, *call.key())
        this_batch = (*any_batch, call.batch)
        for key in (any_time, any_batch, this_batch):
            entry = graphs.get(key)
            if entry is not None and entry.holds(model, call.batch):
                graphs.move_to_end(key)
                break
        else:
            entry = _capture(model, call)
            symbolic = entry.graph is not None and entry.graph.symbolic
            timeless = entry.graph is not None and entry.graph.any_time
            graphs[any_time if timeless else any_batch if symbolic else this_batch] = entry
            while len(graphs) > KEPT:
                graphs.popitem(last=False)
        return entry.graph or _recorded(model, call, entry.reasons)


def _capture(model: nn.Module, call: Call) -> _Entry:
    """Capture by torch.export.

    Every run of the model starts from the same state, and so does the check of the graph.
    """
    expected, state = _example_output(model, call)
    try:
        with untouched(model), hooks_disabled(model) as hooked:
            graph = canonical(
                capture_by_export(model, *call.arguments, call.batch_dim, call.shared)
            )
    except CaptureError as error:
        return _Entry(None, state, [str(error)])
    if graph.symbolic and expected is not None:
        wrong = difference(graph, model, call.example(), expected)
    else:
        wrong = difference(graph, model, call, _own_output(model, call))
    if wrong is None:
        return _Entry(graph, state)
    return _Entry(None, state, [wrong + " (hooks change it)" * hooked])


def _recorded(model: nn.Module, call: Call, reasons: Sequence[str]) -> Graph:
    """The operations of this very call; hooks run, and see its tensors."""
    own = _own_output(model, call)
    try:
        with untouched(model):
            graph = canonical(record(model, *call.arguments, call.batch_dim, call.shared))
    except CaptureError as error:
        raise CaptureError(_explain(model, [*reasons, str(error)])) from error
    wrong = difference(graph, model, call, own)
    if wrong is not None:
        raise CaptureError(_explain(model, [*reasons, wrong]))
    return graph


def _example_output(model: nn.Module, call: Call) -> tuple[list[Any] | None, ModelState]:
    """The model's output for the example, None if it needs all samples; the model's state."""
    before = all_settings(model)
    expected = None
    with untouched(model):
        try:
            expected = run_model(model, call.example())
        except InputError:
            run_model(model, call)
        after = all_settings(model)
    written = {key for key in before.keys() | after if before.get(key) != after.get(key)}
    return expected, ModelState(model, written)


def _explain(model: nn.Module, reasons: Sequence[str]) -> str:
    listed = "\n  ".join(dict.fromkeys(reasons))
    return (
        f"{type(model).__name__} could not be captured:\n  {listed}\n"
        "Keep the forward pass deterministic and in PyTorch operations (no NumPy, no .item() "
        "arithmetic), or explain a sub-module."
    )


def _own_output(model: nn.Module, call: Call) -> list[Any]:
    with untouched(model):
        return run_model(model, call)


_SIMPLE = (bool, int, float, str, type(None))
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)


class ModelState:
    """Modules, their modes, hooks, settings and tensor formats; tensors are read at every call.

    Args:
        model: whose state to remember.
        written: what a forward pass itself sets, by module and name: that does not count.
    """

    def __init__(self, model: nn.Module, written: Collection[tuple[int, str]]) -> None:
        self.written = written
        self.modules = [(weakref.ref(module), self._traits(module)) for module in model.modules()]

    def is_of(self, model: nn.Module) -> bool:
        """Whether the model is in this state."""
        modules = list(model.modules())
        return len(modules) == len(self.modules) and all(
            ref() is module and traits == self._traits(module)
            for module, (ref, traits) in zip(modules, self.modules, strict=True)
        )

    def _traits(self, module: nn.Module) -> tuple[Any, ...]:
        settings = [item for item in _settings(module) if (id(module), item[0]) not in self.written]
        tensors = [*module._parameters.values(), *module._buffers.values()]
        formats = [None if t is None else (t.dtype, t.device, t.shape) for t in tensors]
        return tuple(module._forward_hooks), tuple(module._forward_pre_hooks), settings, formats


def all_settings(model: nn.Module) -> dict[tuple[int, str], Any]:
    """The plain attributes of all modules, by module and name."""
    return {
        (id(module), name): value for module in model.modules() for name, value in _settings(module)
    }


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    """Plain attributes that a forward pass may depend on: numbers, names, flags, functions."""
    found: list[tuple[str, Any]] = []
    for name, value in module.__dict__.items():
        if name == "_is_torch_compile":  # set by torch.compile(module)
            continue
        kind = type(value)
        if kind in _SIMPLE or (kind in (tuple, list) and all(type(v) in _SIMPLE for v in value)):
            found.append((name, tuple(value) if kind is list else value))
        elif kind in _FUNCTIONS:
            found.append((name, id(value)))
    return found


def run_model(model: nn.Module, call: Call) -> list[Any]:
    """The leaves of the model's output for a call.

    Raises:
        ModelError: the model itself refuses the inputs.
    """
    args, kwargs = call.copied().arguments
    try:
        return pytree.tree_leaves(model(*args, **kwargs))
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise ModelError(
            f"the model itself fails on these inputs ({_describe(call)}): "
            f"{type(error).__name__}: {lines[0]}{_hint(model, call)}"
        ) from error


def _hint(model: nn.Module, call: Call) -> str:
    """The parameters' type, where a real input has another one; a batch axis, where that helps."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    given = {leaf.dtype for leaf in call.leaves if isinstance(leaf, Tensor)}
    if len(kinds) != 1 or given <= kinds:
        return _batch_hint(model, call)
    (kind,) = kinds
    return f"; the model's parameters are {str(kind).removeprefix('torch.')}"


def _batch_hint(model: nn.Module, call: Call) -> str:
    leaves = [x.unsqueeze(0) if isinstance(x, Tensor) else x for x in call.copied().leaves]
    args, kwargs = replace(call, leaves=leaves).arguments
    try:
        model(*args, **kwargs)
    except Exception:
        return ""
    return "; with a batch axis it runs, as in x.unsqueeze(0)"


def _describe(call: Call) -> str:
    return ", ".join(
        f"{label}: {tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}"
        for label, leaf in zip(call.labels, call.leaves, strict=True)
        if isinstance(leaf, Tensor)
    )


def difference(graph: Graph, model: nn.Module, call: Call, expected: list[Any]) -> str | None:
    """What differs between the graph's output and the model's own, None if nothing does."""
    inputs = dict(zip(graph.inputs, call.leaves, strict=True))
    try:
        values = evaluate(graph, model, inputs)
    except Exception as error:
        return f"running the captured graph failed: {type(error).__name__}: {error}"
    found = [values[name] for name in graph.output_names]
    wanted = [leaf for leaf in expected if isinstance(leaf, Tensor)]
    if len(found) != len(wanted):
        return f"the captured graph has {len(found)} outputs, the model {len(wanted)}"
    for ours, theirs in zip(found, wanted, strict=True):
        if ours.shape != theirs.shape:
            return f"the captured graph gives shape {tuple(ours.shape)}, not {tuple(theirs.shape)}"
        if not _close(ours, theirs):
            return "the captured graph's output differs from the model's own"
    return None


_TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def _close(ours: Tensor, theirs: Tensor) -> bool:
    """Equality within rounding, by root mean squares; NaN where the model gives NaN."""
    if not theirs.is_floating_point():
        return bool(torch.equal(ours, theirs))
    a, b = ours.double().nan_to_num(), theirs.double().nan_to_num()
    scale = b.square().mean().sqrt() if b.numel() else b.sum()
    error = (a - b).square().mean().sqrt() if b.numel() else b.sum()
    return bool(error <= _TOLERANCE.get(theirs.dtype, 2e-3) * scale + 1e-12)
