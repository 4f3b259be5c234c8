"""Captum's numbers: the configurations that its wheel carries, and random networks."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.testing import assert_close

peer: Any = pytest.importorskip("captum.attr", reason="Captum is not installed")

import captum.attr._utils.lrp_rules as peer_rules  # noqa: E402
from captum.attr._utils.custom_modules import Addition_Module  # noqa: E402
from captum.testing.attr.helpers.test_config import config as configurations  # noqa: E402

import relprop.integrations.captum as ours  # noqa: E402

LRP_NAMES = ("LRP", "LayerLRP")
GRADIENT_NAMES = ("Saliency", "InputXGradient", "GuidedBackprop", "Deconvolution")

pytestmark = pytest.mark.filterwarnings("ignore")


def _detached(tree: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.detach(), tree)


def _cases(names: tuple[str, ...]) -> list[Any]:
    return [
        pytest.param(config, algorithm.__name__, id=f"{config['name']}-{algorithm.__name__}")
        for config in configurations
        for algorithm in config["algorithms"]
        if algorithm.__name__ in names
    ]


def _attribution(library: Any, config: Any, name: str, **options: Any) -> Any:
    """What a configuration of Captum's wheel gives with a library's class of that name."""
    model = config["model"].eval()
    layer = config.get("layer")
    modules = () if layer is None else (model.get_submodule(layer),)
    method = getattr(library, name)(model, *modules, **options)
    if config.get("noise_tunnel"):
        method = peer.NoiseTunnel(method)
    extra = {"return_convergence_delta": True} if name in LRP_NAMES else {}
    return _detached(method.attribute(**config["attribute_args"], **extra))


def test_the_wheel_carries_the_configurations() -> None:
    assert len(_cases(LRP_NAMES)) == 15
    assert len(_cases(GRADIENT_NAMES)) >= 48


@pytest.mark.parametrize(("config", "name"), _cases(LRP_NAMES))
def test_captums_configurations_strictly(config: Any, name: str) -> None:
    """Structure, types and numbers of Captum's own LRP and LayerLRP configurations."""
    expected = _attribution(peer, config, name)
    found = _attribution(ours, config, name, strict=True)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("config", "name"), _cases(GRADIENT_NAMES))
def test_captums_configurations_of_gradient_methods(config: Any, name: str) -> None:
    found, expected = (_attribution(library, config, name) for library in (ours, peer))
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


def _block(draw: random.Random, channels: int) -> nn.ModuleDict:
    """Convolution, activation, and perhaps batch norm, a residual sum, pooling."""
    wider, kernel = draw.randint(2, 5), draw.choice([1, 3])
    block: dict[str, nn.Module] = {
        "conv": nn.Conv2d(
            channels,
            wider,
            kernel,
            draw.choice([1, 1, 2]),
            padding=kernel // 2,
            bias=draw.random() < 0.7,
        ),
        "act": draw.choice([nn.ReLU(), nn.ReLU(inplace=True), nn.Tanh()]),
        "drop": nn.Dropout(0.3),
    }
    if draw.random() < 0.4:
        block["norm"] = norm = nn.BatchNorm2d(wider)
        norm.running_mean, norm.running_var = torch.randn(wider), torch.rand(wider) + 0.5
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    if draw.random() < 0.5:
        block |= {"skip": nn.Conv2d(wider, wider, 1), "sum": Addition_Module()}
    if draw.random() < 0.5:
        block["pool"] = draw.choice([nn.MaxPool2d(2), nn.AvgPool2d(2)])
    return nn.ModuleDict(block)


class Random(nn.Module):
    """A network of the layers that Captum has rules for; residual sums by its module."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.input_channels = channels = draw.randint(1, 3)
        self.blocks = nn.ModuleList()
        for _ in range(draw.randint(1, 2)):
            block = _block(draw, channels)
            self.blocks.append(block)
            channels = block["conv"].out_channels  # type: ignore[assignment]
        side = draw.randint(1, 2)
        self.last = nn.AdaptiveAvgPool2d(side)
        self.head = nn.Linear(channels * side**2, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            x = block["conv"](x)
            x = block["norm"](x) if "norm" in block else x
            x = block["act"](x)
            x = block["sum"](block["skip"](x), x) if "sum" in block else x
            x = block["pool"](x) if "pool" in block else x
            x = block["drop"](x)
        head: Tensor = self.head(self.last(x).flatten(1))
        return head


def _mark(net: nn.Module, seed: int, joint: bool) -> None:
    """Give some layers rules of Captum's; `joint` leaves out those next to a batch norm."""
    draw = random.Random(seed)
    normed = {
        id(block["conv"]) for block in getattr(net, "blocks", ()) if joint and "norm" in block
    }
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and id(module) not in normed:
            module.rule = draw.choice(  # type: ignore[assignment]
                [
                    peer_rules.EpsilonRule(draw.choice([1e-9, 1e-3, 0.25])),
                    peer_rules.GammaRule(draw.choice([0.1, 0.5]), draw.random() < 0.5),
                    peer_rules.Alpha1_Beta0_Rule(draw.random() < 0.5),
                    peer_rules.EpsilonRule(),
                ]
            )


@pytest.mark.parametrize("seed", range(20))
def test_random_networks(seed: int) -> None:
    """Captum's domain: both modes give its numbers, whatever the rules, and keep the rules.

    By default a batch norm is folded and max pooling has no stabilizer, so that Captum's 1e-9 at
    these is missing: a difference of 1e-9 / z, for whatever the smallest z is.
    """
    torch.manual_seed(seed)
    net = Random(seed).double().eval()
    _mark(net, seed, joint=True)
    x = torch.randn(3, net.input_channels, 11, 9, dtype=torch.float64)
    target = torch.tensor([0, 3, 1])
    expected = peer.LRP(copy.deepcopy(net)).attribute(x, target, return_convergence_delta=True)
    expected, scale = _detached(expected), expected[0].abs().max().item()
    found = ours.LRP(net, strict=True).attribute(x, target, return_convergence_delta=True)
    assert_close(found, expected, rtol=1e-12, atol=1e-14)
    found = ours.LRP(net).attribute(x, target, return_convergence_delta=True)
    assert_close(found, expected, rtol=1e-6, atol=3e-6 * scale)


@pytest.mark.parametrize("seed", range(20, 23))
def test_random_networks_with_rules_beside_batch_norms(seed: int) -> None:
    torch.manual_seed(seed)
    net = Random(seed).double().eval()
    _mark(net, seed, joint=False)
    x = torch.randn(2, net.input_channels, 11, 9, dtype=torch.float64)
    expected = peer.LRP(copy.deepcopy(net)).attribute(x, 2)
    found = ours.LRP(net, strict=True).attribute(x, 2)
    assert_close(found, expected.detach(), rtol=1e-12, atol=1e-14)


def test_the_model_is_not_touched() -> None:
    net = Random(3).eval()
    _mark(net, 3, joint=False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    attributes = [set(vars(module)) for module in net.modules()]
    rules = [getattr(module, "rule", None) for module in net.modules()]
    x = torch.randn(2, net.input_channels, 11, 9, requires_grad=True)
    ours.LRP(net, strict=True).attribute(x, 0)
    ours.LayerLRP(net, net.head).attribute(x, 0)
    assert [set(vars(module)) for module in net.modules()] == attributes
    assert [getattr(module, "rule", None) for module in net.modules()] == rules
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert x.grad is None and all(p.grad is None for p in net.parameters())
