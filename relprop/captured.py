"""Capture with everything around it: the model untouched, the graph checked, kept per model."""

from __future__ import annotations

import types
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from relprop.capture import CAPTURE_LOCK, capture_by_export, example_batch, free_time
from relprop.errors import CaptureError, InputError, PlanningError
from relprop.graph import Graph
from relprop.record import record
from relprop.rewrite import canonical
from relprop.run import evaluate
from relprop.snapshot import hooks_disabled, untouched

__all__ = ["Call", "captured", "neutral_modes", "unwrap"]

KEPT = 16
"""Graphs kept per model, for inputs of different shapes; the least recently used goes first."""

_GRAPHS: weakref.WeakKeyDictionary[nn.Module, OrderedDict[Any, _Entry]] = (
    weakref.WeakKeyDictionary()
)


@dataclass(frozen=True)
class Call:
    """The inputs of one call, flattened.

    Attributes:
        leaves: leaves of `(args, kwargs)` in pytree order.
        spec: their structure.
        labels: what each leaf is called in messages and in `inputs=`: a position or a keyword.
        batch_dim: the axis of the samples.
    """

    leaves: list[Any]
    spec: pytree.TreeSpec
    labels: list[int | str]
    batch_dim: int

    @classmethod
    def of(cls, inputs: tuple[Any, ...], kwargs: Mapping[str, Any] | None, batch_dim: int) -> Call:
        """Flatten a call, keywords in alphabetical order."""
        named = dict(sorted((kwargs or {}).items()))
        pairs, spec = pytree.tree_flatten_with_path((inputs, named))
        labels = [_label(path[1]) for path, _ in pairs]
        return cls([leaf for _, leaf in pairs], spec, labels, batch_dim)

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's `(args, kwargs)`."""
        args, kwargs = pytree.tree_unflatten(self.leaves, self.spec)
        return args, kwargs

    @property
    def batch(self) -> int:
        """Number of samples.

        Raises:
            InputError: the inputs disagree, or none has a batch axis.
        """
        sizes = {
            label: leaf.shape[self.batch_dim]
            for label, leaf in zip(self.labels, self.leaves, strict=True)
            if isinstance(leaf, Tensor) and leaf.ndim > self.batch_dim
        }
        if not sizes:
            raise InputError(f"inputs: no tensor has an axis {self.batch_dim} that counts samples")
        if len(set(sizes.values())) > 1:
            raise InputError(
                f"inputs: batch sizes differ on axis {self.batch_dim}: {sizes}; expected one size"
            )
        return next(iter(sizes.values()))

    def example(self) -> Call:
        """The same call for the few samples that a capture looks at."""
        leaves = example_batch(self.leaves, self.batch_dim)
        return Call(leaves, self.spec, self.labels, self.batch_dim)

    def copied(self) -> Call:
        """The same call on copies, which a forward pass may write into."""
        leaves = [x.detach().clone() if isinstance(x, Tensor) else x for x in self.leaves]
        return Call(leaves, self.spec, self.labels, self.batch_dim)

    def key(self, free: Mapping[int, int] | None = None) -> tuple[Any, ...]:
        """What a graph depends on besides the model: structure, shapes but for the batch, types.

        Args:
            free: axes of leaves, by their position, whose size does not matter either.
        """
        axes = free or {}
        leaves = [self._leaf_key(leaf, axes.get(i)) for i, leaf in enumerate(self.leaves)]
        return (str(self.spec), self.batch_dim, *leaves)

    def _leaf_key(self, leaf: Any, free: int | None) -> Any:
        if not isinstance(leaf, Tensor):
            return (type(leaf), repr(leaf))
        shape = list(leaf.shape)
        if leaf.ndim > self.batch_dim:
            shape[self.batch_dim] = -1
        if free is not None:
            shape[free] = -2
        return (tuple(shape), leaf.dtype, str(leaf.device))


def _label(entry: Any) -> int | str:
    """A positional argument's number or a keyword."""
    label: int | str = entry.idx if isinstance(entry, pytree.SequenceKey) else entry.key
    return label


class _Entry:
    """A graph, and the state of the model's modules for which it holds.

    Without a graph it says why the model cannot be exported, hence is recorded at each call.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph | None,
        written: set[tuple[int, str]],
        reasons: Sequence[str] = (),
    ) -> None:
        self.graph = graph
        self.written = written
        self.reasons = reasons
        self.state = [(weakref.ref(module), self._traits(module)) for module in model.modules()]

    def holds(self, model: nn.Module, batch: int) -> bool:
        if self.graph is not None and not self.graph.symbolic and self.graph.batch != batch:
            return False
        modules = list(model.modules())
        return len(modules) == len(self.state) and all(
            ref() is module and traits == self._traits(module)
            for module, (ref, traits) in zip(modules, self.state, strict=True)
        )

    def _traits(self, module: nn.Module) -> tuple[Any, ...]:
        """Mode, hooks, settings and tensor formats; values of tensors are read at every call."""
        settings = [item for item in _settings(module) if (id(module), item[0]) not in self.written]
        tensors = [*module._parameters.values(), *module._buffers.values()]
        formats = [None if t is None else (t.dtype, t.device, t.shape) for t in tensors]
        return tuple(module._forward_hooks), tuple(module._forward_pre_hooks), settings, formats


_SIMPLE = (bool, int, float, str, type(None))
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)


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


def _all_settings(model: nn.Module) -> dict[tuple[int, str], Any]:
    return {
        (id(module), name): value for module in model.modules() for name, value in _settings(module)
    }


def unwrap(model: Any) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel or `torch.compile`.

    Raises:
        InputError: it is no module.
        CaptureError: it is a scripted or quantised one.
    """
    while isinstance(model, nn.Module):
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, (nn.DataParallel, nn.parallel.DistributedDataParallel)
        ):
            inner = model.module
        if inner is None:
            break
        model = inner
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model: {type(model).__name__}; expected a torch.nn.Module (wrap a function in one)"
        )
    for path, module in model.named_modules():
        where = f"'{path}'" if path else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                f"model: {where} is a TorchScript module, whose operations cannot be captured; "
                "explain the original nn.Module, or an ExportedProgram's .module()"
            )
        if "quantized" in type(module).__module__:
            raise CaptureError(
                f"model: {where} is quantised ({type(module).__name__}); explain the model before "
                "quantisation"
            )
    return model


def check_modes(model: nn.Module) -> None:
    """Refuse batch norm and dropout in training mode, and modules without parameters yet.

    Raises:
        PlanningError: names the first such module.
    """
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise PlanningError(
                f"model: '{path}' has no shape yet; call the model once on real inputs first"
            )
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    for path, module in model.named_modules():
        dropping = isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1
        if module.training and (dropping or isinstance(module, kinds)):
            raise PlanningError(
                f"model: '{path}' ({type(module).__name__}) is in training mode, so an explanation "
                "would depend on the other samples or on chance; call model.eval() first"
            )


@contextmanager
def neutral_modes() -> Iterator[None]:
    """No gradients, no autocast, no inference mode: a result does not depend on the caller's."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


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
        free = free_time(model, call.leaves, call.batch_dim)
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
    expected, written = _example_output(model, call)
    try:
        with untouched(model), hooks_disabled(model) as hooked:
            graph = canonical(capture_by_export(model, *call.arguments, call.batch_dim))
    except CaptureError as error:
        return _Entry(model, None, written, [str(error)])
    if graph.symbolic and expected is not None:
        difference = _difference(graph, model, call.example(), expected)
    else:
        difference = _difference(graph, model, call, _own_output(model, call))
    if difference is None:
        return _Entry(model, graph, written)
    return _Entry(model, None, written, [difference + " (hooks change it)" * hooked])


def _recorded(model: nn.Module, call: Call, reasons: Sequence[str]) -> Graph:
    """The operations of this very call; hooks run, and see its tensors."""
    own = _own_output(model, call)
    try:
        with untouched(model):
            graph = canonical(record(model, *call.arguments, call.batch_dim))
    except CaptureError as error:
        raise CaptureError(_explain(model, [*reasons, str(error)])) from error
    difference = _difference(graph, model, call, own)
    if difference is not None:
        raise CaptureError(_explain(model, [*reasons, difference]))
    return graph


def _example_output(model: nn.Module, call: Call) -> tuple[list[Any] | None, set[tuple[int, str]]]:
    """The model's output for the example, None if it needs all samples; the settings it writes."""
    before = _all_settings(model)
    expected = None
    with untouched(model):
        try:
            expected = _run_model(model, call.example())
        except InputError:
            _run_model(model, call)
        after = _all_settings(model)
    written = {key for key in before.keys() | after if before.get(key) != after.get(key)}
    return expected, written


def _explain(model: nn.Module, reasons: Sequence[str]) -> str:
    listed = "\n  ".join(dict.fromkeys(reasons))
    return (
        f"{type(model).__name__} could not be captured:\n  {listed}\n"
        "Keep the forward pass deterministic and in PyTorch operations (no NumPy, no .item() "
        "arithmetic), or explain a sub-module."
    )


def _own_output(model: nn.Module, call: Call) -> list[Any]:
    with untouched(model):
        return _run_model(model, call)


def _run_model(model: nn.Module, call: Call) -> list[Any]:
    args, kwargs = call.copied().arguments
    try:
        return pytree.tree_leaves(model(*args, **kwargs))
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise InputError(
            f"the model itself fails on these inputs ({_describe(call)}): "
            f"{type(error).__name__}: {lines[0]}{_hint(model, call)}"
        ) from error


def _hint(model: nn.Module, call: Call) -> str:
    """The parameters' type, where a real input has another one."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    given = {leaf.dtype for leaf in call.leaves if isinstance(leaf, Tensor)}
    if len(kinds) != 1 or given <= kinds:
        return ""
    (kind,) = kinds
    return f"; the model's parameters are {str(kind).removeprefix('torch.')}"


def _describe(call: Call) -> str:
    return ", ".join(
        f"{label}: {tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}"
        for label, leaf in zip(call.labels, call.leaves, strict=True)
        if isinstance(leaf, Tensor)
    )


def _difference(graph: Graph, model: nn.Module, call: Call, expected: list[Any]) -> str | None:
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
