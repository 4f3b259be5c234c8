"""Gradient methods against autograd, Captum and answers by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relprop

attr = pytest.importorskip("captum.attr")

EXACT: dict[str, float] = {"rtol": 1e-9, "atol": 1e-9}
STEPS: dict[str, float] = {"rtol": 1e-6, "atol": 1e-6}
"""Captum rounds the quadrature's weights to float32."""


def module_net() -> nn.Module:
    """Every ReLU a module, each used once: what Captum's hooks can follow."""
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 5, 3, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(5, 7),
        nn.ReLU(),
        nn.Linear(7, 4),
    )
    for norm in model:
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # maps of the order of one
    return model.double().eval()


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return module_net()


def images(batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 2, 10, 10, dtype=torch.float64, generator=generator)


TARGETS = [2, 0, 3]


def explain(model: nn.Module, x: Tensor, method: str, target: Any = None, **options: Any) -> Any:
    target = TARGETS if target is None else target
    return relprop.explain(model, x, target=target, method=method, method_options=options)


# --- Captum -------------------------------------------------------------------------------------

CAPTUM: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "gradient": lambda m, x: attr.Saliency(m).attribute(x, target=TARGETS, abs=False),
    "sensitivity": lambda m, x: attr.Saliency(m).attribute(x, target=TARGETS, abs=False) ** 2,
    "gradient_x_input": lambda m, x: attr.InputXGradient(m).attribute(x, target=TARGETS),
    "simple_taylor": lambda m, x: attr.InputXGradient(m).attribute(x, target=TARGETS),
    "guided_backprop": lambda m, x: attr.GuidedBackprop(m).attribute(x, target=TARGETS),
    "deconvnet": lambda m, x: attr.Deconvolution(m).attribute(x, target=TARGETS),
    "integrated_gradients": lambda m, x: attr.IntegratedGradients(m).attribute(x, target=TARGETS),
}


@pytest.mark.parametrize("method", CAPTUM)
@pytest.mark.filterwarnings("ignore:Setting backward hooks:UserWarning")
def test_method_agrees_with_captum(method: str, net: nn.Module) -> None:
    x = images()
    found = explain(net, x, method)
    expected = CAPTUM[method](module_net(), x.clone().requires_grad_()).detach()
    assert bool((expected.abs().amax((1, 2, 3)) > 1e-2).all())
    tolerance = STEPS if method == "integrated_gradients" else EXACT
    torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("kind", ["number", "image", "batch"])
def test_integrated_gradients_from_another_baseline(steps: int, kind: str, net: nn.Module) -> None:
    x = images()
    image = torch.linspace(-1, 1, 200, dtype=torch.float64).view(2, 10, 10)
    baseline = {"number": 0.3, "image": image, "batch": x.flip(0) / 2}[kind]
    found = explain(net, x, "integrated_gradients", steps=steps, baseline=baseline)
    full = torch.as_tensor(baseline, dtype=x.dtype).expand(x.shape)
    captum = attr.IntegratedGradients(module_net())
    theirs = captum.attribute(x, full, target=TARGETS, n_steps=steps)
    torch.testing.assert_close(found, theirs, **STEPS)
    nodes, weights = np.polynomial.legendre.leggauss(steps)  # on -1 to 1
    average = sum(
        weight / 2 * gradient_of(net, full + (1 + node) / 2 * (x - full))
        for node, weight in zip(nodes, weights, strict=True)
    )
    torch.testing.assert_close(found, (x - full) * average, **EXACT)


def test_integrated_gradients_sum_to_the_difference(net: nn.Module) -> None:
    x = images()
    found = explain(net, x, "integrated_gradients", steps=300)
    with torch.no_grad():
        difference = (net(x) - net(torch.zeros_like(x)))[range(3), TARGETS]
    torch.testing.assert_close(found.sum((1, 2, 3)), difference, rtol=0, atol=1e-2)
    assert bool((difference.abs() > 0.05).all())


# --- SmoothGrad ---------------------------------------------------------------------------------


def gradient_of(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[range(len(x)), TARGETS].sum(), leaf)
    return gradient


def test_smoothgrad_without_noise_is_the_gradient(net: nn.Module) -> None:
    x = images()
    found = explain(net, x, "smoothgrad", noise=0.0, samples=3)
    torch.testing.assert_close(found, explain(net, x, "gradient"), rtol=1e-13, atol=1e-14)


def test_smoothgrad_is_the_mean_over_its_seeded_noise(net: nn.Module) -> None:
    x = images()
    generator = torch.Generator().manual_seed(11)
    expected = torch.zeros_like(x)
    for _ in range(5):
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float32).double()
        expected += gradient_of(net, x + 0.4 * noise) / 5
    found = explain(net, x, "smoothgrad", noise=0.4, samples=5, seed=11)
    torch.testing.assert_close(found, expected, **EXACT)
    assert not torch.allclose(found, explain(net, x, "gradient"), atol=1e-3)


def test_smoothgrad_depends_on_its_seed_alone(net: nn.Module) -> None:
    x = images()
    torch.manual_seed(1)
    first = explain(net, x, "smoothgrad", samples=2, seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(explain(net, x, "smoothgrad", samples=2, seed=5), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(explain(net, x, "smoothgrad", samples=2, seed=6), first)


# --- by hand ------------------------------------------------------------------------------------


class Functional(nn.Module):
    """One functional ReLU used twice and a residual: hooks on modules would see none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 3, bias=False)
        self.b = nn.Linear(3, 3, bias=False)
        self.c = nn.Linear(3, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        return self.c(h + torch.relu(self.b(h)))


@pytest.fixture(scope="module")
def functional() -> Functional:
    model = Functional().double()
    weights = (
        [[1, -1], [2, 1], [-1, 3]],
        [[1, 0, -1], [-2, 1, 1], [0, 1, -1]],
        [[1, -2, 1], [0, 1, -1]],
    )
    with torch.no_grad():
        for layer, weight in zip((model.a, model.b, model.c), weights, strict=True):
            layer.weight.copy_(torch.tensor(weight, dtype=torch.float64))
    return model


def test_functional_relu_by_hand(functional: Functional) -> None:
    x = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    # a x = (1, 5, 1), all positive; b h = (0, 4, 4): the first ReLU of the second layer is shut.
    # target 0: dy/dk = (1, -2, 1) at the residual sum k = h + relu(b h)
    #   gradient: b^T (0, -2, 1) = (4, -1, -3); + (1, -2, 1) = (5, -3, -2); a^T = (1, -14)
    #   guided: b^T (0, 0, 1) = (0, 1, -1); + (1, -2, 1) = (1, -1, 0) -> (1, 0, 0); a^T = (1, -1)
    #   deconvnet: b^T (1, 0, 1) = (1, 1, -2); + (1, -2, 1) = (2, -1, -1) -> (2, 0, 0); (2, -2)
    for method, expected in (
        ("gradient", [1.0, -14.0]),
        ("guided_backprop", [1.0, -1.0]),
        ("deconvnet", [2.0, -2.0]),
        ("sensitivity", [1.0, 196.0]),
        ("gradient_x_input", [2.0, -14.0]),
    ):
        found = explain(functional, x, method, target=0)
        assert found.tolist() == [expected], method


def test_gradient_of_a_shut_relu_is_zero_under_guided_only(functional: Functional) -> None:
    x = torch.tensor([[-1.0, 1.0]], dtype=torch.float64)
    # a x = (-2, -1, 4) -> h = (0, 0, 4); b h = (-4, 4, -4); target 1: (0, 1, -1)
    #   gradient: b^T (0, 1, 0) = (-2, 1, 1); + (0, 1, -1) = (-2, 2, 0) -> (0, 0, 0)
    #   deconvnet: the same sum (-2, 2, 0) -> (0, 2, 0); a^T = (4, 2)
    assert explain(functional, x, "gradient", target=1).tolist() == [[0.0, 0.0]]
    assert explain(functional, x, "guided_backprop", target=1).tolist() == [[0.0, 0.0]]
    assert explain(functional, x, "deconvnet", target=1).tolist() == [[4.0, 2.0]]


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.signal = nn.Linear(3, 4)
        self.gate = nn.Linear(3, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return self.last(gate * torch.tanh(self.signal(x)) + (1 - gate) * self.signal(x))


def test_gates_are_constants_under_guided_backprop() -> None:
    model = Gated().double()
    x = torch.randn(3, 3, dtype=torch.float64)

    def reference(constant: bool) -> Tensor:
        leaf = x.clone().requires_grad_()
        gate = torch.sigmoid(model.gate(leaf))
        gate = gate.detach() if constant else gate
        signal = model.signal(leaf)
        out = model.last(gate * torch.tanh(signal) + (1 - gate) * signal)
        return torch.autograd.grad(out[:, 1].sum(), leaf)[0]

    for method, constant in (("guided_backprop", True), ("deconvnet", True), ("gradient", False)):
        torch.testing.assert_close(
            explain(model, x, method, target=1), reference(constant), **EXACT
        )
    assert not torch.allclose(reference(True), reference(False))


class Tokens(nn.Module):
    """Ids looked up twice in one table, and once in another."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.others = nn.Embedding(9, 4)
        self.layer = nn.Linear(4, 3)
        self.last = nn.Linear(3, 2)

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        x = self.words(ids) * self.others(ids).detach().sigmoid() + self.words(ids)
        return self.last(F.relu(self.layer((x * weights.unsqueeze(-1)).sum(1))))


def test_token_inputs() -> None:
    model = Tokens().double()
    ids = torch.tensor([[0, 3, 8, 3], [1, 1, 2, 5]])
    weights = torch.rand(2, 4, dtype=torch.float64)
    first, second = (model.words(ids).detach().requires_grad_() for _ in range(2))
    leaf = weights.clone().requires_grad_()
    gate = model.others(ids).detach().requires_grad_()
    x = first * gate.sigmoid() + second
    out = model.last(F.relu(model.layer((x * leaf.unsqueeze(-1)).sum(1))))[:, 1].sum()
    embedded = (first, second, gate)
    *parts, of_weights = torch.autograd.grad(out, (*embedded, leaf))
    # each look-up counts by itself: sum over the vector, then over the look-ups
    by_method = {
        "gradient": sum(g.sum(-1) for g in parts),
        "sensitivity": sum((g**2).sum(-1) for g in parts),
        "gradient_x_input": sum(
            (g * v.detach()).sum(-1) for g, v in zip(parts, embedded, strict=True)
        ),
    }
    of_float = {"gradient": of_weights, "sensitivity": of_weights**2,
                "gradient_x_input": of_weights * weights}  # fmt: skip
    for method, expected in by_method.items():
        found, other = relprop.explain(model, ids, weights, target=1, method=method)
        assert found.shape == ids.shape
        torch.testing.assert_close(found, expected, **EXACT)
        torch.testing.assert_close(other, of_float[method], **EXACT)


# --- targets, layers, starts --------------------------------------------------------------------

EVERY: dict[str, dict[str, Any]] = {
    "gradient": {},
    "sensitivity": {},
    "guided_backprop": {},
    "deconvnet": {},
    "gradient_x_input": {},
    "smoothgrad": {"samples": 2, "seed": 3},
    "integrated_gradients": {"steps": 3},
}


@pytest.mark.parametrize("method", EVERY)
def test_several_targets_are_several_explanations(method: str, net: nn.Module) -> None:
    x = images()
    targets = torch.tensor([[0, 1], [3, 3], [2, 0]])
    explainer = relprop.Explainer(net, method, method_options=EVERY[method])
    found = explainer(x, target=targets)
    assert found.shape == (3, 2, 2, 10, 10)
    for k in range(2):
        torch.testing.assert_close(found[:, k], explainer(x, target=targets[:, k]), **EXACT)
    one = explainer(x, target=targets[:, :1])
    assert one.shape == (3, 1, 2, 10, 10)


@pytest.mark.parametrize("method", ["gradient", "guided_backprop", "integrated_gradients"])
def test_samples_do_not_see_each_other(method: str, net: nn.Module) -> None:
    x = images()
    explainer = relprop.Explainer(net, method)
    whole = explainer(x, target=TARGETS)
    alone = torch.cat([explainer(x[i : i + 1], target=TARGETS[i]) for i in range(3)])
    torch.testing.assert_close(whole, alone, **EXACT)


def test_hidden_layers_by_autograd(net: nn.Module) -> None:
    x = images()
    head = nn.Sequential(*list(net)[6:])
    body = nn.Sequential(*list(net)[:6])
    hidden = body(x).detach().requires_grad_()
    (expected,) = torch.autograd.grad(head(hidden)[range(3), TARGETS].sum(), hidden)
    result = relprop.Explainer(net, "gradient", layers=["5", "1", "10"]).explain(x, target=TARGETS)
    torch.testing.assert_close(result.layers["5"], expected, **EXACT)
    assert result.layers["1"].shape == (3, 6, 10, 10)  # the batch norm, folded into the convolution
    assert result.layers["10"].tolist() == torch.eye(4)[TARGETS].tolist()
    torch.testing.assert_close(result.relevance, gradient_of(net, x), **EXACT)
    torch.testing.assert_close(result.output, net(x).detach(), **EXACT)


def test_starts_scale_the_gradient(net: nn.Module) -> None:
    x = images()
    gradient = explain(net, x, "gradient")
    output = net(x).detach()[range(3), TARGETS].view(3, 1, 1, 1)
    for start, factor in (
        ("one", torch.ones_like(output)),
        ("output", output),
        ("relu", output.relu()),
        (lambda y: y * y, output**2),
    ):
        found = relprop.explain(net, x, target=TARGETS, method="gradient", start=start)
        torch.testing.assert_close(found, factor * gradient, **EXACT)
    start = torch.randn(3, 4, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net(leaf), leaf, start)
    found = relprop.Explainer(net, "gradient")(x, start=start)
    torch.testing.assert_close(found, expected, **EXACT)


def test_convergence_delta_is_start_minus_relevance(net: nn.Module) -> None:
    x = images()
    explainer = relprop.Explainer(net, "gradient_x_input", start="output")
    relevance, delta = explainer.attribute(x, target=TARGETS, return_convergence_delta=True)
    output = net(x).detach()[range(3), TARGETS]
    torch.testing.assert_close(delta, output - relevance.sum((1, 2, 3)), **EXACT)


def test_float32_gives_float32_and_float64_gives_float64(net: nn.Module) -> None:
    x = images()
    single = module_net().float()
    for method, options in EVERY.items():
        exact = explain(net, x, method, **options)
        found = explain(single, x.float(), method, **options)
        assert exact.dtype is torch.float64 and found.dtype is torch.float32
        scale = float(exact.abs().max())
        torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-4 * scale)


def test_parameters_keep_their_gradients_and_flags() -> None:
    model, x = module_net(), images().requires_grad_()
    kept = [torch.ones_like(p) for p in model.parameters()]
    for parameter, grad in zip(model.parameters(), kept, strict=True):
        parameter.grad = grad
        parameter.requires_grad_(grad.ndim > 1)
    for method, options in EVERY.items():
        first = explain(model, x, method, **options)
        assert torch.equal(explain(model, x, method, **options), first)
        assert not first.requires_grad
    assert x.grad is None
    for parameter, grad in zip(model.parameters(), kept, strict=True):
        assert parameter.grad is grad and bool((grad == 1).all())
        assert parameter.requires_grad == (grad.ndim > 1)


@pytest.mark.filterwarnings("ignore:Setting backward hooks:UserWarning")
def test_changed_parameters_are_seen() -> None:
    model, x = module_net(), images()
    explain(model, x, "guided_backprop")
    with torch.no_grad():
        model[0].weight.neg_()  # type: ignore[index]
    fresh = attr.GuidedBackprop(model).attribute(x.clone().requires_grad_(), target=TARGETS)
    torch.testing.assert_close(explain(model, x, "guided_backprop"), fresh.detach(), **EXACT)


def test_plan_prints_what_is_differentiated(net: nn.Module) -> None:
    explainer = relprop.Explainer(net, "guided_backprop", example_inputs=images())
    text = str(explainer.plan)
    assert "guided_backprop" in text and "autograd" in text
    assert text.splitlines()[-1] == "layers: " + ", ".join(map(str, range(11)))
