"""Launches and bytes of whole plans at production size, counted without running a kernel."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from benchmarks.traffic import Launch, recorded
from relprop import backends, methods
from relprop.capture.export import capture_by_export
from relprop.engine import run
from relprop.engine.plan import Plan
from relprop.graph import Graph
from relprop.graph.canonical import canonical

WIDTHS = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]
"""Channels of VGG-16's convolutions; 0 is a pooling."""
BATCH = 64
FLOAT = 4
CLASSES = 1000


def vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width in WIDTHS:
        if width == 0:
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
    head = [nn.Linear(512 * 49, 4096), nn.ReLU(True), nn.Dropout()]
    head += [nn.Linear(4096, 4096), nn.ReLU(True), nn.Dropout(), nn.Linear(4096, CLASSES)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *head).eval()


@pytest.fixture(scope="module")
def captured() -> tuple[nn.Module, Tensor, Graph]:
    with torch.device("meta"):
        model, x = vgg16(), torch.empty(BATCH, 3, 224, 224)
    return model, x, canonical(capture_by_export(model, (x[:2],), {}, 0))


def launches_of(model: nn.Module, x: Tensor, graph: Graph, method: str) -> list[Launch]:
    """Those of one explanation of each sample."""
    chosen = methods.resolve(method, None)
    assert isinstance(chosen, methods.PropagationMethod)
    plan = Plan.make(
        graph, graph.output_names[0], chosen.composite, floating=graph.inputs, backend="triton"
    )
    engine = run.Engine(backends.get("triton"))
    with recorded(run=False) as found:
        passed = run.forward(plan, engine, model, {graph.inputs[0]: x})
        start = torch.empty(1, *passed.output.shape, device="meta")
        relevance = run.relevance(plan, engine, passed, start, graph.inputs)
    assert relevance[graph.inputs[0]].shape == (1, *x.shape)
    return found


class Layer(NamedTuple):
    """Numbers in a layer's tensors, and whether a max pooling follows."""

    inputs: int
    weights: int
    bias: int
    outputs: int
    pooled: bool


def layers_of_vgg16() -> list[Layer]:
    found, channels, size = [], 3, 224
    for number, width in enumerate(WIDTHS):
        if width == 0:
            size //= 2
            continue
        pixels = BATCH * size * size
        pooled = WIDTHS[number + 1] == 0
        weights = 9 * channels * width
        found.append(Layer(pixels * channels, weights, width, pixels * width, pooled))
        channels = width
    for ins, outs in [(512 * 49, 4096), (4096, 4096), (4096, CLASSES)]:
        found.append(Layer(BATCH * ins, ins * outs, outs, BATCH * outs, False))
    return found


PARTS = {
    # method: weights written, read forward, read back; denominators beside the output; quotients
    "lrp_epsilon": (0, 1, 1, 0, 1),
    "lrp_zplus": (2, 2, 1, 1, 1),
    "lrp_alpha2_beta1": (2, 2, 2, 2, 2),
}
Captured = tuple[nn.Module, Tensor, Graph]


@pytest.mark.parametrize("method", PARTS)
def test_vgg16_launches_once_a_layer_and_direction(method: str, captured: Captured) -> None:
    count = Counter(launch.kernel for launch in launches_of(*captured, method))
    written = {"modified_weights": 16} if PARTS[method][0] else {}
    assert count == written | {
        "conv_contraction": 13,
        "dense_contraction": 3,
        "max_pool_kernel": 5,
        "average_pool_kernel": 1,
        "quotient": 1,
        "dense_adjoint": 3,
        "conv_adjoint": 13,
        "max_pool_adjoint": 5,
        "average_pool_adjoint": 1,
    }


@pytest.mark.parametrize("method", PARTS)
def test_vgg16_moves_what_its_layers_hold(method: str, captured: Captured) -> None:
    made, forward, back, saved, quotients = PARTS[method]
    layers = layers_of_vgg16()
    numbers = 0
    for number, layer in enumerate(layers):
        a, w, y = layer.inputs, layer.weights, layer.outputs
        numbers += (1 + made) * w if made else 0
        numbers += a + forward * w + layer.bias + (1 + saved) * y
        # signed pixels take both parts of the weight back
        signed = number == 0 and method != "lrp_epsilon"
        numbers += quotients * y + (2 if signed else back) * w + a
        if number and not layers[number - 1].pooled:
            # the quotients of the layer below; under epsilon its denominator is the input
            numbers += (0 if method == "lrp_epsilon" else quotients * a) + quotients * a
        else:
            numbers += a
        if layer.pooled:
            numbers += y + 2 * y // 4  # the maxima and their positions
            numbers += 2 * y // 4 + 2 * quotients * y
    mean = layers[12].outputs // 4
    numbers += 2 * mean + 4 * mean
    numbers += BATCH * CLASSES * (1 + 2 * quotients)
    found = launches_of(*captured, method)
    assert sum(launch.reads + launch.writes for launch in found) == FLOAT * numbers
