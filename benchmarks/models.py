"""Whole models: CNNs under every composite, an LSTM classifier, the study's recurrent networks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import relprop
from benchmarks.cells import GRADIENT, Cell, Variant, Workload
from benchmarks.floor import LinearWork, LstmWork, Work, products
from benchmarks.gate import Gate, perturbed
from benchmarks.layers import rotation
from benchmarks.peers import PIXELS, Explain, Peer, network, ours, peers
from benchmarks.recurrent_cpu import NumpyLoop
from benchmarks.timing import in_turn

__all__ = [
    "COMPOSITES",
    "NETWORKS",
    "LstmClassifier",
    "Subject",
    "cells",
    "cnn",
    "compared",
    "gate",
    "more",
    "work",
]

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


@dataclass(frozen=True)
class Subject:
    """A model and batches to explain.

    Attributes:
        model: in eval mode, without gradients.
        batches: different inputs, with a target for each sample.
    """

    model: nn.Module
    batches: Sequence[tuple[Tensor, Tensor]]

    @property
    def batch(self) -> int:
        """Samples of a batch."""
        return len(self.batches[0][0])

    @property
    def sample(self) -> tuple[Tensor, Tensor]:
        """What the gate looks at."""
        x, target = self.batches[0]
        return x[:1], target[:1]


class LstmClassifier(nn.Module):
    """One LSTM layer over `[batch, T, inputs]`, and its last state's linear readout."""

    def __init__(self, inputs: int = 128, hidden: int = 256, classes: int = 5) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, batch_first=True)
        self.readout = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, T, inputs]` to `[batch, classes]`."""
        result: Tensor = self.readout(self.lstm(x)[0][:, -1])
        return result


def cnn(name: str, batch: int, size: int, device: str = "cpu", count: int = 0) -> Subject:
    """A torchvision network and different random images in channels_last."""
    model = _network(name, device)
    torch.manual_seed(1)
    count = count or rotation(batch * 3 * size * size * 4) // 8 + 1
    images = [torch.randn(batch, 3, size, size) for _ in range(count)]
    images = [i.to(device, memory_format=torch.channels_last) for i in images]
    with torch.no_grad():
        target = model(images[0]).argmax(1)
    return Subject(model, [(image, target) for image in images])


@lru_cache(maxsize=1)
def _network(name: str, device: str) -> nn.Module:
    """Cells of one network follow each other: it is made, and captured, once for all of them."""
    return network(name).to(device)


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
                gates.get(peer.library, gates[""]),
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


def work(subject: Subject, method: Any, targets: int = 1) -> Work:
    """The products of an explanation of a batch: those of all layers that relevance crosses."""
    # late: other versions of the library, which are timed without a floor, may lack these
    from relprop.layers.recurrent import Recurrence
    from relprop.plan import Plan
    from relprop.rules import LinearRule
    from relprop.run import fixed_values

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
    from relprop.models import study

    torch.manual_seed(0)
    model = study.build(name, 12, 7).eval().requires_grad_(False).to(device)
    xs = [2 * torch.rand(batch, 1, 28, 84, device=device) - 1 for _ in range(8)]
    with torch.no_grad():
        target = model(xs[0]).argmax(1)
    subject = Subject(model, [(x, target) for x in xs])
    method = study.method(name, kind)
    return compared(subject, peers(model, method), method, device)
