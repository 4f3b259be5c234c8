"""Nodes of a canonical graph bound to rules one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple

from relprop.composites import Composite, LayerInfo
from relprop.engine.activations import join_activations
from relprop.engine.facts import Facts, carrying_refs
from relprop.errors import PlanningError
from relprop.graph import Graph, Node, Ref
from relprop.operations import Operation, Step, operation
from relprop.operations.base import refuse, traits
from relprop.operations.pointwise import Unchanged
from relprop.operations.protocol import LinearCall
from relprop.operations.recurrent import Recurrence
from relprop.rules import Joint, LinearRule, Norm, Pass, Product, Rule

__all__ = ["Bound", "Lack", "bind", "layer_info", "rule_text", "token_step"]


class Lack(NamedTuple):
    """An operation that relevance reaches and that has no rule.

    Attributes:
        node: the operation.
        why: what is in the way, in words; empty where the operation has no propagation of its own.
    """

    node: Node
    why: str = ""

    def __str__(self) -> str:
        return f"{self.node.where}: {self.why}" if self.why else self.node.where


def rule_text(rule: Rule) -> str:
    """The rule without what is at its default."""
    try:
        default = type(rule)()
    except TypeError:
        return repr(rule)
    shown = [
        f"{name}={value!r}"
        for name, value in vars(rule).items()
        if value != getattr(default, name, None)
    ]
    return f"{type(rule).__name__}({', '.join(shown)})"


class Bound(NamedTuple):
    """What became of a graph's operations under a composite.

    Attributes:
        graph: in which each activation is one operation.
        steps: those that have a rule, by the name of their value.
        lacks: those that relevance reaches and that have none.
        problems: rules that do not fit, in words.
    """

    graph: Graph
    steps: dict[str, Step]
    lacks: list[Lack]
    problems: list[str]


def bind(
    graph: Graph, facts: Facts, output: str, composite: Composite, precision: str = "highest"
) -> Bound:
    """The operations between the inputs and an output bound to the rules of a composite.

    Raises:
        PlanningError: a selector matches nothing, or its rule fits nothing that it matches.
    """
    nodes = [node for node in graph.nodes.values() if node.name in facts.carriers]
    infos = {node.name: layer_info(node, facts) for node in nodes}
    # operations that only move data take no rule, so that a glob may run across them
    ruled = [name for name, info in infos.items() if info.kind != "reshape"]
    given = dict(zip(ruled, composite.assign([infos[name] for name in ruled]), strict=True))
    if any(_may_be_joined(node) for node in nodes):
        told = {name for name, rule in given.items() if not isinstance(rule, (Pass, type(None)))}
        graph = join_activations(graph, facts, told)
        nodes = [graph.nodes[node.name] for node in nodes if node.name in graph.nodes]
    binder = Binder(graph, facts, composite, precision)
    return Bound(graph, binder.bind_all(nodes, given, output), binder.unruled, binder.problems)


def _may_be_joined(node: Node) -> bool:
    """Whether it can be a part of an activation that is written in several operations."""
    found = operation(node.op)
    shares = found is None or found.several or node.op == "masked_fill"
    return shares and node.pointwise


def layer_info(node: Node, facts: Facts) -> LayerInfo:
    """The node as composites see it."""
    found = operation(node.op)
    kind = found.kind if found is not None and found.kind else node.op
    source = node.args[0] if node.args else None
    first = isinstance(source, Ref) and source.name in facts.before_first_layer
    return LayerInfo(kind, node.path, node.module_types, first, node.op)


class Binder:
    """Binds nodes to rules one by one and gathers what is wrong."""

    def __init__(self, graph: Graph, facts: Facts, composite: Composite, precision: str) -> None:
        self.graph, self.facts, self.composite = graph, facts, composite
        self.precision = precision
        self.unruled: list[Lack] = []
        self.problems: list[str] = []

    def bind_all(
        self, nodes: list[Node], given: Mapping[str, Rule | None], output: str
    ) -> dict[str, Step]:
        """The steps: what only gates read gets no relevance, so needs no rule."""
        reached, steps = {output}, {}
        for node in reversed(nodes):
            known = len(self.unruled), len(self.problems)
            step = self.bind(node, given.get(node.name))
            if node.name not in reached:
                del self.unruled[known[0] :], self.problems[known[1] :]
            else:
                reached.update(node.refs if step is None else _receivers(step))
            if step is not None:
                steps[node.name] = step
        self.unruled.reverse()
        self.problems.reverse()
        return dict(reversed(steps.items()))

    def bind(self, node: Node, rule: Rule | None) -> Step | None:
        found = operation(node.op)
        inputs = tuple(carrying_refs(node, self.facts))
        if node.name in self.facts.tokens:
            step = token_step(node, inputs)
            if step is None:
                self.unruled.append(Lack(node, "several of its arguments depend on the input"))
            return step
        if found is None:
            return self._by_hand(node, inputs, rule)
        if found.carry == "linear" and [r for r in node.refs if r in self.facts.carriers] != [
            *inputs
        ]:
            self.unruled.append(Lack(node, "its weight depends on the input"))
            return None
        if isinstance(found, Recurrence) and not found.takes(node, inputs):
            self.unruled.append(Lack(node, "its weight depends on the input"))
            return None
        if len(inputs) > 1 and not found.several:
            self.unruled.append(Lack(node, "several of its arguments depend on the input"))
            return None
        if rule is not None and not found.accepts(rule):
            why = f" ({found.limits})" if found.limits else ""
            self.problems.append(f"{node.where}: {rule_text(rule)} does not fit {found.kind}{why}")
            return None
        rule = rule if rule is not None else found.default_rule(self.composite.stabilizer)
        if isinstance(rule, Norm) and rule.epsilon is None:
            rule = Norm(self.composite.stabilizer)
        step = Step(node, found, inputs, rule)
        if isinstance(found, Recurrence):
            step = replace(step, options={"precision": self.precision})
        if found.carry == "product":
            return self._product(step)
        return self._linear(step) if found.carry == "linear" else step

    def _by_hand(self, node: Node, inputs: tuple[str, ...], rule: Rule | None) -> Step | None:
        if isinstance(rule, Pass) and len(inputs) == 1 and node.shape is not None:
            return Step(node, _PASS, inputs, rule)
        self.unruled.append(Lack(node, traits(node.op).hint))
        return None

    def _linear(self, step: Step) -> Step:
        rule = step.rule
        if isinstance(rule, Joint) and rule.channels is None:
            try:
                rule = _with_channels(rule, step, self.graph, self.facts)
            except PlanningError as error:
                self.problems.append(f"{step.node.where}: {error}")
        if not isinstance(rule, LinearRule):
            return step
        call = LinearCall(
            map=step.node.attributes["map"],
            rule=rule,
            nonnegative=self._nonnegative(step, rule),
            precision=self.precision,
            path=step.node.path,
        )
        # what is kept from call to call must not depend on an input that is not explained
        constant = all(x.name in self.facts.fixed for x in step.node.args[1:] if isinstance(x, Ref))
        return replace(step, rule=rule, options={"call": call, "constant": constant})

    def _nonnegative(self, step: Step, rule: LinearRule) -> bool:
        """Whether the input is known to be >= 0; under Joint, the state in it."""
        if isinstance(rule, Joint):
            return _nonnegative_state(rule, step, self.graph, self.facts)
        return step.inputs[0] in self.facts.nonnegative

    def _product(self, step: Step) -> Step | None:
        node, rule = step.node, step.rule
        operands = [x.name for x in node.args[:2] if isinstance(x, Ref)]
        if node.kwargs.get("rounding_mode") is not None:
            self.unruled.append(Lack(node, "it rounds its result"))
            return None
        if len(step.inputs) == 1:
            if node.op != "mul" and operands and node.args[0] != Ref(step.inputs[0]):
                self.unruled.append(Lack(node, "the input is in the denominator"))
                return None
            return replace(step, options={"shares": (1,)})
        if node.op != "mul":
            return self._quotient(step)
        if isinstance(rule, Product):
            shares = {"half": (0.5, 0.5), "left": (1, 0), "right": (0, 1)}[rule.mode]
            return replace(step, options={"shares": shares})
        gates = [name in self.facts.gates for name in step.inputs]
        if gates[0] == gates[1]:
            which = "both factors are gates" if gates[0] else "neither factor is a gate"
            self.unruled.append(Lack(node, which))
            return None
        return replace(step, options={"shares": (0, 1) if gates[0] else (1, 0)})

    def _quotient(self, step: Step) -> Step | None:
        """Divided by a statistic, as in a normalisation, the numerator takes all."""
        scales = self.facts.gates | self.facts.magnitudes
        if step.rule == Product("left") or step.inputs[1] in scales:
            return replace(step, options={"shares": (1, 0)})
        self.unruled.append(Lack(step.node, "both operands depend on the input"))
        return None


def token_step(node: Node, inputs: tuple[str, ...]) -> Step | None:
    """How relevance goes back through integers on their way to an embedding.

    Arithmetic, as in clamped or shifted token ids, leaves each at its place.
    """
    found = operation(node.op)
    if found is None or not found.moves:
        found = _SAME_PLACE if len(set(inputs)) == 1 else None
    return Step(node, found, inputs[:1] if found is _SAME_PLACE else inputs) if found else None


class _Passed(Unchanged):
    """An operation without a propagation of its own to which the user gave Pass."""

    kind = "passed"

    def save(self, step: Step, values: Mapping[str, Any], out: Any) -> None:
        shape = values[step.inputs[0]].shape
        if out.shape != shape:
            raise refuse(
                step,
                f"rule Pass needs input and output of one shape, got {list(shape)} and "
                f"{list(out.shape)}; the operation has no rule yet",
            )


_PASS: Operation = _Passed()
_SAME_PLACE: Operation = Unchanged()


def _receivers(step: Step) -> list[str]:
    """The inputs that the step may hand relevance to: not the gate of a product."""
    shares = step.options.get("shares", (1,) * len(step.inputs))
    return [name for name, share in zip(step.inputs, shares, strict=True) if share]


def _with_channels(rule: Joint, step: Step, graph: Graph, facts: Facts) -> Joint:
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
    spans = [span for name, span in parts if name in facts.before_first_layer]
    if len(spans) != 1:
        raise PlanningError(
            f"Joint needs one concatenated part that comes from an input, found {len(spans)}; "
            "say which with Joint(channels=(start, stop))"
        )
    return Joint(rule.pixel, rule.state, rule.epsilon, rule.zero_params, spans[0])


def _nonnegative_state(rule: Joint, step: Step, graph: Graph, facts: Facts) -> bool:
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
    axis = step.node.attributes["map"].feature_axis
    stops = list(accumulate(shape[axis] for name in names if (shape := graph.shape(name))))
    return list(zip(names, zip([0, *stops], stops, strict=False), strict=True))
