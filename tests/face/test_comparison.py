"""Several methods on one forward pass: each as by its own explainer."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from relprop import Comparison, Explainer, comparison, rules
from relprop.errors import InputError

METHODS: dict[str, Any] = {
    "gradient": "gradient",
    "sensitivity": "sensitivity",
    "guided": "guided_backprop",
    "deconvnet": "deconvnet",
    "taylor": "simple_taylor",
    "ig": "integrated_gradients",
    "epsilon": "lrp_epsilon",
    "plus": "epsilon_plus",
    "alpha_beta": rules.AlphaBeta(2, 1),
    "w_square": rules.WSquare(),
}


class Residual(nn.Module):
    """A convolution with batch norm, a ReLU in place after a residual sum, a gate, max pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.gate = nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Linear(4 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.first(x)))
        h = self.relu(h + self.second(h))
        h = h * torch.sigmoid(self.gate(h.mean((2, 3))))[:, :, None, None]
        out: Tensor = self.last(self.pool(h).flatten(1))
        return out


class Recurrent(nn.Module):
    """An LSTM, and a residual sum that nothing rectifies."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        out: Tensor = self.last(states[:, -1] + states[:, 0])
        return out


def network(make: type[nn.Module] = Residual) -> nn.Module:
    torch.manual_seed(0)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return model


def images(count: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [1, -1], ids=["forwards", "backwards"])
def test_each_method_as_by_its_own_explainer(dtype, order):
    model, x = network().to(dtype), images(dtype=dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    targets = torch.tensor([[0, 2], [1, 1], [2, 0], [0, 1], [1, 2]])
    named = dict(list(METHODS.items())[::order])
    found = Comparison(model, named)(x, target=targets)
    assert list(found) == list(named)
    for name, method in named.items():
        expected = Explainer(model, method)(x, target=targets)
        assert expected.abs().max() > 0
        torch.testing.assert_close(found[name], expected, msg=lambda text, n=name: f"{n}: {text}")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_explanations_have_outputs_and_reports():
    model, x = network(), images()
    found = Comparison(model, METHODS, layers=["second"]).explain(x, target=1)
    for name, method in METHODS.items():
        expected = Explainer(model, method, layers=["second"]).explain(x, target=1)
        torch.testing.assert_close(found[name].output, expected.output)
        torch.testing.assert_close(found[name].layers["second"], expected.layers["second"])
        torch.testing.assert_close(found[name].convergence_delta, expected.convergence_delta)
        assert len(found[name].steps) == len(expected.steps)


def test_a_recurrent_layer():
    model, x = network(Recurrent), torch.randn(4, 7, 5)
    names = ["gradient", "lrp_epsilon", "epsilon_plus"]
    found = Comparison(model, names)(x, target=[0, 1, 2, 0])
    for name in names:
        torch.testing.assert_close(found[name], Explainer(model, name)(x, target=[0, 1, 2, 0]))
    lengths = torch.tensor([7, 3, 5, 1])
    found = Comparison(model, names)(x, target=1, lengths=lengths)
    for name in names:
        expected = Explainer(model, name)(x, target=1, lengths=lengths)
        torch.testing.assert_close(found[name], expected)


class Products(TorchDispatchMode):
    """Counts the library's matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.count["product"] += 1
        return func(*args, **(kwargs or {}))


def test_one_forward_pass_for_all():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    x = torch.randn(2, 6)
    methods = ["gradient", "guided_backprop", "lrp_epsilon"]
    together = Comparison(model.eval(), methods)
    apart = [Explainer(model, name) for name in methods]
    together(x, target=0), [explainer(x, target=0) for explainer in apart]  # captured and planned
    with Products() as shared:
        together(x, target=0)
    with Products() as single:
        for explainer in apart:
            explainer(x, target=0)
    layers = 3
    assert single.count["product"] == 2 * layers * len(methods)
    assert shared.count["product"] == layers * (1 + len(methods))


@pytest.mark.parametrize("frozen", [False, True])
def test_called_again_after_the_weights_changed(frozen):
    model, x = network(), images()
    together = Comparison(model, ["gradient", "lrp_epsilon"], frozen=frozen)
    first = together(x, target=1)
    again = together(x, target=1)
    for name in first:
        assert torch.equal(first[name], again[name])
    if not frozen:
        with torch.no_grad():
            model.last.weight.mul_(2)
        torch.testing.assert_close(together(x, target=1)["gradient"], 2 * first["gradient"])


@pytest.mark.parametrize("options", [{"precision": "medium"}, {"backend": "reference"}])
def test_where_nothing_can_be_shared(options, monkeypatch):
    monkeypatch.setattr(comparison, "SharedForward", None)
    model, x = network(), images()
    found = Comparison(model, ["gradient", "lrp_epsilon"], **options)(x, target=1)
    for name, relevance in found.items():
        assert torch.equal(relevance, Explainer(model, name, **options)(x, target=1))


def test_half_precision_is_not_shared(monkeypatch):
    monkeypatch.setattr(comparison, "SharedForward", None)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval().bfloat16()
    x = torch.randn(2, 6).bfloat16()
    found = Comparison(model, ["gradient", "lrp_epsilon"])(x, target=0)
    assert torch.equal(found["lrp_epsilon"], Explainer(model, "lrp_epsilon")(x, target=0))


def test_a_batch_too_large_for_memory_is_explained_by_each_method_alone(monkeypatch):
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model, x = network(), images()
    expected = Comparison(model, METHODS)(x, target=1)
    monkeypatch.setattr(comparison, "SharedForward", full)
    found = Comparison(model, METHODS)(x, target=1)
    for name in METHODS:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([], r"methods: \[\]; expected some"),
        ("gradient", "methods: 'gradient'; expected some"),
        (["lrp_epsilom"], "Unknown composite 'lrp_epsilom'; near it: lrp_epsilon"),
    ],
)
def test_what_is_refused(methods, message):
    with pytest.raises(InputError, match=message):
        Comparison(network(), methods)


def test_bad_inputs_are_refused_as_by_an_explainer():
    together = Comparison(network(), ["gradient", "lrp_epsilon"])
    with pytest.raises(InputError, match="finite"):
        together(torch.full((2, 2, 6, 6), torch.nan), target=0)
    with pytest.raises(InputError, match="target"):
        together(images(), target=3)
    assert together(images(0), target=0)["lrp_epsilon"].shape == (0, 2, 6, 6)
