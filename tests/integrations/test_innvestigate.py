"""iNNvestigate's analyzer names: every convention by an answer worked out by hand."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import relprop
from relprop.errors import InputError, PlanningError
from relprop.integrations import peer
from relprop.integrations.innvestigate import ANALYZERS, create_analyzer
from relprop.integrations.innvestigate.analyzers import Propagation
from relprop.integrations.innvestigate.rules import RULES

NAMES = [
    "input", "random",
    "gradient", "gradient.baseline", "input_t_gradient", "deconvnet", "guided_backprop",
    "integrated_gradients", "smoothgrad",
    "lrp", "lrp.z", "lrp.epsilon", "lrp.w_square", "lrp.flat", "lrp.alpha_beta",
    "lrp.alpha_2_beta_1", "lrp.alpha_2_beta_1_IB", "lrp.alpha_1_beta_0", "lrp.alpha_1_beta_0_IB",
    "lrp.z_plus", "lrp.z_plus_fast",
    "lrp.sequential_preset_a", "lrp.sequential_preset_b",
    "lrp.sequential_preset_a_flat", "lrp.sequential_preset_b_flat",
    "lrp.sequential_preset_b_flat_until_idx",
    "deep_taylor", "deep_taylor.bounded",
]  # fmt: skip
NEEDED: dict[str, dict[str, Any]] = {
    "lrp": {"rule": "Z"},
    "lrp.alpha_beta": {"alpha": 2},
    "deep_taylor.bounded": {"low": -1.0, "high": 1.0},
    "lrp.sequential_preset_b_flat_until_idx": {"until_layer_idx": 0},
}


def _dense(w: list[list[float]], b: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(w[0]), len(w), bias=b is not None)
    layer.weight.data = torch.tensor(w)
    if b is not None:
        layer.bias.data = torch.tensor(b)
    return layer.double()


def _analysis(name: str, model: nn.Module, x: Any, **options: Any) -> list[float]:
    found = relprop.create_analyzer(name, model, **options).analyze(np.array([x], dtype=float))
    assert isinstance(found, np.ndarray) and found.dtype == np.float64
    return [float(value) for value in found[0].ravel()]


def test_the_twenty_eight_names() -> None:
    assert list(ANALYZERS) == NAMES and len(NAMES) == 28


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    head = nn.Linear(4, 3)
    head.bias.data += 2.0  # all outputs are positive, as deep Taylor wants them
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), head,
    ).double().eval()  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_name_in_every_mode(name: str, network: nn.Module) -> None:
    x = np.random.default_rng(0).random((2, 1, 8, 8))
    options = dict(NEEDED.get(name, {}))
    if name in ("integrated_gradients", "smoothgrad"):
        options["steps" if name.startswith("i") else "augment_by_n"] = 3
    for mode in ("max_activation", "index", "all"):
        analyzer = create_analyzer(name, network, neuron_selection_mode=mode, **options)
        found = analyzer.analyze(x, neuron_selection=1 if mode == "index" else None)
        assert found.shape == x.shape and np.isfinite(found).all(), mode
        assert np.abs(found).sum() > 0, mode


X = [2.0, -1.0]
LAYER = ([[1.0, -2.0], [-3.0, 2.0]], [3.0, -1.0])
"""y = (2 + 2 + 3, -6 - 2 - 1) = (7, -9): the first output is the greatest, R = 7."""

BY_HAND: list[tuple[str, dict[str, Any], list[float]]] = [
    # the bias is part of the denominator
    ("lrp.z", {}, [2 * 7 / 7, 2 * 7 / 7]),
    ("lrp", {"rule": "Z"}, [2.0, 2.0]),
    ("lrp", {"rule": "ZIgnoreBias"}, [3.5, 3.5]),
    ("lrp", {"rule": "EpsilonIgnoreBias"}, [2 * 7 / (4 + 1e-7), 2 * 7 / (4 + 1e-7)]),
    ("lrp.epsilon", {"epsilon": 1.0}, [2 * 7 / 8, 2 * 7 / 8]),
    ("lrp.epsilon", {"epsilon": 1.0, "bias": False}, [2 * 7 / 5, 2 * 7 / 5]),
    # w^2 is (1, 4), without the bias' 9; flat halves
    ("lrp.w_square", {}, [7 / 5, 4 * 7 / 5]),
    ("lrp.flat", {}, [3.5, 3.5]),
    # all contributions are positive, 2 and 2: the activator's denominator is 4 + 3; there is no
    # inhibitor, but its denominator is the whole bias, 3, so that nothing is subtracted
    ("lrp.alpha_2_beta_1", {}, [2 * 2 * 7 / 7, 2 * 2 * 7 / 7]),
    ("lrp.alpha_2_beta_1_IB", {}, [2 * 2 * 7 / 4, 2 * 2 * 7 / 4]),
    ("lrp.alpha_1_beta_0", {}, [2.0, 2.0]),
    ("lrp.alpha_1_beta_0_IB", {}, [3.5, 3.5]),
    ("lrp.alpha_beta", {"alpha": 3}, [3 * 2.0, 3 * 2.0]),
    ("lrp.alpha_beta", {"beta": 1, "bias": False}, [7.0, 7.0]),
    ("lrp.z_plus", {}, [3.5, 3.5]),
    # max(W, 0) = (1, 0): the input's sign does not matter, the bias is left out
    ("lrp.z_plus_fast", {}, [7.0, 0.0]),
    ("deep_taylor", {}, [3.5, 3.5]),
    # 2 - (-4) * 1 = 6, (-2) * (-1) - (-2) * 4 = 10; over their sum
    ("deep_taylor.bounded", {"low": -4.0, "high": 4.0}, [6 * 7 / 16, 10 * 7 / 16]),
    ("lrp", {"rule": "Z", "input_layer_rule": (-4.0, 4.0)}, [6 * 7 / 16, 10 * 7 / 16]),
    ("lrp", {"rule": "Z", "input_layer_rule": "Flat"}, [3.5, 3.5]),
    # gradients start from 1; deconvnet and guided backpropagation from the output
    ("gradient", {}, [1.0, -2.0]),
    ("gradient.baseline", {}, [1.0, -2.0]),
    ("gradient", {"postprocess": "abs"}, [1.0, 2.0]),
    ("gradient", {"postprocess": "square"}, [1.0, 4.0]),
    ("input_t_gradient", {}, [2.0, 2.0]),
    ("deconvnet", {}, [7.0, -14.0]),
    ("guided_backprop", {}, [7.0, -14.0]),
    ("input", {}, [2.0, -1.0]),
]


@pytest.mark.parametrize(("name", "options", "expected"), BY_HAND)
def test_one_layer_by_hand(name: str, options: dict[str, Any], expected: list[float]) -> None:
    assert _analysis(name, _dense(*LAYER), X, **options) == pytest.approx(expected, abs=1e-12)


def test_alpha_beta_keeps_the_whole_bias_in_both_denominators() -> None:
    """w = (3, -1), b = 2, x = (1, 2): contributions 3 and -2, y = 3.

    relprop and Zennit: 2 * 3 * 3 / (3 + 2) and -1 * -2 * 3 / -2.  iNNvestigate divides the
    inhibitor by -2 + 2 = 0, which counts as 0 here; with b = 1, y = 2, by -2 + 1 = -1.
    """
    found = _analysis("lrp.alpha_2_beta_1", _dense([[3.0, -1.0]], [1.0]), [1.0, 2.0])
    assert found == pytest.approx([2 * 3 * 2 / 4, 2 * 2 / (-2 + 1)])
    found = _analysis("lrp.alpha_2_beta_1", _dense([[3.0, -1.0]], [2.0]), [1.0, 2.0])
    assert found == pytest.approx([2 * 3 * 3 / 5, 0.0])
    ours = relprop.explain(
        _dense([[3.0, -1.0]], [1.0]),
        torch.tensor([[1.0, 2.0]]).double(),
        target=0,
        method="lrp_alpha2_beta1",
        method_options={"stabilizer": 0.0},
    )
    assert isinstance(ours, torch.Tensor)
    assert ours[0].tolist() == pytest.approx([2 * 3 * 2 / 4, 2 * 2 / -2])


def test_deep_taylor_starts_from_relu_of_the_output() -> None:
    """The greatest output is negative: nothing to explain."""
    layer = _dense([[1.0, -2.0], [-3.0, 2.0]], [-9.0, -1.0])
    assert _analysis("deep_taylor", layer, X) == [0.0, 0.0]
    assert _analysis("deep_taylor.bounded", layer, X, low=-2, high=2) == [0.0, 0.0]
    assert _analysis("lrp.z_plus", layer, X) == pytest.approx([2 * -5 / 4, 2 * -5 / 4])


class Deep(nn.Module):
    """One-pixel convolutions, then a dense layer: conv (1, -1) and 2, dense (1, -1), bias 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 1, 1, bias=True)
        self.first.weight.data = torch.tensor([[[[1.0]], [[-1.0]]]])
        self.first.bias.data = torch.tensor([2.0])
        self.second = nn.Conv2d(1, 2, 1, bias=False)
        self.second.weight.data = torch.tensor([[[[2.0]]], [[[1.0]]]])
        self.dense = _dense([[1.0, -1.0]], [1.0])
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(self.second(self.first(x).relu()).relu().flatten(1))  # type: ignore[no-any-return]


IMAGE = [[[3.0]], [[1.0]]]
"""first = 3 - 1 + 2 = 4; second = (8, 4); y = 8 - 4 + 1 = 5."""

TOP = [8 * 5 / 5.1, -4 * 5 / 5.1]
"""The dense layer has Epsilon(0.1) with its bias in every preset."""


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # all of TOP reaches `first`; there alpha1 beta0 divides 3 by 3 + 2, the bias being whole
        ("lrp.sequential_preset_a", {}, [3 * sum(TOP) / 5, 0.0]),
        # second: positive contributions alone, times 2.  first: 2 * 3 / 5, and -1 over -1 + 2
        (
            "lrp.sequential_preset_b", {},
            [2 * 3 * 2 * sum(TOP) / 5, 2 * sum(TOP) / (-1 + 2)],
        ),
        ("lrp.sequential_preset_a_flat", {}, [sum(TOP) / 2, sum(TOP) / 2]),
        ("lrp.sequential_preset_b_flat", {}, [2 * sum(TOP) / 2, 2 * sum(TOP) / 2]),
        ("lrp.sequential_preset_b_flat_until_idx", {}, [sum(TOP), sum(TOP)]),
        ("lrp.sequential_preset_b_flat_until_idx", {"until_layer_idx": 0}, [sum(TOP), sum(TOP)]),
        (
            "lrp.sequential_preset_b_flat_until_idx", {"until_layer_idx": 1},
            [sum(TOP) / 2, sum(TOP) / 2],
        ),
        ("lrp.sequential_preset_b_flat_until_idx", {"until_layer_idx": 2}, [2.5, 2.5]),
        ("lrp", {"rule": ["Flat", "Z", "Epsilon"]}, [0.5 * 4 * 5 / 5, 0.5 * 4 * 5 / 5]),
        ("lrp", {"rule": [("conv", "Flat"), ("linear", "Z")]}, [2.0, 2.0]),
        ("lrp", {"rule": [("first", "WSquare"), ("conv", "Z"), ("linear", "Z")]}, [2.0, 2.0]),
    ],
)  # fmt: skip
def test_presets_by_hand(name: str, options: dict[str, Any], expected: list[float]) -> None:
    assert _analysis(name, Deep(), IMAGE, **options) == pytest.approx(expected, abs=1e-6)


def test_sums_and_average_pooling_have_no_stabilizer() -> None:
    """x + 2 x: shares 1/3 and 2/3 of 6 for x = 2; a mean over (1, 3): by value."""
    pooled = nn.Sequential(nn.AvgPool1d(2), nn.Flatten(), _dense([[5.0]])).double()
    assert _analysis("lrp.z", pooled, [[1.0, 3.0]]) == pytest.approx([2.5, 7.5], abs=1e-12)


def test_integrated_gradients_are_a_left_sum() -> None:
    """y = relu(x - 1) at x = 2 from 0: the gradient is 1 beyond one half.

    Four steps look at 0, 1/2, 1, 3/2; only the last is beyond: 2 * 1/4.  From 1: all but the
    first, which is at the kink, (2 - 1) * 3/4.
    """
    net = nn.Sequential(_dense([[1.0]], [-1.0]), nn.ReLU())
    assert _analysis("integrated_gradients", net, [2.0], steps=4) == pytest.approx([0.5])
    found = _analysis("integrated_gradients", net, [2.0], steps=4, reference_inputs=1.0)
    assert found == pytest.approx([0.75])
    for reference in (np.zeros((3, 2)), [0, 0], "zero"):
        with pytest.raises(
            InputError, match=r"reference_inputs: .*\[1, 1\], or one for each input"
        ):
            _analysis("integrated_gradients", net, [2.0], reference_inputs=reference)


def test_smoothgrad_averages_over_noise() -> None:
    """A linear layer's gradient is the same everywhere; a ReLU's depends on the noise."""
    assert _analysis("smoothgrad", _dense(*LAYER), X, augment_by_n=5) == pytest.approx([1, -2])
    net = nn.Sequential(_dense([[1.0]]), nn.ReLU())
    torch.manual_seed(0)
    found = _analysis("smoothgrad", net, [1.0], augment_by_n=400)
    assert found[0] == pytest.approx(0.8413, abs=0.05)  # P(1 + noise > 0)
    assert _analysis("smoothgrad", net, [1.0], augment_by_n=7, noise_scale=0.01) == pytest.approx(
        [1]
    )


def test_random_is_the_input_with_noise() -> None:
    layer = _dense(*LAYER)
    x = np.zeros((1000, 2))
    torch.manual_seed(0)
    found = create_analyzer("random", layer, stddev=2.0).analyze(x)
    assert abs(found.mean()) < 0.2 and found.std() == pytest.approx(2.0, abs=0.2)


def test_neuron_selection() -> None:
    """Index 1 of `LAYER` is -9 = -6 - 2 - 1; all outputs together are the sum of both."""
    layer, x = _dense(*LAYER), np.array([X, X])
    index = create_analyzer("lrp.z", layer, neuron_selection_mode="index")
    second = [-6.0, -2.0]
    np.testing.assert_allclose(index.analyze(x, 1), [second, second])
    np.testing.assert_allclose(index.analyze(x, neuron_selection=[0, 1]), [[2.0, 2.0], second])
    everything = create_analyzer("lrp.z", layer, neuron_selection_mode="all").analyze(x)
    np.testing.assert_allclose(everything, [[-4.0, 0.0], [-4.0, 0.0]])
    everything = create_analyzer("gradient", layer, neuron_selection_mode="all").analyze(x)
    np.testing.assert_allclose(everything, [[-2.0, 0.0], [-2.0, 0.0]])
    everything = create_analyzer("deep_taylor", layer, neuron_selection_mode="all").analyze(x)
    np.testing.assert_allclose(everything, [[3.5, 3.5], [3.5, 3.5]])
    for selection in (2, -1, [0, 1, 1], "1", 1.0, True, [[0, 1], [1, 0]]):
        with pytest.raises(InputError, match="neuron_selection"):
            index.analyze(x, selection)
    with pytest.raises(InputError, match="missing in neuron_selection_mode 'index'"):
        index.analyze(x)
    with pytest.raises(InputError, match="only in the mode 'index'"):
        create_analyzer("lrp.z", layer).analyze(x, 1)


def test_neuron_selection_counts_along_flattened_outputs() -> None:
    net = nn.Sequential(_dense([[1.0], [2.0], [3.0], [4.0]]), nn.Unflatten(1, (2, 2)))
    index = create_analyzer("gradient", net, neuron_selection_mode="index")
    assert index.analyze(np.array([[1.0]]), 2).item() == 3.0
    greatest = create_analyzer("gradient", net).analyze(np.array([[1.0], [-1.0]]))
    np.testing.assert_allclose(greatest, [[4.0], [1.0]])


class Two(nn.Module):
    """Two inputs."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x + y).sum(1, keepdim=True)


def test_types_of_inputs() -> None:
    layer = _dense(*LAYER)
    tensor = create_analyzer("lrp.z", layer).analyze(torch.tensor([X]))
    assert isinstance(tensor, torch.Tensor) and tensor.dtype is torch.float64
    x, y = np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]])
    for name, factor in (("lrp.z", 1.0), ("input_t_gradient", 1.0), ("integrated_gradients", 1.0)):
        found = create_analyzer(name, Two().double()).analyze([x, y])
        assert isinstance(found, list)
        np.testing.assert_allclose(found[0], factor * x, rtol=1e-6)
        np.testing.assert_allclose(found[1], factor * y, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lrp.y", {}, "no analyzer is called 'lrp.y'; near it: lrp"),
        ("lrp.z", {"gamma": 1}, "unknown option 'gamma'; expected input_layer_rule"),
        ("lrp", {}, "rule is None"),
        ("lrp", {"rule": "Gamma"}, "rule: 'Gamma'"),
        ("lrp.alpha_beta", {}, "neither alpha nor beta"),
        ("lrp.alpha_beta", {"alpha": 2, "beta": 2}, "alpha - beta is 0"),
        ("lrp.alpha_beta", {"alpha": 0.5}, "alpha"),
        ("lrp.epsilon", {"epsilon": 0}, "epsilon is 0"),
        ("lrp.epsilon", {"epsilon": "small"}, "epsilon is 'small'"),
        ("lrp.alpha_beta", {"alpha": "2"}, "alpha is '2'; expected a number"),
        ("lrp.z", {"input_layer_rule": (0, 1, 2)}, "bounds: .*too many values"),
        ("deep_taylor.bounded", {"low": 0}, "low or high is missing"),
        ("deep_taylor.bounded", {"low": 1, "high": 0}, "bounds: .*low exceeds high"),
        ("deep_taylor.bounded", {"low": "a", "high": 0}, "bounds: "),
        ("random", {"stddev": -1}, "stddev: -1; expected a number >= 0"),
        ("smoothgrad", {"noise_scale": "1"}, "noise_scale: '1'"),
        (
            "lrp.sequential_preset_b_flat_until_idx",
            {"until_layer_idx": "2"},
            "until_layer_idx: '2'; expected a whole number",
        ),
        ("gradient", {"postprocess": "cube"}, "postprocess: 'cube'"),
        ("smoothgrad", {"augment_by_n": 0}, "whole number"),
        ("lrp.z", {"neuron_selection_mode": "best"}, "neuron_selection_mode: 'best'"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_analyzer(name, _dense(*LAYER), **options)


def test_models_that_are_refused() -> None:
    """As in iNNvestigate: a softmax at the end, and other activations where ReLU is assumed."""
    soft = nn.Sequential(_dense(*LAYER), nn.Softmax(1))
    with pytest.raises(InputError, match="'1' is a softmax"):
        create_analyzer("lrp.z", soft)
    create_analyzer("input", soft)
    create_analyzer("gradient", soft, disable_model_checks=True).analyze(np.array([X]))
    bent = nn.Sequential(_dense(*LAYER), nn.Tanh())
    for name in ("deep_taylor", "deconvnet", "guided_backprop"):
        with pytest.raises(InputError, match="'1' is Tanh"):
            create_analyzer(name, bent)
        create_analyzer(name, bent, disable_model_checks=True)
    create_analyzer("lrp.z", bent)


def test_the_composite_can_be_refined() -> None:
    """`with_rule` keeps the rules in order; a rule given in order stays above it."""
    work = create_analyzer("lrp", Deep(), rule=["Flat", "Z", "Epsilon"]).work
    assert isinstance(work, Propagation)
    composite = work.method.composite
    refined = composite.with_rule("second", RULES["Flat"])
    assert refined != composite and refined.in_order == composite.in_order
    assert hash(composite.with_rule("second", RULES["Flat"])) == hash(refined)


def test_as_many_rules_as_layers() -> None:
    with pytest.raises(PlanningError, match="2 rules for 3 linear layers"):
        _analysis("lrp", Deep(), IMAGE, rule=["Z", "Z"])


def test_no_peer_is_imported() -> None:
    """Neither by relprop nor by what needs no peer."""
    code = (
        "import sys, numpy, torch, relprop\n"
        "import relprop.integrations, relprop.integrations.quantus\n"
        "a = relprop.create_analyzer('lrp.z', torch.nn.Linear(2, 1))\n"
        "a.analyze(numpy.ones((1, 2)))\n"
        "found = {'captum', 'zennit', 'quantus', 'innvestigate'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_missing_peer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "captum"]:
        monkeypatch.delitem(sys.modules, name)
    for name in [n for n in sys.modules if n.startswith("relprop.integrations.captum")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "captum", None)
    # an earlier import has left the sub-module there as an attribute
    monkeypatch.delitem(vars(relprop.integrations), "captum", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'relprop\[captum\]'"):
        _ = relprop.integrations.captum
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        peer("nowhere.module", "zennit")
    with pytest.raises(AttributeError):
        _ = relprop.integrations.shap
