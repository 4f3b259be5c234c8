"""Activations written in several operations, joined to one through which all relevance goes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from relprop.engine.facts import Facts
from relprop.graph import Graph, Node, Ref
from relprop.graph.pointwise import Region, regions_to
from relprop.operations.base import operation

__all__ = ["join_activations"]

_LINEAR = {"add", "sub", "rsub", "neg", "to", "_to_copy", "type_as"}
_SCALING = {"mul", "div", "true_divide"}


def join_activations(graph: Graph, facts: Facts, ruled: Collection[str]) -> Graph:
    """The graph with one operation for each pointwise function of one value that is not linear.

    They are functions R → R of each element with constants in them, such as softplus(x) - log 2:
    split in proportion their constants would take relevance, and x none where the rest is small.
    What only scales, or adds a constant, stays what it is; so does what activations alone make up,
    and what holds one of the operations `ruled`.
    """
    graph = replace(graph, nodes=dict(graph.nodes))
    readers = graph.consumers()
    kept = {name for own in graph.module_outputs.values() for name in own}
    for last in reversed(list(graph.nodes)):
        node = graph.nodes.get(last)
        if node is None or last not in facts.carriers - facts.tokens or not node.pointwise:
            continue
        for region in regions_to(graph, last, readers):
            inner = [other.name for other in region.nodes[:-1]]
            if region.root not in facts.carriers or not _is_activation(region):
                continue
            if any(other.name in ruled for other in region.nodes):
                continue
            if any(name in kept and not region.cuts(name) for name in inner):
                continue  # relevance at a module's output can be asked for
            graph.nodes[last] = replace(region.node, op="pointwise")
            for name in inner:
                del graph.nodes[name]
            graph.rename_outputs(dict.fromkeys(inner, last))
            break
    return graph


def _is_activation(region: Region) -> bool:
    """Whether it is a function that is not linear, in which not every operation passes on all."""
    shared = [node for node in region.nodes if not _passes(node, region)]
    bends = [node for node in region.nodes if not _is_linear(node, region)]
    return bool(shared and bends)


def _passes(node: Node, region: Region) -> bool:
    """Whether the operation alone hands all relevance on, as activations and scalings do."""
    found = operation(node.op)
    if found is None or node.op in _SCALING:
        return node.op in _SCALING and _is_linear(node, region)
    return found.carry == "pass"


def _is_linear(node: Node, region: Region) -> bool:
    """Whether it is linear, but for a constant, in what it reads."""
    signals = [name for name in node.refs if name not in region.constants]
    if node.op in _SCALING and len(signals) == 1 and not node.kwargs.get("rounding_mode"):
        return node.op == "mul" or node.args[0] == Ref(signals[0])
    return node.op in _LINEAR
