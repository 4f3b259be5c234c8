"""How time and memory grow with batch, depth, image size, sequence length and K targets.

A cell is one curve: its points are variants, timed in turn.  Exponents are fitted from the records,
see `benchmarks.report`, and compared with those of the arithmetic: of the multiply-adds that the
products need and of the bytes that must be there at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import relprop
from benchmarks.cells import GRADIENT, Cell, Variant, Workload
from benchmarks.comparison import gate
from benchmarks.needed import work
from benchmarks.peers import Explain, gradient, ours, zennit
from benchmarks.subjects import LstmClassifier, Subject, cnn
from benchmarks.timing import in_turn

__all__ = ["AXES", "cells", "plain"]

Curve = Callable[[int], tuple[Subject, int]]
"""From a point on the axis to a subject and the number of targets of each sample."""

AXES: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 4, 8),
    "depth": (4, 8, 16, 32),
    "image size": (64, 96, 128, 192),
    "sequence length": (25, 50, 100, 200),
    "targets": (1, 2, 5, 10, 20),
}
"""The points of each curve."""
PEERS = "batch"
"""The axis on which peers are measured too: their best batch size is read from there."""


def cells(device: str = "cpu") -> Iterator[Cell]:
    """A curve for each axis."""
    curves: dict[str, tuple[str, Any, Curve]] = {
        "batch": ("vgg16", "epsilon_plus", lambda n: (cnn("vgg16", n, 112, device, 2), 1)),
        "depth": ("plain CNN", "epsilon_plus", lambda n: (plain(n, 4, 32, device), 1)),
        "image size": ("resnet18", "epsilon_plus", lambda n: (cnn("resnet18", 2, n, device, 2), 1)),
        "sequence length": (
            "lstm classifier",
            relprop.composites.lrp_epsilon(1e-3),
            lambda n: (_sequences(16, n, device), 1),
        ),
        "targets": ("vgg16", "epsilon_plus", lambda n: (cnn("vgg16", 1, 112, device, 2), n)),
    }
    for axis, (workload, method, curve) in curves.items():
        name = method if isinstance(method, str) else "lrp_epsilon"
        yield Cell(
            f"growth/{axis}/{workload}/{name}",
            "growth",
            {"workload": workload, "method": name, "axis": axis},
            partial(_curve, axis, AXES[axis], method, curve),
            frozenset({"full", "window"}),
            rounds=5,
            limit=20.0,
        )


def plain(depth: int, batch: int, side: int, device: str = "cpu") -> Subject:
    """A stack of equal convolutions of 64 channels, ReLU between them, and a readout."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    model: nn.Module = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    )
    model = model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    images = [torch.randn(batch, 3, side, side, device=device) for _ in range(2)]
    images = [image.contiguous(memory_format=torch.channels_last) for image in images]
    target = torch.arange(batch, device=device) % 10
    return Subject(model, [(image, target) for image in images])


def _sequences(batch: int, steps: int, device: str) -> Subject:
    torch.manual_seed(0)
    model = LstmClassifier().eval().requires_grad_(False).to(device)
    xs = [torch.randn(batch, steps, model.lstm.input_size, device=device) for _ in range(4)]
    target = torch.arange(batch, device=device) % 5
    return Subject(model, [(x, target) for x in xs])


def _curve(axis: str, points: Sequence[int], method: Any, curve: Curve) -> Workload:
    variants: list[Variant] = []
    for point in points:
        subject, targets = curve(point)
        needed = work(subject, method, targets)
        pairs = _wanted(subject, targets)
        sample = (pairs[0][0][:1], pairs[0][1][:1])
        passes = gate(subject, method, oracle="aten", sample=sample)
        column = {
            "value": point,
            "batch": subject.batch,
            "multiplications": needed.multiplications,
            "moved_bytes": needed.moved,
            "held_bytes": needed.held,
            "at_once_bytes": needed.at_once,
        }
        for library, explain in _explainers(axis, subject.model, method).items():
            variants.append(
                Variant(
                    library,
                    in_turn(lambda pair, explain=explain: explain(*pair), pairs),
                    lambda explain=explain, sample=sample: explain(*sample),
                    None if library == GRADIENT else passes,
                    subject.batch * targets,
                    measured=column,
                )
            )
    return Workload(variants)


def _explainers(axis: str, model: nn.Module, method: Any) -> dict[str, Explain]:
    found: dict[str, Explain | None] = {"relprop": ours(model, method)}
    if axis == PEERS:
        found |= {GRADIENT: gradient(model), "zennit": zennit(model, method)}
    return {library: explain for library, explain in found.items() if explain is not None}


def _wanted(subject: Subject, targets: int) -> list[tuple[Tensor, Tensor]]:
    """The batches; K targets of each sample where more than one is asked for."""
    if targets == 1:
        return list(subject.batches)
    return [
        (x, torch.arange(targets, device=x.device).expand(len(x), -1)) for x, _ in subject.batches
    ]
