"""Running a plan: the forward pass that keeps what the rules need, the relevance pass back.

Relevance has a leading axis of K targets throughout; nothing here uses autograd.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from relprop.conservation import StepRecord
from relprop.engine.binding import rule_text
from relprop.engine.plan import Plan
from relprop.engine.samples import Samples
from relprop.errors import RelpropError, is_out_of_memory
from relprop.graph import Graph, Node
from relprop.graph.nodes import located, source_values
from relprop.operations import Parts, Step
from relprop.operations.protocol import Backend, joined

__all__ = [
    "Engine",
    "Forward",
    "arranged",
    "forward",
    "relevance",
]


@dataclass
class Engine:
    """What a run computes with: a backend, and the values that outlive one call when frozen.

    Attributes:
        backend: of the linear layers.
        frozen: whether the parameters will not change any more.
        fixed, caches: what outlives a call then.
        known: values of this call that a forward pass shared by several methods has computed.
    """

    backend: Backend
    frozen: bool = False
    fixed: dict[str, Any] = field(default_factory=dict)
    caches: dict[str, dict[Any, Any]] = field(default_factory=dict)
    known: Mapping[str, Any] = field(default_factory=dict)

    def cache(self, name: str) -> dict[Any, Any] | None:
        """The cache of a layer, if it may outlive the call."""
        return self.caches.setdefault(name, {}) if self.frozen else None

    def value(self, node: Node, values: Mapping[str, Any]) -> Any:
        """An operation's value, computed unless it is known."""
        return self.known[node.name] if node.name in self.known else node.evaluate(values)


@dataclass
class Forward:
    """What a forward pass leaves behind.

    Attributes:
        output: the explained value.
        saved: for each step what its rule needs.
        shapes: of the inputs and of all computed values.
        samples: whose rows are whose, in a plan with packed sequences.
    """

    output: Tensor
    saved: dict[str, Any]
    shapes: dict[str, Any]
    samples: Samples | None = None


def fixed_values(plan: Plan, model: nn.Module) -> dict[str, Any]:
    """Parameters, buffers, constants and what is computed from them alone, as they are now."""
    values = source_values(plan.graph, model, plan.read)
    for node in plan.graph.nodes.values():
        if node.name in plan.facts.fixed:
            values[node.name] = node.evaluate(values)
    return values


def forward(
    plan: Plan,
    engine: Engine,
    model: nn.Module,
    inputs: Mapping[str, Any],
    keep: bool = True,
    batch: int | None = None,
) -> Forward:
    """Compute the output, keeping what the relevance pass needs (`keep`).

    With a number of samples `batch`, also what the sums of a report need.
    """
    inputs = {name: arranged(value) if plan.convolves else value for name, value in inputs.items()}
    values = _known(plan, engine, model) | inputs
    shapes: dict[str, Any] = {
        name: value.shape for name, value in inputs.items() if isinstance(value, Tensor)
    }
    saved: dict[str, Any] = {}
    samples = Samples(batch) if batch is not None and plan.packs else None
    for node in plan.graph.nodes.values():
        if node.name in values:
            continue
        step = plan.steps.get(node.name)
        with located(node):
            if step is None:
                values[node.name] = engine.value(node, values)
            else:
                values[node.name], kept = step.operation.forward(step, values, engine)
                if keep:
                    saved[node.name] = kept
        shapes[node.name] = getattr(values[node.name], "shape", None)
        if samples is not None:
            samples.note(node, values)
        for name in plan.releases[node.name]:
            del values[name]
    return Forward(values[plan.output], saved, shapes, samples)


def arranged(value: Any) -> Any:
    """Images with their channels innermost, which convolutions of float32 are faster on."""
    if not isinstance(value, Tensor) or value.ndim != 4 or value.dtype is not torch.float32:
        return value
    return value.contiguous(memory_format=torch.channels_last)


def _known(plan: Plan, engine: Engine, model: nn.Module) -> dict[str, Any]:
    if engine.frozen and engine.fixed:
        return dict(engine.fixed)
    values = fixed_values(plan, model)
    if engine.frozen:
        engine.fixed.update(values)
    return values


def relevance(
    plan: Plan,
    engine: Engine,
    passed: Forward,
    start: Tensor,
    wanted: Iterable[str],
    records: list[StepRecord] | None = None,
    batch: tuple[int, int] = (0, 0),
) -> dict[str, Tensor]:
    """Carry the starting relevance `[K, *output]` back; return that of the values `wanted`.

    What the forward pass saved is dropped step by step.  A value that no relevance reaches is
    absent from the result.  `records` gathers each step's sums for samples on axis `batch[1]`,
    `batch[0]` of them.
    """
    wanted = set(wanted)
    formed = wanted if records is None else None
    found: dict[str, Tensor] = {}
    pending: dict[str, Any] = {plan.output: start}
    for number, (name, step) in reversed(list(enumerate(plan.steps.items()))):
        r = pending.pop(name, None)
        saved = passed.saved.pop(name, None)
        if r is None:
            continue
        if name in wanted:
            found[name] = r
        if "below" in step.options:
            saved = joined(step, saved, passed.saved, formed)
        parts = _relevance_step(step, saved, r, engine)
        if records is not None:
            records.append(_record(plan.graph, number, step, r, parts, *batch, passed.samples))
        for source, part in zip(step.inputs, parts, strict=True):
            if part is not None:
                pending[source] = pending[source] + part if source in pending else part
    found.update({name: r for name, r in pending.items() if name in wanted})
    return found


def _relevance_step(step: Step, saved: Any, r: Tensor | Parts, engine: Engine) -> Any:
    try:
        return step.operation.relevance(step, saved, r, engine)
    except RuntimeError as error:
        if is_out_of_memory(error) or isinstance(error, RelpropError):
            raise
        raise RelpropError(f"{step.where}: the relevance pass failed: {error}") from error


def _record(
    graph: Graph,
    number: int,
    step: Step,
    r: Tensor | Parts,
    parts: Any,
    batch: int,
    axis: int,
    samples: Samples | None,
) -> StepRecord:
    def sums(name: str, r: Tensor | Parts) -> Tensor:
        own = samples.sums(name, r, axis) if samples is not None else None
        if own is not None:
            return own
        told = graph.batch_axis(name, r.shape[1:], batch, axis) if isinstance(r, Tensor) else None
        return _per_sample(r, batch, axis if told is None else told)

    rule = rule_text(step.rule) if step.rule is not None else step.operation.carry
    into = sums(step.name, r)
    outgoing = torch.zeros_like(into)
    for name, part in zip(step.inputs, parts, strict=True):
        if part is not None:
            outgoing += sums(name, part)
    return StepRecord(number, step.node.op, step.node.path, rule, into, outgoing)


def _per_sample(r: Tensor | Parts, batch: int, axis: int) -> Tensor:
    """Sums over everything but targets and samples, `[K, batch]`.

    A value that runs over batch and time together has that of the two first that the inputs have;
    the last states of a recurrent layer have the samples on their second axis.
    """
    if isinstance(r, Parts):
        states = {index: 1 if part.ndim == 4 else 0 for index, part in r.items.items() if index}
        return torch.stack(
            [_per_sample(part, batch, states.get(i, axis)) for i, part in r.items.items()]
        ).sum(0)
    if r.ndim > axis + 1 and r.shape[axis + 1] == batch:
        others = [i for i in range(1, r.ndim) if i != axis + 1]
        return r.sum(others, dtype=torch.float64) if others else r.double()
    if axis == 1 and r.ndim > 1 and r.shape[1] % max(batch, 1) == 0:
        return r.double().reshape(r.shape[0], r.shape[1] // max(batch, 1), batch, -1).sum((1, 3))
    return r.double().reshape(r.shape[0], batch, -1).sum(2)
