"""Whole models: CNNs under every composite, an LSTM classifier, the study's recurrent networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import relprop
from benchmarks.cells import Cell, Variant, Workload
from benchmarks.comparison import compared, gate
from benchmarks.needed import work
from benchmarks.peers import Explain, Peer, ours, peers
from benchmarks.recurrent_cpu import NumpyLoop
from benchmarks.subjects import LstmClassifier, Subject, cnn
from benchmarks.timing import in_turn, rotation

__all__ = ["COMPOSITES", "NETWORKS", "cells", "more"]

NETWORKS = ("vgg16", "resnet50", "mobilenet_v2")
COMPOSITES = (
    "lrp_epsilon",
    "epsilon_plus",
    "epsilon_alpha2_beta1",
    "lrp_gamma",
    "epsilon_plus_flat",
    "epsilon_gamma_box",
)
FIRST = ("lrp_epsilon", "epsilon_plus", "epsilon_alpha2_beta1")
"""The composites of the short suites."""
_SEVERAL = 10
"""Targets of each sample, in one call or in as many calls."""
STUDY = ("shallow", "conv_deep", "r_lstm_sd", "conv_plus_r_lstm_sd")
STUDY_METHODS: tuple[Any, ...] = ("deep_taylor", ("lrp", 1.5, 0.5))


def cells(
    device: str = "cpu",
    batch: int = 4,
    size: int = 224,
    precision: str = "highest",
    triton: bool = False,
    rounds: int = 5,
    networks: Sequence[str] = NETWORKS,
    methods: Sequence[str] = COMPOSITES,
) -> Iterator[Cell]:
    """Every CNN under every composite, then an LSTM classifier."""
    for name in networks:
        for method in methods:
            suites = {"full"}
            if name != "mobilenet_v2" and method in FIRST:
                suites |= {"window", "quick"} if method != "lrp_epsilon" else {"window"}
            yield Cell(
                f"model/{name}/{method}/b{batch}/{size}/{precision}",
                "model",
                {"workload": name, "method": method, "batch": batch, "size": f"{size} px"},
                partial(_cnn, name, method, batch, size, device, precision, triton),
                frozenset(suites),
                rounds=rounds,
                limit=20.0,
            )
    yield Cell(
        "model/lstm classifier/lrp_epsilon/b64/50",
        "model",
        {"workload": "lstm classifier", "method": "lrp_epsilon", "batch": 64, "size": "50 steps"},
        partial(_lstm, 64, 50, device),
        frozenset({"full", "window", "quick"}),
        limit=12.0,
    )


def more(device: str = "cpu", size: int = 224) -> Iterator[Cell]:
    """Several targets of a sample at once, and the study's networks."""
    yield Cell(
        f"model/vgg16/{_SEVERAL} targets/b1/{size}",
        "model",
        {"workload": "vgg16", "method": f"epsilon_plus, {_SEVERAL} targets", "batch": 1,
         "size": f"{size} px"},
        partial(_targets, 1, size, device),
        frozenset({"full", "window"}),
        rounds=3,
    )  # fmt: skip
    for name in STUDY:
        for kind in STUDY_METHODS:
            text = kind if isinstance(kind, str) else f"lrp_alpha{kind[1]:g}_beta{kind[2]:g}"
            suites = {"full", "window"} if text != "deep_taylor" else {"full"}
            yield Cell(
                f"model/study {name}/{text}/b32",
                "model",
                {"workload": f"study {name}", "method": text, "batch": 32,
                 "size": "12 steps of 28x7"},
                partial(_study, name, kind, 32, device),
                frozenset(suites),
                limit=8.0,
            )  # fmt: skip


def _cnn(
    name: str, method: str, batch: int, size: int, device: str, precision: str, triton: bool
) -> Workload:
    subject = cnn(name, batch, size, device)
    found = peers(subject.model, method, precision=precision, triton=triton)
    return compared(subject, found, method, device)


def _targets(batch: int, size: int, device: str) -> Workload:
    """K targets from one forward pass, against K calls."""
    subject = cnn("vgg16", batch, size, device, 2)
    explain = ours(subject.model, "epsilon_plus")
    wanted = torch.arange(_SEVERAL, device=device).expand(batch, -1)
    sample = (subject.sample[0], wanted[:1])

    def one_by_one(x: Tensor, target: Tensor) -> Tensor:
        return torch.stack([explain(x, column) for column in target.unbind(1)], 1)

    passes = gate(subject, "epsilon_plus", device, oracle="aten", sample=sample)
    found = {"relprop": explain, "relprop, one by one": one_by_one}
    variants = [
        Variant(
            library,
            in_turn(lambda x, call=call: call(x, wanted), [x for x, _ in subject.batches]),
            lambda call=call: call(*sample),
            passes,
            batch * _SEVERAL,
        )
        for library, call in found.items()
    ]
    return Workload(variants, partial(work, subject, "epsilon_plus", _SEVERAL), batch * _SEVERAL)


def _lstm(batch: int, steps: int, device: str) -> Workload:
    torch.manual_seed(0)
    model = LstmClassifier().eval().requires_grad_(False).to(device)
    inputs = model.lstm.input_size
    count = rotation(batch * steps * inputs * 4)
    xs = [torch.randn(batch, steps, inputs, device=device) for _ in range(count)]
    target = torch.arange(batch, device=device) % 5
    subject = Subject(model, [(x, target) for x in xs])
    method = relprop.composites.lrp_epsilon(1e-3)
    found = peers(model, method)
    if device == "cpu":
        found.append(Peer("NumPy loop", _loop(model, 1e-3), most=1))
    return compared(subject, found, method, device)


def _loop(model: LstmClassifier, epsilon: float) -> Explain:
    """The published per-step loop, its readout included, one sequence at a time."""
    loop = NumpyLoop(model.lstm, epsilon)
    w, b = (p.detach().double().numpy() for p in model.readout.parameters())

    def one(x: Any, target: int) -> Any:
        _, h, _ = loop._forward(x)
        z = w[target] @ h[-1] + b[target]
        return loop(x, h[-1] * w[target] * (z / (z + epsilon * np.where(z >= 0, 1.0, -1.0))))

    def explain(x: Tensor, target: Tensor) -> Tensor:
        pairs = zip(x.double().numpy(), target.tolist(), strict=True)
        return torch.from_numpy(np.stack([one(*pair) for pair in pairs]))

    return explain


def _study(name: str, kind: Any, batch: int, device: str) -> Workload:
    from relprop.study import networks as study

    torch.manual_seed(0)
    model = study.build(name, 12, 7).eval().requires_grad_(False).to(device)
    xs = [2 * torch.rand(batch, 1, 28, 84, device=device) - 1 for _ in range(8)]
    with torch.no_grad():
        target = model(xs[0]).argmax(1)
    subject = Subject(model, [(x, target) for x in xs])
    method = study.method(name, kind)
    return compared(subject, peers(model, method), method, device)
