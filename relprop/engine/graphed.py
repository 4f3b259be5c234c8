"""Explanations of inputs of one shape, replayed as CUDA graphs: launching them costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from relprop.capture.call import Call, check_inputs, neutral_modes
from relprop.engine import run
from relprop.engine.plan import Plan
from relprop.engine.planner import Planner
from relprop.engine.targets import resolve_target, seed, squeeze_targets
from relprop.errors import InputError

__all__ = ["GraphedExplainer"]


class Recorded(Protocol):
    """Work that has been recorded: what it computed, and how to compute it again in place."""

    value: Any

    def replay(self) -> None:
        """Compute `value` again."""
        ...


class CudaRecorded:
    """Work on CUDA tensors that stay where they are, in one graph.

    Args:
        work: what to record; run twice before, so that kernels are compiled and chosen.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.value = work()

    def replay(self) -> None:
        """Compute `value` again."""
        self._graph.replay()


class GraphedExplainer:
    """A frozen model explained for one tensor of one shape.

    Args:
        planner: of a frozen model, by a propagation method.
        x: an input like those to come, on a CUDA device.
        target: a target like those to come: as many a sample.
        start, nan_policy, batch_dim: as `Explainer` takes them.
        record: what records the work.

    Raises:
        InputError: the planner's model is not frozen, its method differentiates, or the input is
            not on CUDA.
    """

    def __init__(
        self,
        planner: Planner,
        x: Tensor,
        target: Any,
        *,
        start: Any = None,
        nan_policy: str = "raise",
        batch_dim: int = 0,
        record: Callable[[Callable[[], Any]], Recorded] = CudaRecorded,
    ) -> None:
        if not planner.frozen:
            raise InputError("GraphedExplainer: the planner follows its weights; give it frozen")
        if record is CudaRecorded and not x.is_cuda:
            raise InputError(f"GraphedExplainer: x is on {x.device}; expected a CUDA device")
        self.x, self.nan_policy, self.batch_dim = x.detach().clone(), nan_policy, batch_dim
        self.start = planner.method.start if start is None else start
        with neutral_modes(self.x):
            graph, plan, engine, _ = planner.prepare(self._call(self.x))
            if engine is None or not isinstance(plan, Plan):
                raise InputError(
                    f"GraphedExplainer: {planner.method.name} differentiates; expected a method "
                    "that propagates relevance"
                )
            self.plan, own, name = plan, engine, graph.inputs[0]
            model = planner.model
            self._forward = record(lambda: run.forward(plan, own, model, {name: self.x}))
            self.seeds = self._seeds(target)[1]

            def relevance() -> Tensor:
                passed = self._forward.value
                kept = run.Forward(passed.output, dict(passed.saved), passed.shapes)
                return run.relevance(plan, own, kept, self.seeds, [name])[name]

            self._relevance = record(relevance)

    def _call(self, x: Tensor) -> Call:
        return Call.of((x,), None, self.batch_dim)

    def _seeds(self, target: Any) -> tuple[Any, Tensor]:
        output, graph = self._forward.value.output, self.plan.graph
        batch, axis = self._call(self.x).batch, self.batch_dim
        own = graph.batch_axis(self.plan.output, output.shape, batch, axis) or 0
        resolved = resolve_target(target, output.shape, batch, own)
        return resolved, seed(resolved, output, self.start)

    def __call__(self, x: Tensor, target: Any) -> Tensor:
        """Relevance of the input, as `Explainer.__call__` gives it.

        Raises:
            InputError: the input or the number of targets is another than the recorded ones.
        """
        kind, expected = ((tuple(t.shape), t.dtype, t.device) for t in (x, self.x))
        if kind != expected:
            raise InputError(f"GraphedExplainer: x is {kind}; recorded was {expected}")
        with neutral_modes(self.x):
            check_inputs(self._call(x), self.nan_policy)
            self.x.copy_(x)
            self._forward.replay()
            resolved, seeds = self._seeds(target)
            if seeds.shape != self.seeds.shape:
                raise InputError(
                    f"GraphedExplainer: {len(seeds)} targets a sample; recorded were "
                    f"{len(self.seeds)}"
                )
            self.seeds.copy_(seeds)
            self._relevance.replay()
            found = self._relevance.value.clone(memory_format=torch.contiguous_format)
            return squeeze_targets(found, resolved, self.batch_dim)
