"""Which steps of a plan share a kernel of the Triton backend.

Forward, an activation that alone reads a layer or a sum is applied in its epilogue.  Back, a step
divides the relevance of its input by the denominators of the layer that the input comes from, where
only operations that pass relevance on lie between and each value has one reader: the layer then
receives its quotients (`relprop.operations.protocol`), and no kernel of its own makes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relprop.graph import Graph
from relprop.graph.maps import Diagonal, LinearMap
from relprop.operations import Operation, Step
from relprop.operations.base import Engine
from relprop.operations.pointwise import Activation
from relprop.operations.protocol import Below, LinearCall
from relprop.rules import Flat, LinearRule, Pass

if TYPE_CHECKING:
    from relprop.kernels import Contraction
    from relprop.kernels.operands import Lower

__all__ = ["AppliedActivation", "Dividing", "FusedCall", "Saved", "fuse", "lower_of"]

_ACTIVATIONS = {"relu", "sigmoid", "silu", "gelu"}


@dataclass(frozen=True)
class FusedCall(LinearCall):
    """A linear layer whose kernel applies an activation to its output."""

    activation: str | None = None


@dataclass(frozen=True)
class Saved:
    """What the relevance of a layer needs.

    Attributes:
        map: geometry that the kernels saw.
        shape: of the layer's input.
        contraction: the layer's denominators; None under Flat, which counts instead.
        a, w: input and weight, of which Flat needs the shapes.
    """

    map: LinearMap
    shape: torch.Size
    contraction: Contraction | None
    a: Tensor
    w: Tensor


class Dividing:
    """Marks an operation whose relevance kernel can take the quotient of the layer below.

    Attributes:
        applies: whether its forward kernel applies the step's option "activation" to the value.
    """

    applies = False


def lower_of(saved: Any, shape: Sequence[int]) -> Lower | None:
    """The layer below, by what it saved; None where its denominators are not of that shape."""
    from relprop import kernels

    contraction = saved.contraction if isinstance(saved, Saved) else None
    if contraction is None or contraction.z is None:
        return None
    own = contraction.program.own_input
    alike = list(contraction.z.shape[1 if own else 2 :]) == list(shape[0 if own else 1 :])
    return kernels.below(contraction, shape) if alike else None


class AppliedActivation(Activation):
    """An activation that the kernel below has applied: the value is its input as it comes."""

    backend = "triton"

    def forward(self, step: Step, values: Mapping[str, Any], engine: Engine) -> tuple[Any, Any]:
        return values[step.inputs[0]], None


_APPLIED: Operation = AppliedActivation()


def fuse(graph: Graph, steps: Mapping[str, Step], output: str) -> dict[str, Step]:
    """The steps, the option "activation" on those that apply one, "below" on those that divide."""
    readers = graph.consumers()
    return _divided(_activated(steps, readers, output), readers, output)


def _activated(
    steps: Mapping[str, Step], readers: Mapping[str, list[str]], output: str
) -> dict[str, Step]:
    found = dict(steps)
    for name, step in steps.items():
        kind = _activation(step)
        source = steps.get(step.inputs[0]) if step.inputs else None
        if kind is None or source is None or source.name == output:
            continue
        operation = source.operation
        served = _layer(source) or (isinstance(operation, Dividing) and operation.applies)
        if served and readers[source.name] == [name]:
            found[source.name] = replace(source, options=_applying(source, kind))
            found[name] = replace(step, operation=_APPLIED)
    return found


def _applying(step: Step, kind: str) -> dict[str, Any]:
    """The options of a step that applies an activation to its value."""
    call = step.options.get("call")
    if call is None:
        return {**step.options, "activation": kind}
    return {**step.options, "call": FusedCall(**vars(call), activation=kind)}


def _activation(step: Step) -> str | None:
    """The activation a kernel's epilogue could apply in this step's place."""
    node = step.node
    if node.op not in _ACTIVATIONS or len(node.refs) != 1:
        return None
    exact = node.op != "gelu" or node.argument(1, "approximate", "none") == "none"
    return node.op if exact else None


def _layer(step: Step) -> bool:
    """Whether a linear layer's kernels run the step."""
    return step.operation.carry == "linear" and "call" in step.options


def _divided(
    steps: Mapping[str, Step], readers: Mapping[str, list[str]], output: str
) -> dict[str, Step]:
    found = dict(steps)
    for name, step in steps.items():
        if not (_divides(step) and step.inputs):
            continue
        below = tuple(_below(source, name, steps, readers, output) for source in step.inputs)
        if any(below):
            found[name] = replace(step, options={**step.options, "below": below})
    return found


def _divides(step: Step) -> bool:
    """Whether the step's kernel can take the quotient of the layer below."""
    if isinstance(step.rule, Pass):
        return False
    return isinstance(step.operation, Dividing) or _divisible(step)


def _divisible(step: Step) -> bool:
    """A layer with one denominator or two for each element of its output, laid out as that."""
    if not _layer(step):
        return False
    call = step.options["call"]
    flat = isinstance(call.map, Diagonal) and call.map.ndim == 2
    return isinstance(call.rule, LinearRule) and not isinstance(call.rule, Flat) and not flat


def _below(
    source: str,
    reader: str,
    steps: Mapping[str, Step],
    readers: Mapping[str, list[str]],
    output: str,
) -> Below | None:
    """The layer that a value comes from, reached through operations that pass relevance on."""
    between: list[str] = []
    while readers.get(source, ()) == [reader] and source != output:
        step = steps.get(source)
        if step is None:
            return None
        between.append(source)
        if step.operation.carry == "linear":
            return Below(source, frozenset(between)) if _divisible(step) else None
        if step.operation.carry != "pass" or len(step.inputs) != 1:
            return None
        source, reader = step.inputs[0], source
    return None
