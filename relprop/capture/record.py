"""Recording the operations of one actual call, for models that torch.export refuses.

Data-dependent Python is followed as it runs for these inputs, so the graph holds for this call
alone and is made anew at the next.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import traceback
from collections.abc import Collection, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode

from relprop.capture.fx import TAKEN_APART, argument_of, translated
from relprop.errors import CaptureError
from relprop.graph import Graph, Node, Ref, Source, map_refs

__all__ = ["record"]


def record(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch_dim: int,
    shared: Collection[int] = (),
) -> Graph:
    """The operations that the model performs on exactly these inputs.

    Raises:
        CaptureError: an operation cannot be recorded, such as one that leaves PyTorch.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    positions = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    structure: list[Any] = []
    calls = _Calls(model)

    def call(*tensors: Tensor) -> list[Any]:
        filled = list(leaves)
        for index, tensor in zip(positions, tensors, strict=True):
            filled[index] = tensor
        call_args, call_kwargs = pytree.tree_unflatten(filled, spec)
        with calls.followed(), _NoLeaving():
            flat, out_spec = pytree.tree_flatten(model(*call_args, **call_kwargs))
        structure.append(out_spec)
        return flat

    tensors = [leaves[index].detach().clone() for index in positions]
    try:
        module = make_fx(
            call,
            tracing_mode="real",
            decomposition_table=dict(TAKEN_APART),
            pre_dispatch=True,
            _error_on_data_dependent_ops=False,
        )(*tensors)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(f"recording the call failed: {type(error).__name__}: {error}") from error
    own = (leaves[index] for index in positions if index not in shared)
    batch = next((x.shape[batch_dim] for x in own if x.ndim > batch_dim), 1)
    return _graph(model, module, calls, leaves, positions, structure[-1], batch)


class _NoLeaving(TorchFunctionMode):
    """Refuses to turn recorded values into NumPy arrays or lists.

    What comes back from there would be a constant, and its relevance lost without a word.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        mode = get_proxy_mode()
        if name in _LEAVING and mode is not None and args[0] in mode.tracer.tensor_tracker:
            raise CaptureError(
                f"the forward pass leaves PyTorch: {_LEAVING[name]} at {_caller()}; compute that "
                "with tensor operations"
            )
        return func(*args, **(kwargs or {}))


_LEAVING = {
    "numpy": "Tensor.numpy()",
    "__array__": "a NumPy conversion",
    "tolist": "Tensor.tolist()",
    "__dlpack__": "a DLPack conversion",
}


def _caller() -> str:
    """File and line of the model's code that is running."""
    folders = _library_folders()
    for frame in reversed(traceback.extract_stack()):
        if folders.isdisjoint(Path(os.path.realpath(frame.filename)).parents):
            return f"{frame.filename}:{frame.lineno}"
    return "an unknown line"


def _library_folders() -> set[Path]:
    """Where the packages lie whose code is not the model's.

    Their own folders: a folder of the user's may have the same name, as a clone of relprop has.
    """
    specs = map(find_spec, ("relprop", "relprop.kernels", "torch", "numpy"))
    places = [spec.submodule_search_locations or [] for spec in specs if spec is not None]
    return {Path(os.path.realpath(place)) for place in itertools.chain(*places)}


class _Calls:
    """Which module call each recorded operation belongs to."""

    def __init__(self, model: nn.Module) -> None:
        self.paths = {id(child): path for path, child in model.named_modules()}
        self.types = {path: type(child) for path, child in model.named_modules()}
        self.counts: dict[str, int] = {}
        self.open: list[tuple[str, int]] = []
        self.spans: list[tuple[str, int, int]] = []
        self.thread = threading.get_ident()

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _position(self) -> int:
        mode = get_proxy_mode()
        return len(mode.tracer.graph.nodes) if mode is not None else 0

    def _enter(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self.thread or id(module) not in self.paths:
            return
        path = self.paths[id(module)]
        count = self.counts.get(path, 0)
        self.counts[path] = count + 1
        self.open.append((f"{path}@{count}" if count else path, self._position()))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() != self.thread or id(module) not in self.paths:
            return
        call, start = self.open.pop()
        self.spans.append((call, start, self._position()))

    def stack(self, position: int) -> list[str]:
        """Module calls around the node at a position, outermost first."""
        around = [span for span in self.spans if span[1] <= position < span[2]]
        around.sort(key=lambda span: span[1] - span[2])
        return [call for call, _, _ in around if call]


def _graph(
    model: nn.Module,
    module: torch.fx.GraphModule,
    calls: _Calls,
    leaves: list[Any],
    positions: list[int],
    out_spec: pytree.TreeSpec,
    batch: int,
) -> Graph:
    paths = {id(tensor): path for path, tensor in model.named_parameters(remove_duplicate=False)}
    paths |= {id(tensor): path for path, tensor in model.named_buffers(remove_duplicate=False)}
    placeholders: list[str] = []
    sources: dict[str, Source] = {}
    nodes: dict[str, Node] = {}
    stacks: dict[str, list[str]] = {}
    outputs: list[Any] = []
    renames: dict[str, str] = {}
    for position, fx_node in enumerate(module.graph.nodes):
        if fx_node.op == "placeholder":
            placeholders.append(fx_node.name)
        elif fx_node.op == "get_attr":
            tensor = getattr(module, str(fx_node.target))
            path = paths.get(id(tensor))
            constant = tensor.detach() if path is None else None
            sources[fx_node.name] = Source(fx_node.name, path, constant, tuple(tensor.shape))
        elif fx_node.op == "call_function":
            stacks[fx_node.name] = stack = calls.stack(position)
            node = translated(
                fx_node,
                fx_node.target,  # type: ignore[arg-type]
                stack[-1] if stack else "",
                [calls.types[call.partition("@")[0]] for call in [*reversed(stack), ""]],
            )
            nodes[node.name] = _without_mutation(node.renamed(renames), renames)
        elif fx_node.op == "output":
            outputs = list(argument_of(fx_node.args[0]))
    inputs = [f"input_{index}" for index in range(len(leaves))]
    for index, name in zip(positions, placeholders, strict=True):
        inputs[index] = name
    output = pytree.tree_unflatten(outputs, out_spec)
    shapes = {inputs[i]: tuple(leaves[i].shape) for i in positions}
    graph = Graph(
        inputs, sources, nodes, output, {}, batch, False, origin="record", input_shapes=shapes
    )
    graph.output = map_refs(graph.output, lambda name: Ref(renames.get(name, name)))
    graph.module_outputs = _module_outputs(graph, stacks)
    return graph


def _without_mutation(node: Node, renames: dict[str, str]) -> Node:
    """`relu_(x)` as `relu(x)`, and every later reading of x as a reading of the result."""
    if not (node.op.endswith("_") and not node.op.endswith("__")) or not node.args:
        return node
    functional = getattr(torch.ops.aten, node.op[:-1], None)
    target = node.args[0]
    if functional is None or not isinstance(target, Ref):
        raise CaptureError(
            f"'{node.path}': the in-place operation {node.op} has no functional form"
        )
    for old in [old for old, new in renames.items() if new == target.name]:
        renames[old] = node.name
    renames[target.name] = node.name
    return replace(node, op=node.op[:-1], function=_overload(functional, node.function))


def _overload(functional: Any, inplace: Any) -> Any:
    """That overload of an operation which takes what its in-place form takes."""

    def taken(function: Any) -> list[str]:
        return [str(argument.type) for argument in function._schema.arguments]

    fitting = [getattr(functional, name) for name in functional.overloads()]
    fitting = [function for function in fitting if taken(function) == taken(inplace)]
    same = [function for function in fitting if function._overloadname == inplace._overloadname]
    return (same or fitting or [getattr(functional, inplace._overloadname)])[0]


def _module_outputs(graph: Graph, stacks: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    readers = graph.consumers()
    returned = set(graph.output_names)
    found: dict[str, tuple[str, ...]] = {}
    for name, node in graph.nodes.items():
        if node.shape is None:
            continue
        for call in stacks.get(name, []):
            outside = any(call not in stacks.get(reader, []) for reader in readers.get(name, []))
            if outside or name in returned:
                found[call] = (*found.get(call, ()), name)
    return found
