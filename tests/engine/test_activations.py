"""Activations by every name: all relevance goes on, and ReLUs are guided, however written."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import relprop
from relprop import backends, rules
from relprop.capture.call import neutral_modes
from relprop.capture.export import capture_by_export
from relprop.capture.record import record
from relprop.composites import Composite, uniform
from relprop.engine import run
from relprop.engine.plan import Plan
from relprop.graph import Graph
from relprop.graph.canonical import canonical

Scalar = Callable[[Tensor], Tensor]

SIGNED = torch.tensor([[-2.3], [-0.4], [0.01], [0.7], [4.1]], dtype=torch.float64)
POSITIVE = torch.tensor([[0.003], [0.4], [0.75], [2.5], [7.1]], dtype=torch.float64)

NOT_ELEMENTWISE = {"MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "LogSoftmax", "GLU"}
MODULES: dict[str, Scalar] = {
    name: getattr(nn, name)(*{"Threshold": (0.1, 20.0)}.get(name, ())).double().eval()
    for name in torch.nn.modules.activation.__all__
    if name not in NOT_ELEMENTWISE
}
"""Every activation of torch.nn that is a function of one number."""

ZERO = torch.zeros(())
RELUS: dict[str, Scalar] = {
    "clamp": lambda x: x.clamp(min=0),
    "clamp_min": lambda x: x.clamp_min(0.0),
    "clip": lambda x: torch.clip(x, 0),
    "clamp of a tensor": lambda x: torch.clamp(x, min=ZERO.double()),
    "hardtanh": lambda x: F.hardtanh(x, 0.0, math.inf),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "maximum, turned": lambda x: torch.maximum(x.new_zeros(x.shape), x),
    "max": lambda x: torch.max(x, ZERO.double()),
    "minimum": lambda x: -torch.minimum(-x, torch.zeros_like(x)),
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "leaky": lambda x: F.leaky_relu(x, 0.0),
    "where": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "where a number": lambda x: torch.where(x >= 0, x, 0.0),
    "where, turned": lambda x: torch.where(x <= 0, 0.0, x),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "mask": lambda x: x * (x > 0),
    "mask of numbers": lambda x: (x > 0).to(x.dtype) * x,
    "mask by name": lambda x: x * x.gt(0).double(),
    "heaviside": lambda x: x * torch.heaviside(x, torch.ones_like(x)),
    "half a sum": lambda x: (x + x.abs()) / 2,
    "difference": lambda x: x - x.clamp(max=0),
    "in place": lambda x: x.clone().relu_(),
    "assigned": lambda x: assigned(x),
    "elu": lambda x: F.elu(x, 0.0),
    "rrelu": lambda x: F.rrelu(x, 0.0, 0.0),
    "two masks": lambda x: x * ((x > 0) & (x > -1)),
}
"""max(x, 0)."""

OTHERS: dict[str, Scalar] = {
    "clamped at 0 and 1": lambda x: x.clamp(0, 1),
    "clamped at a little": lambda x: x.clamp(min=1e-3),
    "above a little": lambda x: x * (x > 1e-3),
    "leaky": lambda x: F.leaky_relu(x, 0.01),
    "leaky by where": lambda x: torch.where(x > 0, x, 0.2 * x),
    "sharp softplus": lambda x: F.softplus(x, beta=100.0),
    "shifted softplus": lambda x: F.softplus(x) - math.log(2.0),
    "shifted softplus, turned": lambda x: -math.log(2.0) + F.softplus(x),
    "half a softplus": lambda x: torch.log(0.5 * x.exp() + 0.5),
    "softplus": lambda x: torch.log1p(torch.exp(x)),
    "tanh by sigmoid": lambda x: 2 * torch.sigmoid(2 * x) - 1,
    "tanh by exp": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
    "LeCun's tanh": lambda x: 1.7159 * torch.tanh(2 / 3 * x),
    "hard sigmoid": lambda x: F.relu6(x + 3) / 6,
    "hard swish": lambda x: x * F.relu6(x + 3) / 6,
    "silu": lambda x: x * torch.sigmoid(x),
    "silu by exp": lambda x: x / (1 + torch.exp(-x)),
    "swish": lambda x: x * torch.sigmoid(1.5 * x),
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2.0))),
    "gelu of GPT-2": lambda x: 0.5 * x * (1 + torch.tanh(0.79788456 * (x + 0.044715 * x**3))),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "softshrink": lambda x: torch.sign(x) * F.relu(x.abs() - 0.5),
    "where in where": lambda x: torch.where(x > 0.5, x - 0.5, torch.where(x < 0, x + 0.5, 0.0)),
    "hardshrink": lambda x: x * (x.abs() > 0.5),
    "tanhshrink": lambda x: x - torch.tanh(x),
    "softsign": lambda x: x / (1 + x.abs()),
    "elu": lambda x: torch.where(x > 0, x, torch.exp(x) - 1),
    "celu": lambda x: x.clamp(min=0) + (torch.exp(x / 1.3) - 1).clamp(max=0) * 1.3,
    "selu": lambda x: 1.0507 * torch.where(x > 0, x, 1.67326 * torch.expm1(x)),
    "squared relu": lambda x: F.relu(x) ** 2,
    "square": lambda x: x * x,
    "squared in place": lambda x: x.clone().tanh_().pow_(2),
    "cube": lambda x: x**3,
    "abs": lambda x: x.abs(),
    "sine": lambda x: torch.sin(30 * x),
    "snake": lambda x: x + torch.sin(x) ** 2,
    "gaussian": lambda x: torch.exp(-(x**2)),
    "smooth relu": lambda x: (x + torch.sqrt(x * x + 4)) / 2,
    "inverse square root unit": lambda x: x / torch.sqrt(1 + x**2),
    "symmetric logarithm": lambda x: torch.sign(x) * torch.log1p(x.abs()),
    "arctangent": lambda x: torch.atan(x) / math.pi + 0.5,
    "quotient of polynomials": lambda x: (1 + x + x**2) / (1 + (2 * x).abs()),
}  # fmt: skip
"""Other activations written by hand."""

ABOVE_ZERO: dict[str, Scalar] = {
    "root": torch.sqrt,
    "logarithm": lambda x: torch.log(x + 1e-6),
    "log1p": torch.log1p,
    "power": lambda x: x**0.3,
    "reciprocal": lambda x: 1 / (x + 0.1),
    "power of a number": lambda x: 2.0**x,
}
"""Those for numbers above 0."""


def assigned(x: Tensor) -> Tensor:
    x = x.clone()
    x[x < 0] = 0
    return x


class Side(nn.Module):
    """Functions of one number side by side: `[N, 1]` to `[N, functions]`."""

    def __init__(self, *functions: Scalar) -> None:
        super().__init__()
        self.functions = functions
        self.held = nn.ModuleList(f for f in functions if isinstance(f, nn.Module))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([function(x) for function in self.functions], 1)


def captured(model: nn.Module, x: Tensor, how: str) -> Graph:
    with neutral_modes():
        if how == "recorded":
            return canonical(record(model, (x,), {}, 0))
        return canonical(capture_by_export(model, (x,), {}, 0))


def relevance(model: nn.Module, x: Tensor, how: str, start: Tensor, **options: Tensor) -> Tensor:
    """Relevance of x, `[K, N, 1]`, from that of the output, `[K, N, functions]`."""
    graph = captured(model, x, how)
    plan = Plan.make(graph, graph.output_names[0], Composite(), floating=graph.inputs)
    engine = run.Engine(backends.get("aten"))
    with neutral_modes():
        forward = run.forward(plan, engine, model, {graph.inputs[0]: x})
        assert_close(forward.output, model(x), rtol=1e-12, atol=1e-14)
        return run.relevance(plan, engine, forward, start, graph.inputs)[graph.inputs[0]]


def test_the_table_holds_every_activation_of_torch() -> None:
    assert len(MODULES) + len(NOT_ELEMENTWISE) == len(torch.nn.modules.activation.__all__)
    assert len(RELUS) + len(OTHERS) + len(ABOVE_ZERO) >= 40


@pytest.mark.parametrize("how", ["exported", "recorded"])
@pytest.mark.parametrize(
    ("table", "points"),
    [(MODULES, SIGNED), (RELUS, SIGNED), (OTHERS, SIGNED), (ABOVE_ZERO, POSITIVE)],
    ids=["modules", "relus", "others", "above zero"],
)
def test_all_relevance_goes_on(table: dict[str, Scalar], points: Tensor, how: str) -> None:
    model = Side(*table.values())
    r = torch.randn(len(table), len(points), dtype=torch.float64)
    start = torch.zeros(len(table), len(points), len(table), dtype=torch.float64)
    for k in range(len(table)):
        start[k, :, k] = r[k]
    found = relevance(model, points, how, start).squeeze(2)
    for name, got, expected in zip(table, found, r, strict=True):
        assert_close(got, expected, rtol=1e-12, atol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("how", ["exported", "recorded"])
def test_relus_are_named_and_nothing_else_is(how: str) -> None:
    for table, count in ((RELUS, len(RELUS)), (OTHERS, 0)):
        for name, function in table.items() if how == "recorded" else [("all", None)]:
            model = Side(function) if function is not None else Side(*table.values())
            graph = captured(model, SIGNED, how)
            named = sum(node.op == "relu" for node in graph.nodes.values())
            written = {"softshrink": 1, "squared relu": 1, "celu": 1}
            inner = written.get(name, 0) if how == "recorded" else 3 * (table is OTHERS)
            assert named == (count if how == "exported" else min(count, 1)) + inner, name


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet"])
def test_every_relu_is_guided(method: str) -> None:
    model = Side(*RELUS.values(), *(lambda x, f=f: -f(x) for f in RELUS.values()))
    count = len(RELUS)
    targets = torch.arange(2 * count).expand(len(SIGNED), -1)
    found = relprop.explain(model, SIGNED, target=targets, method=method).squeeze(2)
    passed = (SIGNED > 0).double() if method == "guided_backprop" else torch.ones_like(SIGNED)
    assert_close(found[:, :count], passed.expand(-1, count), rtol=0, atol=0)
    assert_close(found[:, count:], torch.zeros(len(SIGNED), count).double(), rtol=0, atol=0)


def test_a_network_in_which_nothing_is_guided_warns() -> None:
    x = torch.randn(3, 4)
    for act, words in ((nn.GELU(), "nothing is guided"), (nn.LeakyReLU(0.1), "no ReLU lies")):
        with pytest.warns(UserWarning, match=words):
            relprop.explain(nn.Sequential(nn.Linear(4, 2), act), x, target=0, method="deconvnet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        relprop.explain(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), x, target=0, method="deconvnet")


def test_what_stays_a_sum() -> None:
    """A constant beside a signal takes its share, and so do two signals."""

    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            s = F.softplus(x)
            return torch.cat([x + 1.0, 3 * x - 0.5, s - 0.5, s], 1)  # s has another reader

    for how in ("exported", "recorded"):
        start = torch.eye(4, dtype=torch.float64)[:, None].expand(4, 5, 4)
        found = relevance(Sums(), SIGNED, how, start).squeeze(2)
        s, x = F.softplus(SIGNED).squeeze(1), SIGNED.squeeze(1)
        expected = [x / (x + 1), 3 * x / (3 * x - 0.5), s / (s - 0.5), torch.ones(5).double()]
        assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_a_module_in_an_activation_is_reached() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.gate = nn.Softplus(), nn.Sigmoid()

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x) - math.log(2.0)
            return y * self.gate(y)

    model = nn.Sequential(nn.Linear(3, 4), Shifted(), nn.Linear(4, 2)).double()
    layers = ["0", "1", "1.inner"]
    explainer = relprop.Explainer(model, uniform(rules.Epsilon(1e-9)), layers=layers)
    found = explainer.explain(torch.randn(2, 3).double(), target=1).layers
    for name in layers:
        assert_close(found[name], found["1"], rtol=1e-12, atol=0)
