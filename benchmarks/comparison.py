"""All peers on one subject, gated by the naive evaluation in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cells import GRADIENT, Variant, Workload
from benchmarks.gate import Gate, perturbed
from benchmarks.needed import work
from benchmarks.peers import Peer, ours
from benchmarks.subjects import Subject
from benchmarks.timing import in_turn

__all__ = ["compared", "gate"]


def compared(subject: Subject, found: Sequence[Peer], method: Any, device: str = "cpu") -> Workload:
    """All peers on one subject, gated by the naive evaluation in float64."""
    gates = {GRADIENT: gate(subject, GRADIENT, device), "": gate(subject, method, device)}
    variants = []
    for peer in found:
        rows = peer.most or subject.batch
        pairs = [(x[:rows], target[:rows]) for x, target in subject.batches]
        variants.append(
            Variant(
                peer.library,
                in_turn(lambda pair, explain=peer.explain: explain(*pair), pairs),
                lambda explain=peer.explain: explain(*subject.sample),
                gates[GRADIENT if peer.library.startswith(GRADIENT) else ""],
                rows,
                peer.precision,
                {"batch": rows},
            )
        )
    return Workload(variants, partial(work, subject, method), subject.batch)


def gate(
    subject: Subject,
    method: Any,
    device: str = "cpu",
    oracle: str = "reference",
    sample: tuple[Tensor, Tensor] | None = None,
) -> Gate:
    """What explanations of a sample must agree with, `method` "gradient" being autograd's.

    Args:
        subject: the model.
        method: of the explanations.
        device: "cpu" or "cuda".
        oracle: the backend that computes the truth in float64.
        sample: an input and its target or targets; the subject's own if not given.
    """
    x, target = subject.sample if sample is None else sample

    def exact(size: float = 0.0, backend: str = oracle) -> Tensor:
        model = _wide(subject.model)
        with _changed(model, size):
            if method == GRADIENT:
                leaf = x.double().requires_grad_()
                chosen = model(leaf).gather(1, target.unsqueeze(1)).sum()
                return torch.autograd.grad(chosen, leaf)[0]
            return ours(model, method, backend=backend)(x.double(), target)

    # the yardstick needs no oracle, and the naive evaluation of a whole network takes long
    return Gate(exact, partial(exact, backend="aten"), device)


@lru_cache(maxsize=1)
def _wide(model: nn.Module) -> nn.Module:
    """A copy in float64."""
    return copy.deepcopy(model).double()


@contextmanager
def _changed(model: nn.Module, size: float) -> Iterator[None]:
    """The model's parameters perturbed by a relative size for a while; its graph stays the same."""
    own = [(parameter, parameter.data) for parameter in model.parameters() if size]
    try:
        for parameter, values in own:
            parameter.data = perturbed(values, size)
        yield
    finally:
        for parameter, values in own:
            parameter.data = values
