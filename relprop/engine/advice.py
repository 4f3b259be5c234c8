"""What to do about operations without a rule: rules that were tried on the graph at hand."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from relprop.composites import Composite
from relprop.engine.binding import Bound, Lack
from relprop.errors import PlanningError
from relprop.graph import Graph
from relprop.rules import Pass, Product, Rule

__all__ = ["raise_problems"]

CANDIDATES: tuple[Rule, ...] = (Pass(), Product("half"), Product("left"))
"""What is tried, in this order."""

Attempt = Callable[[Composite], Bound]
"""Binds the graph at hand to a composite."""


def raise_problems(
    method: str, composite: Composite, graph: Graph, attempt: Attempt, bound: Bound
) -> None:
    """Raise for what a binding found wrong, with rules that fit in its place.

    Raises:
        PlanningError: operations without a rule (all of them are listed), rules that do not fit.
    """
    problems = list(bound.problems)
    if bound.lacks:
        count = len(bound.lacks)
        what = "one operation" if count == 1 else f"{count} operations"
        listed = "".join(f"\n  {lack}" for lack in bound.lacks)
        found, left = advised(bound.lacks, composite, graph, attempt)
        problems.append(f"{method} has no rule for {what}:{listed}{_worded(found, left)}")
    if problems:
        raise PlanningError("\n".join(problems))


def _worded(found: Sequence[tuple[str, Rule]], left: Collection[str]) -> str:
    """The advice in words."""
    text = ""
    if found:
        calls = "".join(f"\n  .with_rule({name!r}, rules.{rule!r})" for name, rule in found)
        text = f"\nThese rules fit and can be given: composite{calls}"
    if left:
        text += (
            f"\nNo rule fits aten.{', aten.'.join(left)}: explain the part of the model before "
            "or after it alone, or take a method of gradients, such as 'gradient_x_input', which "
            "needs no rules"
        )
    return text


def advised(
    lacks: Sequence[Lack], composite: Composite, graph: Graph, attempt: Attempt
) -> tuple[list[tuple[str, Rule]], list[str]]:
    """Rules that serve operations without one, and the operations that none serves.

    Each is tried: it must bind, and change the rule of nothing that has one.

    Returns:
        (selector, rule) pairs for `Composite.with_rule`, together tried too; names of operations.
    """
    found: list[tuple[str, Rule]] = []
    left: dict[str, None] = {}
    before = attempt(composite)
    open_ = list(lacks)
    while open_:
        lack = open_[0]
        for selector, rule in _candidates(lack, open_):
            after = _tried(attempt, composite.with_rule(selector, rule))
            if after is not None and _serves(lack, before, after, graph):
                composite, before = composite.with_rule(selector, rule), after
                found.append((selector, rule))
                break
        else:
            left[lack.node.op] = None
            open_ = [other for other in open_ if other.node.op != lack.node.op]
        open_ = [other for other in open_ if other.node in _nodes(before)]
    return found, list(left)


def _candidates(lack: Lack, lacks: Sequence[Lack]) -> Iterator[tuple[str, Rule]]:
    """Selectors of the operation with rules for it; one for all of its name if there are others."""
    node = lack.node
    alike = sum(other.node.op == node.op for other in lacks)
    selectors = [f"path:{node.path}", f"aten.{node.op}"]
    for selector in selectors if alike == 1 else reversed(selectors):
        yield from ((selector, rule) for rule in CANDIDATES)


def _tried(attempt: Attempt, composite: Composite) -> Bound | None:
    try:
        bound = attempt(composite)
    except PlanningError:
        return None
    return None if bound.problems else bound


def _nodes(bound: Bound) -> list[object]:
    return [lack.node for lack in bound.lacks]


def _serves(lack: Lack, before: Bound, after: Bound, graph: Graph) -> bool:
    """Whether an operation has got a rule, and nothing else another one."""
    if lack.node in _nodes(after):
        return False
    same = all(after.steps[name].rule == step.rule for name, step in before.steps.items()
               if name in after.steps)  # fmt: skip
    passed = [
        step
        for name, step in after.steps.items()
        if name not in before.steps and isinstance(step.rule, Pass)
    ]
    return same and all(graph.shape(step.inputs[0]) == step.node.shape for step in passed)
