"""What planning needs to know of the values of a graph: which carry relevance, signs, gates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from relprop.engine.gates import is_gate, is_magnitude
from relprop.errors import PlanningError
from relprop.graph import Graph, Node, Ref
from relprop.operations.traits import traits

__all__ = ["Facts", "analyse", "carrying_refs", "leading_to"]


@dataclass
class Facts:
    """Facts about the values of a graph, by name.

    Attributes:
        carriers: values that carry relevance.
        tokens: those of them that are integers on their way to an embedding.
        fixed: values that depend on parameters and constants alone.
        nonnegative: values that are never negative.
        gates: values of gates: sigmoids, their complements, masks, statistics.
        magnitudes: values that tell how large others are: squares, norms, variances.
        fresh: values reached from a floating input without crossing a linear layer.
    """

    carriers: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    fixed: set[str] = field(default_factory=set)
    nonnegative: set[str] = field(default_factory=set)
    gates: set[str] = field(default_factory=set)
    magnitudes: set[str] = field(default_factory=set)
    fresh: set[str] = field(default_factory=set)


def analyse(graph: Graph, floating: Iterable[str], integer: Iterable[str]) -> Facts:
    """The facts of a canonical graph whose inputs to explain are these."""
    facts = Facts()
    facts.fresh.update(floating)
    facts.tokens.update(integer)
    facts.carriers.update(facts.fresh | facts.tokens)
    facts.fixed.update(graph.sources)
    for node in graph.nodes.values():
        _flow(node, facts)
        if all(name in facts.fixed for name in node.refs):
            facts.fixed.add(node.name)
        reading = carrying_refs(node, facts)
        if is_gate(node, graph.nodes, facts.gates, facts.magnitudes, reading):
            facts.gates.add(node.name)
        if is_magnitude(node, graph.nodes, facts.magnitudes, reading):
            facts.magnitudes.add(node.name)
        if traits(node.op).nonnegative(node, _known(facts)):
            facts.nonnegative.add(node.name)
    return facts


def leading_to(
    output: str, graph: Graph, floating: Iterable[str], integer: Iterable[str]
) -> tuple[Graph, Facts]:
    """The part of a canonical graph that an output depends on, a graph of its own, and its facts.

    Raises:
        PlanningError: the output does not depend on any input to explain.
    """
    graph = replace(graph, output=Ref(output), sources=dict(graph.sources), plans={})
    graph.prune()
    facts = analyse(graph, floating, integer)
    if output not in facts.carriers:
        raise PlanningError(
            f"the output '{output}' does not depend on any input to explain; check `inputs=` "
            "and `output=` (integer inputs count only through an embedding)"
        )
    return graph, facts


def carrying_refs(node: Node, facts: Facts) -> list[str]:
    """The values read by the node that can give it relevance, in order, repeated if read twice."""
    found = traits(node.op)
    if found.carry == "linear" or found.shaped_like:
        return [ref.name for ref in node.args[:1] if ref.name in facts.carriers]
    if node.name in facts.tokens or found.embeds:
        return [name for name in node.refs if name in facts.carriers]
    return [name for name in node.refs if name in facts.carriers and name not in facts.tokens]


def _flow(node: Node, facts: Facts) -> None:
    found = traits(node.op)
    read = node.refs[:1] if found.shaped_like else node.refs
    refs = [name for name in read if name in facts.carriers]
    if not refs or not found.flows:
        return
    if all(name in facts.tokens for name in refs):
        if found.embeds:
            facts.carriers.add(node.name)
        elif found.moves and not _is_floating(node):
            facts.tokens.add(node.name)
            facts.carriers.add(node.name)
        return
    if node.shape is None and "parts" not in node.attributes:
        return
    if node.dtype is not None and not node.dtype.is_floating_point:
        return
    facts.carriers.add(node.name)
    if not found.weighted and any(name in facts.fresh for name in refs):
        facts.fresh.add(node.name)


def _is_floating(node: Node) -> bool:
    return node.dtype is not None and node.dtype.is_floating_point


def _known(facts: Facts) -> Callable[[Any], bool]:
    def known(value: Any) -> bool:
        if isinstance(value, Ref):
            return value.name in facts.nonnegative
        return isinstance(value, (int, float)) and value >= 0

    return known
