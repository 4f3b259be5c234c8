"""What planning needs to know of the values of a graph: which carry relevance, signs, gates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from relprop.errors import PlanningError
from relprop.graph import Graph, Node, Ref
from relprop.graph.products import products_as_layers
from relprop.operations.base import traits
from relprop.operations.pointwise import Clamp, Division

__all__ = [
    "Facts",
    "analyse",
    "carrying_refs",
    "is_gate",
    "is_magnitude",
    "known_signs",
    "layer_names",
    "leading_to",
]


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
        before_first_layer: values reached from a floating input without crossing a linear layer.
    """

    carriers: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    fixed: set[str] = field(default_factory=set)
    nonnegative: set[str] = field(default_factory=set)
    gates: set[str] = field(default_factory=set)
    magnitudes: set[str] = field(default_factory=set)
    before_first_layer: set[str] = field(default_factory=set)


def analyse(graph: Graph, floating: Iterable[str], integer: Iterable[str]) -> Facts:
    """The facts of a canonical graph whose inputs to explain are these."""
    facts = Facts()
    facts.before_first_layer.update(floating)
    facts.tokens.update(integer)
    facts.carriers.update(facts.before_first_layer | facts.tokens)
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
        if traits(node.op).nonnegative(node, known_signs(facts)):
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
    if any(_is_open(node, facts) for node in graph.nodes.values()):
        values = {*graph.inputs, *graph.sources, *graph.nodes}
        products_as_layers(graph, values - facts.carriers)
        graph.prune()
        facts = analyse(graph, floating, integer)
    if output not in facts.carriers:
        raise PlanningError(
            f"the output '{output}' does not depend on any input to explain; check `inputs=` "
            f"and `output=` (integer inputs count only through an embedding){_lost(graph, facts)}"
        )
    return graph, facts


def _is_open(node: Node, facts: Facts) -> bool:
    """Whether it is a product of which it depends on the inputs to explain what the weight is."""
    if node.op == "matmul":
        return True
    weights = node.args[1:] if node.op == "dense_map" else ()
    return any(isinstance(ref, Ref) and ref.name in facts.carriers for ref in weights)


def _lost(graph: Graph, facts: Facts) -> str:
    """Where the relevance of the inputs ends, in words."""
    ends = [
        f"{node.where} of {str(node.dtype).removeprefix('torch.')}"
        for node in graph.nodes.values()
        if node.dtype is not None and set(node.refs) & facts.carriers - facts.tokens
        if node.name not in facts.carriers and not node.dtype.is_floating_point
    ]
    return f"; relevance passes through real numbers alone: {', '.join(ends[:3])}" if ends else ""


def layer_names(graph: Graph, facts: Facts) -> list[str]:
    """Module calls whose outputs' relevance can be asked for by `layers=`."""
    outputs = graph.module_outputs.items()
    return [path for path, names in outputs if not facts.carriers.isdisjoint(names)]


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
        elif (found.moves and not _is_floating(node)) or (node.pointwise and _is_integer(node)):
            facts.tokens.add(node.name)
            facts.carriers.add(node.name)
        return
    if node.shape is None and "parts" not in node.attributes:
        return
    if node.dtype is not None and not node.dtype.is_floating_point:
        return
    facts.carriers.add(node.name)
    if not found.weighted and any(name in facts.before_first_layer for name in refs):
        facts.before_first_layer.add(node.name)


def _is_floating(node: Node) -> bool:
    return node.dtype is not None and node.dtype.is_floating_point


def _is_integer(node: Node) -> bool:
    return node.dtype not in (None, torch.bool) and not _is_floating(node)


def known_signs(facts: Facts) -> Callable[[Any], bool]:
    """Whether an argument of a node is known never to be negative."""

    def known(value: Any) -> bool:
        if isinstance(value, Ref):
            return value.name in facts.nonnegative
        return isinstance(value, (int, float)) and value >= 0

    return known


def is_gate(
    node: Node,
    nodes: Mapping[str, Node],
    gates: Collection[str],
    magnitudes: Collection[str],
    reading: Collection[str],
) -> bool:
    """Whether the node's value is a gate.

    Args:
        node: in question.
        nodes: all nodes by name.
        gates: the gates among the values before it.
        magnitudes: values before it that are magnitudes, see `is_magnitude`.
        reading: the values that can give it relevance.
    """
    if traits(node.op).gate or node.dtype is torch.bool:
        return True
    if _bounds(node) == (0, 1) or _is_hard_sigmoid(node, nodes):
        return True
    if _written_out(node, nodes):
        return True
    return _computed_from(node, gates, reading) or _is_statistic(node, magnitudes, reading, gates)


def _computed_from(node: Node, gates: Collection[str], reading: Collection[str]) -> bool:
    """A gate moved, averaged, clamped, joined with others; 1 - gate, 2 * gate, gate * gate.

    A gate of which some elements are constants instead (`where`, `masked_fill`, padding) is one
    too: held fixed, each of its elements is a factor, as a constant is.
    """
    if not reading or any(name not in gates for name in reading):
        return False
    found = traits(node.op)
    if isinstance(found, Division):
        return _name(node.args[0]) in gates
    return found.moves or found.averages or found.combines_gates


def _bounds(node: Node) -> tuple[Any, Any]:
    if node.op == "relu6":
        return 0, 6
    found = traits(node.op)
    return found.bounds(node) if isinstance(found, Clamp) else (None, None)


def _is_hard_sigmoid(node: Node, nodes: Mapping[str, Node]) -> bool:
    """relu6(x + 3), six times a hard sigmoid."""
    if _bounds(node) != (0, 6):
        return False
    source = nodes.get(_name(node.args[0]))
    return source is not None and _is_shifted(source, 3)


def _is_shifted(node: Node, by: float) -> bool:
    return node.op == "add" and any(_equals(x, by) for x in node.args[:2])


def _equals(value: Any, number: float) -> bool:
    return isinstance(value, (int, float)) and value == number


def _written_out(node: Node, nodes: Mapping[str, Node]) -> bool:
    """1 + tanh, 1 + erf, 1 / (1 + exp), tanh(softplus): sigmoids by other names."""

    def source(position: int, *ops: str) -> Node | None:
        found = nodes.get(_name(node.args[position]))
        return found if found is not None and found.op in ops else None

    match node.op:
        case "add":
            bounded = any(source(i, "tanh", "erf") for i in (0, 1) if i < len(node.args))
            return bounded and _is_shifted(node, 1)
        case "tanh":
            return source(0, "softplus") is not None
        case "reciprocal":
            return _is_logistic(source(0, "add"), nodes)
        case "div" | "true_divide":
            if _equals(node.args[0], 1):
                return _is_logistic(source(1, "add"), nodes)
            clipped = nodes.get(_name(node.args[0]))
            return clipped is not None and _bounds(clipped) == (0, 6) and _equals(node.args[1], 6)
    return False


def _is_logistic(node: Node | None, nodes: Mapping[str, Node]) -> bool:
    """Whether the node is 1 + exp(x)."""
    if node is None or not _is_shifted(node, 1):
        return False
    return any(nodes[name].op == "exp" for name in node.refs if name in nodes)


def is_magnitude(
    node: Node,
    nodes: Mapping[str, Node],
    magnitudes: Collection[str],
    reading: Collection[str],
) -> bool:
    """Whether the value tells how large others are: |x|, x², norms, variances, and what they give.

    What divides by such a value is a normalisation, and statistics take no relevance.
    """
    found = traits(node.op)
    if found.measures:
        return True
    if node.op == "pow" and isinstance(node.args[1], int | float) and node.args[1] % 2 == 0:
        return True
    if node.op == "mul" and isinstance(node.args[0], Ref) and node.args[0] == node.args[1]:
        return True
    if node.op == "add" and _is_logistic(node, nodes):
        return True
    known = bool(reading) and all(name in magnitudes for name in reading)
    return known and (found.scales_magnitudes or found.moves or found.averages)


def _is_statistic(
    node: Node, magnitudes: Collection[str], reading: Collection[str], gates: Collection[str]
) -> bool:
    """Magnitudes summed up over several elements, and what is computed from such sums alone."""
    found = traits(node.op)
    if found.measures and found.averages:
        return True
    if not reading or any(name not in magnitudes for name in reading):
        return False
    if found.averages:
        return True
    steps = found.scales_magnitudes or found.measures
    return steps and all(name in gates for name in reading)


def _name(value: Any) -> str:
    return value.name if isinstance(value, Ref) else ""
