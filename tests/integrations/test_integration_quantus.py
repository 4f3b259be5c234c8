"""Quantus' calling form: NumPy in and out, reductions, its metrics, one plan for all calls."""

from __future__ import annotations

import copy
import warnings
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from closeness import same_numbers
from torch import nn

import relprop
from relprop.engine.plan import Plan
from relprop.errors import InputError, PlanningError
from relprop.integrations.quantus import explain

pytestmark = pytest.mark.filterwarnings("ignore")


def _net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 4 * 4, 3),
    ).eval()


@pytest.fixture(scope="module")
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return _net()


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images as Quantus passes them, and the predicted classes."""
    draw = np.random.default_rng(0)
    return draw.random((5, 2, 8, 8)), np.array([0, 1, 2, 1, 0])


def _relevance(net: nn.Module, x: Any, y: Any, method: Any, **options: Any) -> np.ndarray[Any, Any]:
    found = relprop.explain(
        net, torch.as_tensor(x).float(), target=list(y), method=method, **options
    )
    assert isinstance(found, torch.Tensor)
    return found.numpy()


def test_numbers_are_the_explainers(net: nn.Module, batch: Any) -> None:
    x, y = batch
    plain = _relevance(net, x, y, "epsilon_plus")
    found = explain(net, x, y, reduce_axes=())
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    np.testing.assert_array_equal(found, plain)
    box = {"low": 0.0, "high": 1.0}
    found = explain(net, x, y, method="epsilon_gamma_box", method_options=box, reduce_axes=())
    expected = _relevance(net, x, y, "epsilon_gamma_box", method_options=box)
    np.testing.assert_array_equal(found, expected)


def test_reductions(net: nn.Module, batch: Any) -> None:
    x, y = batch
    whole = explain(net, x, y, reduce_axes=())
    assert whole.shape == (5, 2, 8, 8)
    np.testing.assert_allclose(explain(net, x, y), whole.sum(1, keepdims=True), rtol=1e-6)
    assert explain(net, x, y).shape == (5, 1, 8, 8)
    assert explain(net, x, y, keepdims=False).shape == (5, 8, 8)
    found = explain(net, x, y, reduce_axes=[-1, 1], keepdims=True)
    assert found.shape == (5, 1, 8, 1)
    np.testing.assert_allclose(found, whole.sum((1, 3), keepdims=True), rtol=1e-5, atol=1e-6)
    for axes in ((0,), (1, 1), (4,), (-4,), (-5,), 1, "1", (1.0,)):
        with pytest.raises(InputError, match="reduce_axes"):
            explain(net, x, y, reduce_axes=axes)


def test_rows_are_not_reduced() -> None:
    """As in Quantus: inputs of two axes keep both.  W = [[1, 2]], x = (3, 4): (3, 8)."""
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0]])
    found = explain(layer, np.array([[3.0, 4.0]]), 0, method="lrp_zero")
    np.testing.assert_allclose(found, [[3.0, 8.0]])


def test_channels_last(net: nn.Module, batch: Any) -> None:
    x, y = batch
    last = np.moveaxis(x, 1, -1)
    found = explain(net, last, y, channel_first=False, reduce_axes=())
    same_numbers(np.moveaxis(found, -1, 1), explain(net, x, y, reduce_axes=()))
    summed = explain(net, last, y, channel_first=False)
    same_numbers(summed, found.sum(-1, keepdims=True))


def test_quantus_names_of_methods(net: nn.Module, batch: Any) -> None:
    x, y = batch
    gradient = _relevance(net, x, y, "gradient")
    whole: dict[str, Any] = {"reduce_axes": ()}
    np.testing.assert_array_equal(explain(net, x, y, method="Gradient", **whole), gradient)
    np.testing.assert_array_equal(explain(net, x, y, method="Saliency", **whole), abs(gradient))
    found = explain(net, x, y, method="InputXGradient", **whole)
    np.testing.assert_allclose(found, gradient * x, rtol=1e-5, atol=1e-7)
    found = explain(net, x, y, method="LRP", **whole)
    expected = _relevance(net, x, y, relprop.rules.Epsilon(1e-9))
    np.testing.assert_array_equal(found, expected)
    # one of Zennit's composites starts from 1, not from the output
    found = explain(net, x, y, xai_lib="zennit", composite="epsilon_plus", **whole)
    np.testing.assert_array_equal(found, _relevance(net, x, y, "epsilon_plus", start="one"))


def test_targets_and_types(net: nn.Sequential, batch: Any) -> None:
    x, y = batch
    one = explain(net, x[:1], 2)
    np.testing.assert_array_equal(one, explain(net, x[:1], np.array([2])))
    np.testing.assert_array_equal(one, explain(net, torch.tensor(x[:1]), np.array([2.0])))
    wide = copy.deepcopy(net).double()
    assert explain(wide, x, y).dtype == np.float64
    with pytest.raises(InputError, match="target"):
        explain(net, x, np.array([0, 1, 2, 1, 3]))
    by_row = explain(net, x, y[:, None])
    np.testing.assert_array_equal(by_row, explain(net, x, list(y)))
    for targets in (np.eye(3)[y], y[:2], np.eye(5), None, "0", ["0"] * 5, [[0]] * 4):
        with pytest.raises(InputError, match="targets: "):
            explain(net, x, targets)
    for targets in (0.5, [0.0, 1.5, 0.0, 0.0, 0.0], [True] * 5, np.array([0, np.nan, 1, 1, 1])):
        with pytest.raises(InputError, match=r"targets: .* expected whole numbers"):
            explain(net, x, targets)


def test_arrays_of_any_make(net: nn.Module, batch: Any) -> None:
    """Images of bytes, reversed and read-only views, lists; the array is not written into."""
    x, y = batch
    pixels = (255 * x).astype(np.uint8)
    found = explain(net, pixels, y)
    same_numbers(found, explain(net, pixels.astype(np.float32), y))
    turned = explain(net, x[..., ::-1], y)
    same_numbers(turned, explain(net, x[..., ::-1].copy(), y))
    same = np.broadcast_to(x[:1], x.shape)
    same_numbers(explain(net, same, 1)[4], explain(net, x[:1], 1)[0])
    same_numbers(explain(net, x.tolist(), y), explain(net, x, y))
    with pytest.raises(InputError, match="inputs: object of ndarray; expected numbers"):
        explain(net, x.astype(object), y)


def test_arguments_that_have_no_meaning(net: nn.Module, batch: Any) -> None:
    x, y = batch
    with pytest.raises(InputError, match="canonizer has no meaning"):
        explain(net, x, y, canonizer=object)
    with pytest.raises(InputError, match="unknown argument colour"):
        explain(net, x, y, colour="red")
    with pytest.raises(InputError, match="composite: 3; expected the name or the class"):
        explain(net, x, y, xai_lib="zennit", composite=3)
    with pytest.raises(InputError, match="model: int"):
        explain(3, x, y)  # type: ignore[arg-type]
    explain(net, x, y, softmax=False)
    with pytest.raises(InputError, match="returns logits"):
        explain(net, x, y, softmax=True)
    with pytest.raises(InputError, match="ends in a softmax"):
        explain(nn.Sequential(net, nn.Softmax(1)), x, y, softmax=False)


def test_training_mode_comes_back(batch: Any) -> None:
    """Quantus leaves the model in eval mode; here it is as it was."""
    x, y = batch
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten())
    net[0].eval()
    modes = [module.training for module in net.modules()]
    with pytest.raises(PlanningError, match="training mode"):
        relprop.explain(net, torch.as_tensor(x).float(), target=0)
    explain(net, x, y)
    assert [module.training for module in net.modules()] == modes == [True, False, True, True, True]


def test_one_plan_for_all_calls(batch: Any) -> None:
    """Two hundred calls with other images, batch sizes and parameters: one capture, one plan."""
    x, y = batch
    net = _net()
    with (
        mock.patch("relprop.capture.cache.capture_by_export", wraps=_capture()) as captures,
        mock.patch.object(Plan, "make", wraps=Plan.make) as plans,
    ):
        for call in range(200):
            count = 1 + call % 5
            with torch.no_grad():
                net[0].weight += 0.001
            found = explain(net, x[:count] + call, y[:count])
    assert captures.call_count == 1 and plans.call_count == 1
    np.testing.assert_allclose(found, explain(copy.deepcopy(net), x + 199, y), rtol=1e-5, atol=1e-5)


def _capture() -> Any:
    from relprop.capture.export import capture_by_export

    return capture_by_export


def test_a_model_is_let_go(batch: Any) -> None:
    """Nothing here keeps a model alive."""
    import gc
    import weakref

    net = _net()
    explain(net, *batch)
    kept = weakref.ref(net)
    del net
    gc.collect()
    assert kept() is None


@pytest.fixture(scope="module")
def quantus() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("quantus", reason="Quantus is not installed")


def _scores(quantus: Any, metric: Any, net: nn.Module, batch: Any, **options: Any) -> Any:
    x, y = batch
    return metric(
        model=net,
        x_batch=x.astype(np.float32),
        y_batch=y,
        a_batch=None,
        explain_func=explain,
        explain_func_kwargs={"method": "epsilon_plus", "reduce_axes": ()},
        device="cpu",
        **options,
    )


def test_faithfulness_correlation(quantus: Any, net: nn.Module, batch: Any) -> None:
    metric = quantus.FaithfulnessCorrelation(
        nr_runs=20, subset_size=8, perturb_baseline="black", return_aggregate=False,
        disable_warnings=True,
    )  # fmt: skip
    scores = _scores(quantus, metric, net, batch)
    assert len(scores) == 5 and all(-1 <= score <= 1 for score in scores)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(128, 3, bias=False)).eval()
    exact = _scores(quantus, metric, linear, batch)
    # removing pixels of a linear model takes exactly their relevance away
    np.testing.assert_allclose(exact, np.ones(5), atol=1e-3)


def test_pixel_flipping(quantus: Any, net: nn.Module, batch: Any) -> None:
    metric = quantus.PixelFlipping(
        features_in_step=16, perturb_baseline="black", disable_warnings=True
    )
    curves = _scores(quantus, metric, net, batch)
    assert np.shape(curves) == (5, 8)  # 128 values in steps of 16


def test_max_sensitivity(quantus: Any, net: nn.Module, batch: Any) -> None:
    metric = quantus.MaxSensitivity(nr_samples=7, lower_bound=0.01, disable_warnings=True)
    _scores(quantus, metric, net, batch, batch_size=5)
    with mock.patch.object(Plan, "make", wraps=Plan.make) as plans:
        scores = _scores(quantus, metric, net, batch, batch_size=5)
    assert plans.call_count == 0  # planned by the calls before
    assert len(scores) == 5 and all(0 < score < 10 for score in scores)


def test_model_parameter_randomisation(quantus: Any, net: nn.Module, batch: Any) -> None:
    metric = quantus.MPRT(
        similarity_func=quantus.similarity_func.correlation_spearman, disable_warnings=True
    )
    before = copy.deepcopy(net.state_dict())
    scores = _scores(quantus, metric, net, batch)
    assert set(scores) >= {"0", "4"}
    assert all(-1 <= s <= 1 for layer in scores.values() for s in layer)
    assert any(abs(s) < 0.99 for s in scores["4"])  # other parameters, other explanations
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_same_as_quantus_own(quantus: Any, net: nn.Module, batch: Any) -> None:
    """Its `explain` through Captum and Zennit, where those are installed, gives these maps."""
    pytest.importorskip("captum", reason="Captum is not installed")
    x, y = batch
    x = x.astype(np.float32)
    for method in ("Gradient", "Saliency", "InputXGradient", "Deconvolution"):
        expected = quantus.explain(net, x, y, method=method)
        np.testing.assert_allclose(
            explain(net, x, y, method=method), expected.reshape(5, 1, 8, 8), rtol=1e-4, atol=1e-5
        )
    layered = nn.Sequential(net[0], net[1], net[2], _Flat(net[4]))  # type: ignore[index]
    expected = quantus.explain(copy.deepcopy(layered), x, y, method="LRP")
    np.testing.assert_allclose(
        explain(layered, x, y, method="LRP"), expected.reshape(5, 1, 8, 8), rtol=1e-3, atol=1e-4
    )
    pytest.importorskip("zennit", reason="Zennit is not installed")
    from zennit.composites import EpsilonPlus

    for composite in ("epsilon_plus", EpsilonPlus):
        options: dict[str, Any] = {"xai_lib": "zennit", "composite": composite}
        expected = quantus.explain(net, x, y, **options, device="cpu")
        np.testing.assert_allclose(explain(net, x, y, **options), expected, rtol=1e-4, atol=1e-5)


def test_the_benchmark_compares_before_it_times() -> None:
    from benchmarks.quantus import METHODS, measured

    scores = {
        (method, library): [0.25, 0.75]
        for method in METHODS
        for library in ("relprop", "Quantus' own")
    }
    runs = {key: (lambda found=found: found) for key, found in scores.items()}
    rows = measured(runs, 44, 3)
    assert [(row["method"], row["library"]) for row in rows] == list(scores)
    assert {row["score"] for row in rows} == {"0.50000"}
    assert [row["times as fast"] for row in rows][1::2] == ["1.00"] * len(METHODS)
    runs[next(iter(METHODS)), "relprop"] = lambda: [0.25, 0.78]
    with pytest.raises(AssertionError, match=r"LRP-epsilon \(Captum's LRP\)"):
        measured(runs, 44, 3)


class _Flat(nn.Module):
    """A dense layer on flattened images: Captum has no rule for nn.Flatten."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1))  # type: ignore[no-any-return]
