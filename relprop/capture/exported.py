"""An exported program as a `Graph`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from relprop.capture.fx import shape_of, translated
from relprop.capture.time import library_operation
from relprop.errors import CaptureError
from relprop.graph import Graph, Node, Ref, Source

__all__ = ["graph_of"]


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
        if fx_node.name in sources:
            shape = shape_of(fx_node.meta.get("val")) or ()
            sources[fx_node.name] = replace(sources[fx_node.name], shape=shape)
    nodes = _Translation(model, program.graph_module)
    outputs = [
        Ref(spec.arg.name) if hasattr(spec.arg, "name") else getattr(spec.arg, "value", None)
        for spec in program.graph_signature.output_specs
        if spec.kind.name == "USER_OUTPUT"
    ]
    output = pytree.tree_unflatten(outputs, program.call_spec.out_spec)
    return Graph(inputs, sources, nodes.nodes, output, nodes.module_outputs(), batch, symbolic)


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

    def module_outputs(self) -> dict[str, str]:
        """For each module call the last of its values that is read outside of it."""
        found: dict[str, str] = {}
        for node in self.fx_nodes:
            if not isinstance(node.meta.get("val"), Tensor):
                continue
            for call in self._stack(node):
                if call and any(call not in stack for stack in self.outside[node.name]):
                    found[call] = node.name
        return found
