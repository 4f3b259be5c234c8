"""The plan: a canonical graph with a rule for each operation that relevance goes through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from relprop.analysis import Facts, carrying_refs, leading_to
from relprop.backends import Backend, Fusing, LinearCall, get
from relprop.composites import Composite, LayerInfo
from relprop.errors import PlanningError
from relprop.graph import Graph, Node, Ref
from relprop.inplace import rectify
from relprop.layers import Operation, Step, operation
from relprop.layers.base import refuse
from relprop.layers.pointwise import Unchanged
from relprop.layers.recurrent import Recurrence
from relprop.maps import Conv
from relprop.rules import Joint, LinearRule, Norm, Pass, Product, Rule
from relprop.tables import table

__all__ = ["Plan", "unsupported"]


@dataclass(frozen=True)
class Plan:
    """How a model is explained: immutable, printable.

    Attributes:
        graph: the operations that the explained output depends on.
        steps: those that relevance goes through, by the name of their value.
        output: name of the explained value.
        facts: what is known of the graph's values.
        method: the name or composite it was made for.
        backend: name of the backend of its linear layers.
    """

    graph: Graph
    steps: Mapping[str, Step]
    output: str
    facts: Facts
    method: str
    backend: str

    @classmethod
    def make(
        cls,
        graph: Graph,
        output: str,
        composite: Composite,
        *,
        floating: Sequence[str],
        integer: Sequence[str] = (),
        backend: str = "aten",
        precision: str = "highest",
        method: str = "",
    ) -> Plan:
        """Bind a canonical graph to a composite.

        Raises:
            PlanningError: operations without a rule (all of them are listed), a selector that
                matches nothing, a rule that does not fit, an output that no input reaches.
        """
        graph, facts = leading_to(output, graph, floating, integer)
        nodes = [node for node in graph.nodes.values() if carried(node, facts)]
        infos = {node.name: layer_info(node, facts) for node in nodes}
        # operations that only move data take no rule, so that a glob may run across them
        ruled = [name for name, info in infos.items() if info.kind != "reshape"]
        given = dict(zip(ruled, composite.assign([infos[name] for name in ruled]), strict=True))
        binder = _Binder(graph, facts, composite, precision, method or repr(composite))
        steps = binder.bind_all(nodes, given, output)
        binder.raise_problems()
        steps = rectify(graph, steps, output)
        steps = served(steps, get(backend))
        if isinstance(fusing := get(backend), Fusing):
            steps = fusing.fuse(graph, steps, output)
        return cls(graph, steps, output, facts, method or repr(composite), backend)

    @cached_property
    def read(self) -> frozenset[str]:
        """Names of the values that something reads."""
        nodes = self.graph.nodes.values()
        return frozenset(name for node in nodes for name in node.refs) | {self.output}

    @cached_property
    def convolves(self) -> bool:
        """Whether a convolution over images that is no transposed one is among the steps."""
        maps = [step.node.attributes.get("map") for step in self.steps.values()]
        return any(isinstance(m, Conv) and m.spatial == 2 and not m.transposed for m in maps)

    @cached_property
    def releases(self) -> dict[str, list[str]]:
        """After which node each computed value is read no more."""
        kept = [self.output, *self.graph.inputs, *self.facts.fixed]
        return self.graph.last_reads(kept)

    def __str__(self) -> str:
        rows = [
            (
                str(number),
                step.node.op,
                step.node.path,
                _rule_text(step),
                self.backend if step.operation.carry == "linear" else step.operation.backend,
                ", ".join(step.inputs),
            )
            for number, step in enumerate(self.steps.values())
        ]
        head = ("step", "operation", "module path", "rule", "backend", "inputs")
        lines = [table(head, rows)]
        folded = self.dissolved()
        if folded:
            lines.append("dissolved: " + ", ".join(f"{a} into {b}" for a, b in folded.items()))
        lines.append("layers: " + ", ".join(self.layer_names()))
        return "\n".join(lines)

    def layer_names(self) -> list[str]:
        """Module paths whose output's relevance can be asked for by `layers=`."""
        outputs = self.graph.module_outputs
        return [path for path, name in outputs.items() if name in self.facts.carriers]

    def dissolved(self) -> dict[str, str]:
        """Modules that were folded into another, with the path of the other."""
        return {
            step.node.attributes["folded"]: step.node.path
            for step in self.steps.values()
            if "folded" in step.node.attributes
        }


def _rule_text(step: Step) -> str:
    if step.rule is not None:
        return rule_text(step.rule)
    if "shares" in step.options:
        return f"shares {step.options['shares']}"
    return step.operation.carry


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


def served(steps: Mapping[str, Step], backend: Backend) -> dict[str, Step]:
    """The steps with the backend's own operations in them; all that it cannot serve are listed."""
    found, problems = {}, []
    for name, step in steps.items():
        try:
            found[name] = replace(step, operation=backend.operation(step))
        except PlanningError as error:
            problems.append(str(error))
    if problems:
        raise PlanningError("\n".join(problems))
    return found


def carried(node: Node, facts: Facts) -> bool:
    """Whether relevance goes through the node."""
    return node.name in facts.carriers


def layer_info(node: Node, facts: Facts) -> LayerInfo:
    """The node as composites see it."""
    found = operation(node.op)
    kind = found.kind if found is not None and found.kind else node.op
    first = bool(node.args) and isinstance(node.args[0], Ref) and node.args[0].name in facts.fresh
    return LayerInfo(kind, node.path, node.module_types, first)


def unsupported(graph: Graph, facts: Facts) -> list[Node]:
    """The operations that carry relevance and have no propagation of their own."""
    return [
        node for node in graph.nodes.values() if carried(node, facts) and operation(node.op) is None
    ]


class _Binder:
    """Binds nodes to rules one by one and gathers what is wrong."""

    def __init__(
        self, graph: Graph, facts: Facts, composite: Composite, precision: str, method: str
    ) -> None:
        self.graph, self.facts, self.composite = graph, facts, composite
        self.precision, self.method = precision, method
        self.unruled: list[str] = []
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
        if found is None:
            return self._by_hand(node, inputs, rule)
        if found.carry == "linear" and [r for r in node.refs if r in self.facts.carriers] != [
            *inputs
        ]:
            self.unruled.append(f"{_where(node)}: its weight depends on the input")
            return None
        if isinstance(found, Recurrence) and not found.takes(node, inputs):
            self.unruled.append(f"{_where(node)}: its weight depends on the input")
            return None
        if len(inputs) > 1 and not found.several:
            self.unruled.append(f"{_where(node)}: several of its arguments depend on the input")
            return None
        if rule is not None and not found.accepts(rule):
            why = f" ({found.limits})" if found.limits else ""
            self.problems.append(
                f"{_where(node)}: {rule_text(rule)} does not fit {found.kind}{why}"
            )
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
        self.unruled.append(_where(node) + _HINTS.get(node.op, ""))
        return None

    def _linear(self, step: Step) -> Step:
        rule = step.rule
        if isinstance(rule, Joint) and rule.channels is None:
            rule = self._joint(step, rule)
        if not isinstance(rule, LinearRule):
            return step
        call = LinearCall(
            map=step.node.attributes["map"],
            rule=rule,
            nonnegative=self._nonnegative(step, rule),
            precision=self.precision,
            path=step.node.path,
        )
        return replace(step, rule=rule, options={"call": call})

    def _nonnegative(self, step: Step, rule: LinearRule) -> bool:
        """Whether the input is known to be >= 0; under Joint, the state in it."""
        known, source = self.facts.nonnegative, self.graph.nodes.get(step.inputs[0])
        if isinstance(rule, Joint) and source is not None and source.op in ("cat", "concat"):
            spans = self._spans(source, step.node.attributes["map"].feature_axis)
            return all(name in known for name, span in spans if span != rule.channels)
        return step.inputs[0] in known

    def _joint(self, step: Step, rule: Joint) -> Rule:
        source = self.graph.nodes.get(step.inputs[0])
        axis = step.node.attributes["map"].feature_axis
        if source is None or source.op not in ("cat", "concat"):
            self.problems.append(
                f"{_where(step.node)}: Joint needs a layer whose input is a concatenation of "
                "pixels and state; give it another rule, or Joint(channels=(start, stop))"
            )
            return rule
        spans = [span for name, span in self._spans(source, axis) if name in self.facts.fresh]
        if len(spans) != 1:
            self.problems.append(
                f"{_where(step.node)}: Joint needs one concatenated part that comes from an "
                f"input, found {len(spans)}; say which with Joint(channels=(start, stop))"
            )
            return rule
        return replace_channels(rule, spans[0])

    def _spans(self, joined: Node, axis: int) -> list[tuple[str, tuple[int, int]]]:
        """Concatenated parts, each with where it starts and stops."""
        parts = [part.name for part in joined.args[0]]
        stops = list(accumulate(self._sizes(parts, axis, joined)))
        return list(zip(parts, zip([0, *stops], stops, strict=False), strict=True))

    def _sizes(self, parts: list[str], axis: int, joined: Node) -> list[int]:
        """Sizes of concatenated parts; a model's input, of unknown shape, is what is left."""
        known: dict[str, Any] = {**self.graph.sources, **self.graph.nodes}
        shapes = [known[name].shape if name in known else None for name in parts]
        sizes = [shape[axis] if shape else 0 for shape in shapes]
        left = (joined.shape or (0,))[axis] - sum(sizes)
        return [size or left for size in sizes]

    def _product(self, step: Step) -> Step | None:
        node, rule = step.node, step.rule
        operands = [x.name for x in node.args[:2] if isinstance(x, Ref)]
        if node.kwargs.get("rounding_mode") is not None:
            self.unruled.append(f"{_where(node)}: it rounds its result")
            return None
        if len(step.inputs) == 1:
            if node.op != "mul" and operands and node.args[0] != Ref(step.inputs[0]):
                self.unruled.append(f"{_where(node)}: the input is in the denominator")
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
            self.unruled.append(f"{_where(node)}: {which}; rules.Product('half') shares equally")
            return None
        return replace(step, options={"shares": (0, 1) if gates[0] else (1, 0)})

    def _quotient(self, step: Step) -> Step | None:
        """Divided by a statistic, as in a normalisation, the numerator takes all."""
        scales = self.facts.gates | self.facts.magnitudes
        if step.rule == Product("left") or step.inputs[1] in scales:
            return replace(step, options={"shares": (1, 0)})
        self.unruled.append(
            f"{_where(step.node)}: both operands depend on the input; rules.Product('left') gives "
            "all to the numerator"
        )
        return None

    def raise_problems(self) -> None:
        problems = list(self.problems)
        if self.unruled:
            count = len(self.unruled)
            what = "one operation" if count == 1 else f"{count} operations"
            listed = "".join(f"\n  {text}" for text in self.unruled)
            paths = [text.split("'")[1] for text in self.unruled if text.startswith("'")]
            example = paths[0] if paths else "path:"
            problems.append(
                f"{self.method} has no rule for {what}:{listed}\n"
                f"Give each one: composite.with_rule({example!r}, rules.Pass()) where the shape "
                "does not change, rules.Product('half') for a product."
            )
        if problems:
            raise PlanningError("\n".join(problems))


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
_HINTS = dict.fromkeys(
    ("softmax", "_softmax", "log_softmax", "_log_softmax"),
    ": explain what it reads, such as the logits (a model without it, or output=)",
)
"""What to do about some operations, for messages."""


def _receivers(step: Step) -> list[str]:
    """The inputs that the step may hand relevance to: not the gate of a product."""
    shares = step.options.get("shares", (1,) * len(step.inputs))
    return [name for name, share in zip(step.inputs, shares, strict=True) if share]


def _where(node: Node) -> str:
    return f"'{node.path}' is aten.{node.op}" if node.path else f"aten.{node.op} (in the model)"


def replace_channels(rule: Joint, channels: tuple[int, int]) -> Joint:
    """The rule for pixels in these channels."""
    return Joint(rule.pixel, rule.state, rule.epsilon, rule.zero_params, channels)
