"""The plan: a canonical graph with a rule for each operation that relevance goes through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from relprop.backends import get
from relprop.composites import Composite
from relprop.engine.advice import raise_problems
from relprop.engine.binding import Bound, bind, rule_text
from relprop.engine.facts import Facts, layer_names, leading_to
from relprop.errors import PlanningError
from relprop.graph import Graph
from relprop.graph.maps import Conv
from relprop.operations import Step
from relprop.operations.linear import LinearLayer
from relprop.operations.pointwise import Sum
from relprop.operations.protocol import Backend, Fusing
from relprop.rules import AlphaBeta, Epsilon, Gamma, Norm, ZPlus
from relprop.tables import table

__all__ = [
    "Plan",
    "rectify",
]


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

        def attempt(given: Composite) -> Bound:
            return bind(graph, facts, output, given, precision)

        bound = attempt(composite)
        if bound.lacks or bound.problems:
            raise_problems(method or repr(composite), composite, graph, attempt, bound)
        graph = bound.graph
        steps = rectify(graph, bound.steps, output)
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
    def packs(self) -> bool:
        """Whether sequences are packed among the steps."""
        return any(step.node.op == "_pack_padded_sequence" for step in self.steps.values())

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
        return layer_names(self.graph, self.facts)

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
