"""Composites named as Zennit's give Zennit's numbers on whole networks, in float64.

Zennit merges batch norm by its canonizer and takes residual sums through its Sum module; relprop
gets the very same model, without canonizers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import relprop

zennit_composites = pytest.importorskip("zennit.composites", reason="Zennit is not installed")
from zennit.attribution import Gradient  # noqa: E402
from zennit.canonizers import SequentialMergeBatchNorm  # noqa: E402
from zennit.layer import Sum  # noqa: E402

LOW, HIGH = -4.0, 4.5


def _bounds(x: Tensor) -> dict[str, Tensor]:
    return {"low": torch.full_like(x[:1], LOW), "high": torch.full_like(x[:1], HIGH)}


COMPOSITES = {
    "epsilon_plus": "EpsilonPlus",
    "epsilon_plus_flat": "EpsilonPlusFlat",
    "epsilon_alpha2_beta1": "EpsilonAlpha2Beta1",
    "epsilon_alpha2_beta1_flat": "EpsilonAlpha2Beta1Flat",
    "epsilon_gamma_box": "EpsilonGammaBox",
    "excitation_backprop": "ExcitationBackprop",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "stabilizer": {"stabilizer": 1e-3},
    "bias": {"zero_params": "bias"},
}


class Residual(nn.Module):
    """Two convolutions beside the identity, or beside a strided one."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.side: nn.Module | None = None
        if stride > 1:
            side = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.side = nn.Sequential(side, nn.BatchNorm2d(outputs))
        self.sum, self.last = Sum(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu(self.first_norm(self.first(x)))
        inner = self.second_norm(self.second(inner))
        side = x if self.side is None else self.side(x)
        return self.last(self.sum(torch.stack([side, inner], -1)))


def vgg_like() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Dropout(),
        nn.Linear(16, 5),
    )  # fmt: skip


def resnet_like() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 2, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1), Residual(8, 8, 1), Residual(8, 12, 2),
        nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {"vgg": vgg_like, "resnet": resnet_like}


def _model(name: str) -> nn.Module:
    model = MODELS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Zennit merges a norm but leaves its eps: what is left scales by 1 / sqrt(1 + eps)
            module.eps = 0.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.double().eval()


@pytest.fixture(scope="module", params=MODELS)
def model_and_input(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """A network, captured once for all composites, and signed images."""
    torch.manual_seed(1)
    return _model(request.param), torch.randn(2, 3, 16, 16).double()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ours", COMPOSITES)
def test_composites(ours: str, model_and_input: Any) -> None:
    model, x = model_and_input
    target = torch.tensor([1, 4])
    start = 10 * nn.functional.one_hot(target, 5).double()
    for options in OPTIONS.values():
        peer_options: dict[str, Any] = dict(options)
        own_options: dict[str, Any] = dict(options)
        if ours == "epsilon_gamma_box":
            peer_options.update(_bounds(x))
            own_options.update(low=LOW, high=HIGH)
        if "zero_params" in peer_options:
            peer_options["zero_params"] = [peer_options["zero_params"]]
        composite = getattr(zennit_composites, COMPOSITES[ours])(
            canonizers=[SequentialMergeBatchNorm()], **peer_options
        )
        with Gradient(model=model, composite=composite) as attributor:
            _, expected = attributor(x, start)
        for backend in ("aten", "reference"):
            found = relprop.explain(
                model, x, target=target, method=ours, method_options=own_options,
                backend=backend, start=lambda output: 10 * torch.ones_like(output),
            )  # fmt: skip
            assert expected.abs().sum() > 1
            assert_close(found, expected, rtol=1e-9, atol=1e-8)


@pytest.mark.filterwarnings("ignore")
def test_epsilon_of_the_dense_layers() -> None:
    """Zennit's `epsilon` is the stabilizer of the Epsilon rule alone."""
    model, x = _model("vgg"), torch.randn(2, 3, 16, 16).double()
    composite = zennit_composites.EpsilonPlus(
        epsilon=0.05, stabilizer=1e-4, canonizers=[SequentialMergeBatchNorm()]
    )
    start = model(x).detach() * nn.functional.one_hot(torch.tensor([2, 2]), 5)
    with Gradient(model=model, composite=composite) as attributor:
        _, expected = attributor(x, start)
    found = relprop.explain(
        model, x, target=2, method="epsilon_plus",
        method_options={"epsilon": 0.05, "stabilizer": 1e-4},
    )  # fmt: skip
    assert_close(found, expected, rtol=1e-9, atol=1e-8)
