"""Which ReLUs may write over the tensor they read, although its layer kept it for its denominator.

A linear layer does so itself (`LinearCall.rectified`), and its ReLU has nothing left to do.

Where a ReLU's output is 0, all rules that multiply by their input give it relevance 0, and then
the quotient R / st(z) below is 0 whatever z was.  So z may be replaced by max(z, 0): one tensor
and one pass over memory less per layer, and a denominator whose sign is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from relprop.graph import Graph
from relprop.operations import Step
from relprop.operations.linear import LinearLayer
from relprop.operations.pointwise import Sum
from relprop.rules import AlphaBeta, Epsilon, Gamma, Norm, ZPlus

__all__ = ["rectify"]

_PROPORTIONAL = (Epsilon, ZPlus, AlphaBeta, Gamma)
"""Linear rules whose relevance is a multiple of the input."""


def rectify(graph: Graph, steps: Mapping[str, Step], output: str) -> dict[str, Step]:
    """The steps, with `inplace` set where a ReLU may overwrite its input, `rectified` where the
    layer below has done its work."""
    readers = graph.consumers()
    vanishing = _vanishing(graph, steps, output, readers)
    changed = dict(steps)
    for name, step in steps.items():
        if step.node.op != "relu" or name not in vanishing or len(step.inputs) != 1:
            continue
        source = steps.get(step.inputs[0])
        if source is None or readers[source.name] != [name] or source.name == output:
            continue
        if isinstance(source.operation, LinearLayer) and "call" in source.options:
            call = replace(source.options["call"], rectified=True)
            changed[source.name] = replace(source, options={**source.options, "call": call})
            options = {**step.options, "rectified": True}
        elif isinstance(source.operation, Sum):
            options = {**step.options, "inplace": True}
        else:
            continue
        changed[name] = replace(step, options=options)
    return changed


def _vanishing(
    graph: Graph, steps: Mapping[str, Step], output: str, readers: Mapping[str, list[str]]
) -> set[str]:
    """The values whose relevance is 0 wherever they are 0."""
    found: set[str] = set()
    for name in reversed(list(steps)):
        reading = [steps[reader] for reader in readers.get(name, []) if reader in steps]
        if name != output and all(_keeps(step, found) for step in reading):
            found.add(name)
    return found


def _keeps(step: Step, vanishing: set[str]) -> bool:
    """Whether the step's inputs get relevance 0 where they are 0."""
    match step.operation.carry:
        case "linear":
            return isinstance(step.rule, _PROPORTIONAL)
        case "norm":
            return True
        case "sum":
            return isinstance(step.rule, Norm)
        case "movement" | "winner" | "product":
            return step.name in vanishing
        case "pass":
            return step.operation.keeps_zero and step.name in vanishing
    return False
