"""Single LSTM layers under the recurrent rule.

Everybody computes the layer's output and the relevance of its input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cells import GRADIENT, Cell, Variant, Workload
from benchmarks.floor import LstmWork, Work
from benchmarks.gate import Gate, perturbed
from benchmarks.peers import backward
from benchmarks.recurrent_cpu import NumpyLoop
from benchmarks.timing import in_turn, rotation
from relprop import rules
from relprop.functional import lstm_relevance

__all__ = ["LSTMS", "cells"]

LSTMS = ((128, 128, 50), (256, 256, 50), (512, 512, 100))
"""Inputs, hidden units, steps."""


def cells(device: str = "cpu") -> Iterator[Cell]:
    """Every LSTM layer."""
    for inputs, hidden, steps in LSTMS:
        suites = {"full", "window"} | ({"quick"} if hidden == 256 else set())
        yield Cell(
            f"layer/lstm {inputs}-{hidden}/Recurrent/t{steps}",
            "layer",
            {"workload": f"lstm {inputs}-{hidden}", "method": "Recurrent", "batch": 64,
             "size": f"{steps} steps"},
            partial(_lstm, inputs, hidden, steps, 64, device),
            frozenset(suites),
            limit=12.0,
        )  # fmt: skip


def _lstm(inputs: int, hidden: int, steps: int, batch: int, device: str) -> Workload:
    torch.manual_seed(0)
    layer = nn.LSTM(inputs, hidden).requires_grad_(False).to(device)
    weights = [w.detach() for w in layer.parameters()]
    count = rotation(steps * batch * inputs * 4)
    xs = [torch.randn(steps, batch, inputs, device=device) for _ in range(count)]
    r = torch.zeros(steps, batch, hidden, device=device)
    r[-1] = layer(xs[0])[0][-1]
    rule = rules.Recurrent(epsilon=1e-3)
    sample = (xs[0][:, :1], r[:, :1])

    def explain(x: Tensor, r: Tensor, backend: str = "aten") -> Tensor:
        found = lstm_relevance(x, weights, r, rule=rule, backend=backend)
        assert isinstance(found, Tensor)
        return found

    def exact(size: float = 0.0) -> Tensor:
        x, given = (t.double() for t in sample)
        wide = [perturbed(w.double(), size) if size else w.double() for w in weights]
        found = lstm_relevance(x, wide, given, rule=rule, backend="reference")
        assert isinstance(found, Tensor)
        return found

    def exact_gradient(size: float = 0.0) -> Tensor:
        wide = nn.LSTM(inputs, hidden).double().to(device)
        for own, w in zip(wide.parameters(), weights, strict=True):
            own.data = perturbed(w.double(), size) if size else w.double()
        x = sample[0].double().requires_grad_()
        return torch.autograd.grad(wide(x)[0], x, sample[1].double())[0]

    def variant(library: str, call: Any, gate: Gate, rows: int = batch) -> Variant:
        inputs_ = [(x[:, :rows], r[:, :rows]) for x in xs]
        return Variant(
            library, in_turn(lambda pair: call(*pair), inputs_), lambda: call(*sample), gate, rows
        )

    gate = Gate(exact, exact, device)
    loop = _numpy(layer.cpu() if device == "cpu" else None, rule.epsilon)
    variants = [
        variant(
            GRADIENT, backward(lambda x: layer(x)[0]), Gate(exact_gradient, exact_gradient, device)
        ),
        variant("relprop", explain, gate),
        *([variant("NumPy loop", loop, gate, 1)] if loop is not None else []),
        variant("naive reference", partial(explain, backend="reference"), gate, 1),
    ]
    items = [LstmWork(steps, batch, inputs, hidden, xs[0])]
    return Workload(variants, lambda: Work(items), batch)


def _numpy(layer: nn.LSTM | None, epsilon: float) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The published per-step loop, one sequence at a time."""
    if layer is None:
        return None
    loop = NumpyLoop(layer, epsilon)

    def explain(x: Tensor, r: Tensor) -> Tensor:
        columns: Sequence[int] = range(x.shape[1])
        found = [loop(x[:, i].double().numpy(), r[-1, i].double().numpy()) for i in columns]
        return torch.stack([torch.from_numpy(part) for part in found], 1)

    return explain
