"""The plans of one explainer: made at the first call of a kind, kept for the next."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from relprop import backends
from relprop.capture.cache import KEPT, captured
from relprop.capture.call import Call
from relprop.engine.gradients import GradientPlan
from relprop.engine.plan import Plan
from relprop.engine.run import Engine
from relprop.engine.selection import (
    Computes,
    Objective,
    explained_inputs,
    explained_labels,
    output_value,
    picking,
)
from relprop.errors import CaptureError
from relprop.graph import Graph
from relprop.methods import GradientMethod, Method, PropagationMethod

__all__ = ["AnyPlan", "Planner", "Prepared"]

AnyPlan = Plan | GradientPlan


class Prepared(NamedTuple):
    """What a call runs: its graph, the plan, the engine, the names of the inputs to explain."""

    graph: Graph
    plan: AnyPlan
    engine: Engine
    inputs: list[str]


class Planner:
    """From a call to the model's graph, its plan and the engine that runs it.

    Args:
        model: the module to explain.
        method: by which.
        output, inputs, backend, precision, frozen: as `Explainer` takes them, checked.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        *,
        output: int | str | Callable[[Any], Any] | None,
        inputs: Sequence[int | str] | None,
        backend: str,
        precision: str,
        frozen: bool,
    ) -> None:
        self.model, self.method = model, method
        self.output, self.inputs = output, inputs
        self.backend, self.precision, self.frozen = backend, precision, frozen
        self.objective: Objective | None = None
        self.plans: OrderedDict[Any, Prepared] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def last(self) -> AnyPlan | None:
        """The plan used last, None before the first."""
        return next(reversed(self.plans.values())).plan if self.plans else None

    def prepare(self, call: Call) -> Prepared:
        """What runs a call; what ran an earlier one where it holds.

        Raises:
            CaptureError, PlanningError, InputError: as when calling an explainer.
        """
        graph = self._graph(call)
        # the graph is held by the entry, so that its id stays its own; a recorded one serves once
        key = id(graph) if graph.origin == "export" else "recorded"
        with self._lock:
            entry = self.plans.get(key)
            if entry is None or entry.graph is not graph:
                labels = explained_labels(self.inputs, call)
                plan = self._bind(graph, call, labels)
                engine = Engine(backends.get(self.backend), self.frozen)
                entry = Prepared(graph, plan, engine, explained_inputs(graph, call, plan, labels))
                self.plans[key] = entry
                while len(self.plans) > KEPT:
                    self.plans.popitem(last=False)
            self.plans.move_to_end(key)
            return entry

    def _graph(self, call: Call) -> Graph:
        """The graph that leads to what `output` gives.

        Where that is computed from the model's outputs, or those hold what cannot be captured, the
        function `output` is captured with the model.
        """
        if self.objective is None and self.output is not None:
            try:
                graph = captured(self.model, call)
                output_value(graph, self.output, type(self.model).__name__)
                return graph
            except (Computes, CaptureError):
                self.objective = Objective(self.model, picking(self.output))
        if self.objective is not None and not self.objective.stands:
            self.objective = Objective(self.model, self.objective.function)
        return captured(self.objective or self.model, call)

    def _bind(self, graph: Graph, call: Call, explained: set[int | str] | None) -> AnyPlan:
        given = self.output if self.objective is None else None
        output = output_value(graph, given, type(self.model).__name__)
        tensors = [
            (name, leaf)
            for name, leaf, label in zip(graph.inputs, call.leaves, call.labels, strict=True)
            if isinstance(leaf, Tensor) and (explained is None or label in explained)
        ]
        floating = [name for name, leaf in tensors if leaf.is_floating_point()]
        integer = [name for name, leaf in tensors if _is_integer(leaf)]
        if isinstance(self.method, GradientMethod):
            return GradientPlan.make(graph, output, self.method, floating, integer)
        assert isinstance(self.method, PropagationMethod)
        named = (self.method.name, self.method.composite, output, self.backend, self.precision)
        key = (*named, tuple(floating), tuple(integer))
        if key not in graph.plans:  # kept with the graph: `explain` in a loop plans once
            graph.plans[key] = Plan.make(
                graph,
                output,
                self.method.composite,
                floating=floating,
                integer=integer,
                backend=self.backend,
                precision=self.precision,
                method=self.method.name,
            )
        plan: Plan = graph.plans[key]
        return plan


def _is_integer(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype is not torch.bool
