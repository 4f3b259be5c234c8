"""Layers fed by pixels and by a state, `rules.Joint`: which part of their input is which."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from relprop.analysis import Facts
from relprop.errors import PlanningError
from relprop.graph import Graph, Node
from relprop.layers import Step
from relprop.rules import Joint

__all__ = ["nonnegative_state", "with_channels"]


def with_channels(rule: Joint, step: Step, graph: Graph, facts: Facts) -> Joint:
    """The rule with the channels of the pixels: the part that comes from an input.

    Raises:
        PlanningError: the layer's input is no concatenation, or not one of its parts is an input.
    """
    parts = _parts(step, graph)
    if parts is None:
        raise PlanningError(
            "Joint needs a layer whose input is a concatenation of pixels and state; give it "
            "another rule, or Joint(channels=(start, stop))"
        )
    spans = [span for name, span in parts if name in facts.fresh]
    if len(spans) != 1:
        raise PlanningError(
            f"Joint needs one concatenated part that comes from an input, found {len(spans)}; "
            "say which with Joint(channels=(start, stop))"
        )
    return Joint(rule.pixel, rule.state, rule.epsilon, rule.zero_params, spans[0])


def nonnegative_state(rule: Joint, step: Step, graph: Graph, facts: Facts) -> bool:
    """Whether all of the input but the pixels is known to be >= 0."""
    parts = _parts(step, graph)
    if parts is None:
        return step.inputs[0] in facts.nonnegative
    return all(name in facts.nonnegative for name, span in parts if span != rule.channels)


def _parts(step: Step, graph: Graph) -> list[tuple[str, tuple[int, int]]] | None:
    """The concatenated parts of a layer's input, each with where its channels start and stop."""
    joined = graph.nodes.get(step.inputs[0])
    if joined is None or joined.op not in ("cat", "concat"):
        return None
    names = [part.name for part in joined.args[0]]
    stops = list(accumulate(_sizes(names, step.node.attributes["map"].feature_axis, joined, graph)))
    return list(zip(names, zip([0, *stops], stops, strict=False), strict=True))


def _sizes(names: list[str], axis: int, joined: Node, graph: Graph) -> list[int]:
    """Sizes of concatenated parts; a model's input, of unknown shape, is what is left."""
    known: dict[str, Any] = {**graph.sources, **graph.nodes}
    shapes = [known[name].shape if name in known else None for name in names]
    sizes = [shape[axis] if shape else 0 for shape in shapes]
    left = (joined.shape or (0,))[axis] - sum(sizes)
    return [size or left for size in sizes]
