"""The products that an explanation of a whole model needs, read off its plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import relprop
from benchmarks.floor import LinearWork, LstmWork, Work, products
from benchmarks.peers import PIXELS
from benchmarks.subjects import Subject

__all__ = ["work"]


def work(subject: Subject, method: Any, targets: int = 1) -> Work:
    """The products of an explanation of a batch: those of all layers that relevance crosses."""
    # late: other versions of the library, which are timed without a floor, may lack these
    from relprop.engine.plan import Plan
    from relprop.engine.run import fixed_values
    from relprop.operations.recurrent import Recurrence
    from relprop.rules import LinearRule

    box = PIXELS if method in ("epsilon_gamma_box", "deep_taylor") else None
    x, _ = subject.batches[0]
    explainer = relprop.Explainer(
        subject.model, method, method_options=box, backend="reference", example_inputs=x
    )
    plan = explainer.plan
    assert isinstance(plan, Plan)
    values = fixed_values(plan, subject.model)
    items: list[LinearWork | LstmWork] = []
    for step in plan.steps.values():
        source = plan.graph.nodes.get(step.inputs[0])
        shape = tuple(x.shape)
        if source is not None and source.shape is not None:
            shape = (_rows(source.shape, subject, plan.graph.batch), *source.shape[1:])
        if isinstance(step.operation, Recurrence):
            layout, directions, *_ = step.operation.call(step.node, _inputs(step, x) | values)
            assert layout.layers == 1 and layout.kind == "lstm"
            w = directions[0]
            sizes = x.shape[1], subject.batch, w.w_ih.shape[1], w.w_hh.shape[1]
            items += [LstmWork(*sizes, x, targets)] * len(directions)
        elif step.operation.carry == "linear" and isinstance(step.rule, LinearRule):
            counts = products(step.rule, step.options["call"].nonnegative)
            w = values[step.node.args[1].name]
            a = _like(x, shape)
            items.append(LinearWork(step.node.attributes["map"], a, w, *counts, targets))
    return Work(items)


def _rows(shape: Sequence[int], subject: Subject, captured: int) -> int:
    """The first axis at the subject's batch size; it may hold steps and samples together."""
    return int(shape[0]) * subject.batch // captured if shape[0] % captured == 0 else int(shape[0])


def _like(x: Tensor, shape: Sequence[int]) -> Tensor:
    a = torch.rand(shape, device=x.device)
    return a.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else a


def _inputs(step: Any, x: Tensor) -> dict[str, Tensor]:
    """Something for the operands that no parameter gives; only weights are looked at."""
    return {name: x for name in step.node.refs}
