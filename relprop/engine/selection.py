"""What a call selects: inputs, output, layers."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from relprop.capture.cache import run_model
from relprop.capture.call import Call
from relprop.engine.gradients import GradientPlan
from relprop.engine.plan import Plan
from relprop.errors import InputError
from relprop.graph import Graph, Ref, refs_of
from relprop.graph.nodes import evaluate
from relprop.operations.base import traits

__all__ = [
    "Computes",
    "Objective",
    "explained_inputs",
    "explained_labels",
    "layer_values",
    "output_value",
    "picking",
]


def explained_labels(inputs: Sequence[int | str] | None, call: Call) -> set[int | str] | None:
    """The labels of the inputs to explain, None for all.

    Raises:
        InputError: one is not among the arguments of the call, or is shared by all samples.
    """
    shared = {call.labels[i] for i in call.shared}
    if inputs is None:
        return set(call.labels) - shared if shared else None
    unknown = [label for label in inputs if label not in call.labels]
    if unknown:
        raise InputError(
            f"inputs: {unknown} not among the arguments of the call, {call.labels}; expected "
            "positions and keywords"
        )
    if not shared.isdisjoint(inputs):
        raise InputError(
            f"inputs: {sorted(shared.intersection(inputs), key=str)} are shared by all samples, so "
            "that none has relevance of its own; explain the others, or repeat them for each sample"
        )
    return set(inputs)


def explained_inputs(
    graph: Graph, call: Call, plan: Plan | GradientPlan, labels: set[int | str] | None
) -> list[str]:
    """The graph's inputs that get relevance: floating ones, and tokens that are embedded."""
    embedded = {
        name
        for node in plan.graph.nodes.values()
        if traits(node.op).embeds
        for name in node.refs
        if name in plan.facts.tokens
    }
    reaching = _ancestors(plan.graph, embedded)
    return [
        name
        for name, leaf, label in zip(graph.inputs, call.leaves, call.labels, strict=True)
        if isinstance(leaf, Tensor)
        and (labels is None or label in labels)
        and (leaf.is_floating_point() or name in reaching)
    ]


class Computes(Exception):
    """A function `output=` does not only pick one of the model's outputs."""


class Objective(nn.Module):
    """A model whose output is a function of another's: its modules keep their paths.

    Args:
        model: the other.
        function: of what it returns, to one tensor.
    """

    of: nn.Module
    function: Callable[[Any], Any]
    outside: dict[str, tuple[Any, Any]]

    def __init__(self, model: nn.Module, function: Callable[[Any], Any]) -> None:
        super().__init__()
        parts = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")
        self.__dict__.update({name: getattr(model, name) for name in parts})
        # not as a module, which has a path
        self.__dict__.update(of=model, function=function, outside=_outside(function))

    @property
    def stands(self) -> bool:
        """Whether what the function reads from outside of it is as it was at the capture."""
        now = _outside(self.function)
        return now.keys() == self.outside.keys() and all(
            value is self.outside[name][0] and version == self.outside[name][1]
            for name, (value, version) in now.items()
        )

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """Those of the other model, itself included: what they hold decides what is captured."""
        yield from self.of.named_modules(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = self.of(*args, **kwargs)
        try:
            picked = self.function(found)
        except Exception as error:
            raise InputError(
                f"output: {self.function!r} picks nothing: of {_kind(found)} it raises "
                f"{type(error).__name__}: {error}; expected one tensor of it"
            ) from error
        if not isinstance(picked, Tensor):
            raise InputError(
                f"output: {self.function!r} gives {type(picked).__name__}; expected exactly one "
                "tensor"
            )
        return picked


def _outside(function: Callable[[Any], Any]) -> dict[str, tuple[Any, Any]]:
    """What a function reads from outside of it, and how often that was written into."""
    try:
        found = inspect.getclosurevars(function)
    except TypeError:  # not written in Python
        return {}
    held = {**found.globals, **found.nonlocals}
    return {name: (value, getattr(value, "_version", None)) for name, value in held.items()}


def picking(output: int | str | Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function that picks an output."""
    return output if callable(output) else lambda found: _item(found, output)


def _kind(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with {list(output)}"
    shape = f" of shape {tuple(output.shape)}" if isinstance(output, Tensor) else ""
    return f"a {type(output).__name__}{shape}"


def output_value(graph: Graph, output: int | str | Callable[[Any], Any] | None, model: str) -> str:
    """Name of the value to explain, of those that the model, of class `model`, returns.

    Raises:
        Computes: `output` is a function that does more than to pick a tensor.
        InputError: the model returns several tensors or none, or `output` does not pick one.
    """
    names = list(dict.fromkeys(graph.output_names))
    if output is None:
        if len(names) == 1:
            return names[0]
        raise InputError(
            f"output: the model returns {_described(graph)}; say which with output=, an index, a "
            "key or a function"
            if names
            else f"output: {model} returns no tensor to explain"
        )
    try:
        picked = output(graph.output) if callable(output) else _item(graph.output, output)
    except Exception as error:
        if callable(output):
            raise Computes from error
        raise InputError(
            f"output: {output!r} picks nothing; the model returns {_described(graph)}"
        ) from error
    found = list(refs_of(picked))
    if len(found) != 1 or not isinstance(picked, Ref):
        raise InputError(
            f"output: {output!r} picks {len(found)} tensors; expected exactly one (the model "
            f"returns {_described(graph)})"
        )
    return found[0]


def layer_values(
    plan: Plan | GradientPlan, path: str, model: nn.Module, call: Call
) -> dict[str, tuple[str, ...]]:
    """Names of the values that a module returns, by its calls: "path", "path@1", ...

    Args:
        plan: what is explained.
        path: of a module, for all of its calls, or of one call.
        model, call: tell the order of several values, which the graph does not hold.

    Raises:
        InputError: no such module is called, with near names.
    """
    names = plan.layer_names()
    calls = [name for name in names if path in (name, name.partition("@")[0])]
    if not calls:
        near = difflib.get_close_matches(path, names, n=3, cutoff=0.4) or names[:5]
        raise InputError(
            f"layers: {path!r} is no module call of the plan; near ones: {', '.join(near)}"
        )
    found = {}
    for name in calls:
        own = plan.graph.module_outputs[name]
        own = own if len(own) == 1 else _as_returned(plan.graph, name, own, model, call)
        found[name] = tuple(value for value in own if value in plan.facts.carriers)
    return found


def _as_returned(
    graph: Graph, path: str, names: tuple[str, ...], model: nn.Module, call: Call
) -> tuple[str, ...]:
    """The values of a module call in the order in which the module returns them.

    Found by their numbers, once a graph, in a run of the model: the module is its user's code.
    """
    key = "returned", path
    if key not in graph.plans:
        returned = _returned(model, call, path)
        inputs = dict(zip(graph.inputs, call.leaves, strict=True))
        values = evaluate(replace(graph, output=[Ref(name) for name in names]), model, inputs)
        places = {
            name: next((i for i, x in enumerate(returned) if _equal(x, value)), len(returned))
            for name, value in values.items()
        }
        graph.plans[key] = tuple(sorted(names, key=lambda name: places[name]))
    order: tuple[str, ...] = graph.plans[key]
    return order


def _returned(model: nn.Module, call: Call, path: str) -> list[Any]:
    """The leaves of what one call of a module returns."""
    name, _, number = path.partition("@")
    outputs: list[list[Any]] = []
    modules = dict(model.named_modules(remove_duplicate=False))
    if name not in modules:  # as in an exported program
        return []
    hook = modules[name].register_forward_hook(
        lambda module, args, output: outputs.append(pytree.tree_leaves(output))
    )
    try:
        run_model(model, call)
    finally:
        hook.remove()
    return outputs[int(number or 0)] if int(number or 0) < len(outputs) else []


def _equal(x: Any, value: Any) -> bool:
    return (
        isinstance(x, Tensor)
        and x.shape == value.shape
        and torch.allclose(x, value.to(x), rtol=1e-3, atol=1e-6, equal_nan=True)
    )


def _described(graph: Graph) -> str:
    """What the model returns, in words."""
    if isinstance(graph.output, Ref):
        return "one tensor"
    count = len(graph.output_names)
    keys = f" under {list(graph.output)}" if isinstance(graph.output, Mapping) else ""
    return f"{count} tensors in a {type(graph.output).__name__}{keys}"


def _item(output: Any, key: Any) -> Any:
    if isinstance(key, int) and isinstance(output, Mapping):
        return list(output.values())[key]
    if isinstance(key, int) and isinstance(output, (Ref, Tensor)):
        return [output][key]
    if isinstance(key, str) and not isinstance(output, Mapping) and hasattr(output, key):
        return getattr(output, key)
    return output[key]


def _ancestors(graph: Graph, names: set[str]) -> set[str]:
    found = set(names)
    for node in reversed(list(graph.nodes.values())):
        if node.name in found:
            found.update(node.refs)
    return found
