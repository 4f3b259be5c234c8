"""The graph: a model's operations in order, read from its parameters at every call.

Two producers in `relprop.capture` fill the same type, `export` (torch.export) and `record` (the
operations of one actual call).  Values are named; an argument that is another node's value is a
`Ref`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from relprop.errors import InputError, is_out_of_memory

__all__ = [
    "CAPTURE_LOCK",
    "Graph",
    "Node",
    "Ref",
    "Source",
    "evaluate",
    "located",
    "map_refs",
    "refs_of",
    "source_values",
]

CAPTURE_LOCK = threading.RLock()
"""torch.export is not thread-safe: one capture at a time in a process."""


@dataclass(frozen=True)
class Ref:
    """The value of the node, input or source of that name."""

    name: str


@dataclass(frozen=True)
class Source:
    """A parameter, buffer or constant: read from the live model by path, else a stored tensor."""

    name: str
    path: str | None
    constant: Tensor | None = None
    shape: tuple[int, ...] = ()

    def read(self, model: nn.Module) -> Tensor:
        """The tensor as the model holds it now."""
        value: Any = model
        for part in (self.path or "").split(".") if self.path else ():
            value = getattr(value, part, None)
        if isinstance(value, Tensor):
            return value.detach()
        if self.constant is None:
            raise RuntimeError(f"the model no longer has a tensor at '{self.path}'")
        return self.constant


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        name: the name of its value.
        op: canonical operation name, such as "relu" or "linear_map".
        function: what computes the value from the arguments.
        args, kwargs: arguments; `Ref` stands for a value.
        path: the module call it belongs to, "layer1.0.conv1", a repeated call "layer1.0.conv1@1".
        module_types: classes of the owning modules, innermost first.
        shape: the value's shape at capture, batch axis included; None if it is no tensor.
        dtype: the value's dtype; None if it is no tensor.
        attributes: what a rewrite attached, such as the geometry of a linear map.
    """

    name: str
    op: str
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    module_types: tuple[type, ...] = ()
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def refs(self) -> list[str]:
        """Names of the values it reads, in order, repeated if read twice."""
        return list(refs_of((self.args, dict(self.kwargs))))

    @property
    def overload(self) -> str:
        """The overload of the ATen operation, "default" if there is but one."""
        return str(getattr(self.function, "_overloadname", "default"))

    def argument(self, position: int, name: str, default: Any) -> Any:
        """An argument given by position or by name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """The value, from the values it reads."""
        args = map_refs(self.args, values.__getitem__)
        kwargs = {key: map_refs(value, values.__getitem__) for key, value in self.kwargs.items()}
        return self.function(*args, **kwargs)

    def renamed(self, names: Mapping[str, str]) -> Node:
        """The same node reading other values."""

        def rename(name: str) -> Ref:
            return Ref(names.get(name, name))

        args = map_refs(self.args, rename)
        kwargs = {key: map_refs(value, rename) for key, value in self.kwargs.items()}
        return replace(self, args=args, kwargs=kwargs)


@dataclass
class Graph:
    """A model's operations.

    Attributes:
        inputs: names of the leaves of `(args, kwargs)`, in pytree order.
        sources: parameters, buffers and constants by name.
        nodes: operations by name, in an order of evaluation.
        output: the structure that the model returns, with a `Ref` for each tensor.
        module_outputs: value name of each module call, "path" or "path@1".
        batch: batch size at capture.
        symbolic: whether other batch sizes may be run.
        origin: "export" or "record".
        any_time: whether the time axis of its inputs may have any size.
        input_shapes: of those of its inputs that are tensors, at capture.
        plans: what has been planned on it, by what the plan was made for.
    """

    inputs: list[str]
    sources: dict[str, Source]
    nodes: dict[str, Node]
    output: Any
    module_outputs: dict[str, str]
    batch: int
    symbolic: bool = True
    origin: str = "export"
    any_time: bool = False
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    plans: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def output_names(self) -> list[str]:
        """Names of the values in the output structure."""
        return list(refs_of(self.output))

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a value at capture; None if it is no tensor."""
        known = self.nodes.get(name) or self.sources.get(name)
        return self.input_shapes.get(name) if known is None else known.shape

    def fixed(self) -> set[str]:
        """Names of the values that depend on parameters and constants alone."""
        found = set(self.sources)
        for node in self.nodes.values():
            if all(name in found for name in node.refs):
                found.add(node.name)
        return found

    def consumers(self) -> dict[str, list[str]]:
        """For each value, the nodes that read it (once for each reading)."""
        readers: dict[str, list[str]] = {}
        for node in self.nodes.values():
            for name in node.refs:
                readers.setdefault(name, []).append(node.name)
        return readers

    def batch_axis(self, name: str, shape: Sequence[int], batch: int, axis: int) -> int | None:
        """The axis that counts the samples of a value, None if there is none.

        Args:
            name: of the value.
            shape: its shape in a run.
            batch: number of samples in that run.
            axis: the batch axis of the inputs, the likeliest where the capture does not tell.
        """
        node = self.nodes.get(name)
        free = node.attributes.get("free", ()) if node is not None else ()
        told = [i for i in free if node is not None and (node.shape or ())[i] == self.batch]
        likely = [i for i in told if i < len(shape) and shape[i] == batch]
        if len(likely) == 1:
            return likely[0]
        return next((i for i in (axis, 0) if i < len(shape) and shape[i] == batch), None)

    def rename_values(self, names: Mapping[str, str]) -> None:
        """Let every reader of the keys read the values of `names` instead."""
        if not names:
            return
        self.nodes = {name: node.renamed(names) for name, node in self.nodes.items()}
        self.output = map_refs(self.output, lambda name: Ref(names.get(name, name)))
        self.module_outputs = {
            path: names.get(name, name) for path, name in self.module_outputs.items()
        }

    def prune(self) -> None:
        """Drop the nodes that no output depends on."""
        needed = set(self.output_names)
        for node in reversed(list(self.nodes.values())):
            if node.name in needed:
                needed.update(node.refs)
        self.nodes = {name: node for name, node in self.nodes.items() if name in needed}
        self.module_outputs = {
            path: name
            for path, name in self.module_outputs.items()
            if name in self.nodes or name in self.inputs
        }

    def last_reads(self, kept: Iterable[str]) -> dict[str, list[str]]:
        """For each node, the values that nothing reads after it, except those in `kept`."""
        kept = set(kept)
        seen: set[str] = set(kept)
        last: dict[str, list[str]] = {}
        for node in reversed(list(self.nodes.values())):
            fresh = [name for name in dict.fromkeys(node.refs) if name not in seen]
            seen.update(fresh)
            last[node.name] = fresh
        return last


def map_refs(value: Any, function: Callable[[str], Any]) -> Any:
    """`value` with every `Ref` in it (however nested) replaced by `function(name)`."""
    if isinstance(value, Ref):
        return function(value.name)
    if isinstance(value, (int, float, str, Tensor)) or value is None:
        return value
    if type(value) in (tuple, list):
        return type(value)(map_refs(item, function) for item in value)
    leaves, spec = pytree.tree_flatten(value, is_leaf=lambda leaf: isinstance(leaf, Ref))
    return pytree.tree_unflatten(
        [function(leaf.name) if isinstance(leaf, Ref) else leaf for leaf in leaves], spec
    )


def refs_of(value: Any) -> Iterator[str]:
    """The names of the `Ref`s in a nested value."""
    for leaf in pytree.tree_leaves(value, is_leaf=lambda leaf: isinstance(leaf, Ref)):
        if isinstance(leaf, Ref):
            yield leaf.name


def source_values(graph: Graph, model: nn.Module, names: Iterable[str]) -> dict[str, Any]:
    """The parameters, buffers and constants among `names`, as the model holds them now."""
    wanted = set(names)
    # while another thread captures the model, torch.export has tensors of its own in their place
    with CAPTURE_LOCK:
        return {n: source.read(model) for n, source in graph.sources.items() if n in wanted}


@contextlib.contextmanager
def located(node: Node) -> Iterator[None]:
    """Lets an error of a library operation say in which of the model's layers it happened."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        where = f"'{node.path}' ({node.op})" if node.path else node.op
        raise InputError(
            f"{where}: the forward pass fails on these inputs or parameters: {error}"
        ) from error


def evaluate(graph: Graph, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """All values that the graph's outputs need, computed plainly; those of the outputs returned."""
    values = source_values(graph, model, graph.sources) | dict(inputs)
    last = graph.last_reads([*graph.output_names, *inputs])
    for node in graph.nodes.values():
        values[node.name] = node.evaluate(values)
        for name in last[node.name]:
            values.pop(name, None)
    return {name: values[name] for name in graph.output_names}
