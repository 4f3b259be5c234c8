"""Single layers: each rule on layers of VGG-16, ResNet-50 and MobileNet-v2.

Inputs are non-negative, as behind a ReLU, but for the layers that see pixels.  Everybody computes
the layer's output and the relevance of its input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cells import GRADIENT, Cell, Variant, Workload
from benchmarks.floor import LinearWork, Work, products
from benchmarks.gate import Gate, perturbed
from benchmarks.peers import backward, zennit_rule
from benchmarks.timing import in_turn, rotation
from relprop import backends, rules
from relprop.backends import LinearCall
from relprop.backends.reference import linear as reference
from relprop.graph.maps import Conv, Dense, LinearMap

__all__ = ["LAYERS", "RULES", "LayerShape", "cells"]

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LayerShape:
    """A layer as a network has it.

    Attributes:
        name: network and layer.
        channels: in, out.
        image: side of its input; 0 for a dense layer.
        kernel, stride, groups: of a convolution, padded to keep its side.
        pixels: whether it sees signed pixels.
        quick: whether it belongs to the short suites.
    """

    name: str
    channels: tuple[int, int]
    image: int = 0
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    pixels: bool = False
    quick: bool = False

    def map(self) -> LinearMap:
        """Its geometry."""
        if not self.image:
            return Dense()
        pad, both = self.kernel // 2, (self.stride,) * 2
        return Conv(both, ((pad, pad), (pad, pad)), (1, 1), self.groups)

    def module(self, dtype: torch.dtype) -> nn.Module:
        """The layer with seeded random weights, without gradients."""
        torch.manual_seed(0)
        layer: nn.Module
        if self.image:
            pad = self.kernel // 2
            layer = nn.Conv2d(*self.channels, self.kernel, self.stride, pad, groups=self.groups)
        else:
            layer = nn.Linear(*self.channels)
        form = torch.channels_last if self.image else torch.preserve_format
        layer = layer.to(dtype=dtype, memory_format=form)
        return layer.requires_grad_(False)

    def inputs(self, batch: int, count: int) -> list[Tensor]:
        """Different inputs."""
        torch.manual_seed(1)
        sides = (self.image, self.image) if self.image else ()
        x = torch.randn(batch, self.channels[0], *sides)
        x = x if self.pixels else x.relu_()
        if self.image:
            x = x.contiguous(memory_format=torch.channels_last)
        return [x, *(x.flip(1) * (1 + n / count) for n in range(1, count))]


LAYERS = (
    LayerShape("vgg16 conv1_1", (3, 64), 224, 3, pixels=True),
    LayerShape("vgg16 conv1_2", (64, 64), 224, 3),
    LayerShape("vgg16 conv3_2", (256, 256), 56, 3, quick=True),
    LayerShape("vgg16 conv5_1", (512, 512), 14, 3),
    LayerShape("vgg16 fc6", (25088, 4096)),
    LayerShape("vgg16 fc7", (4096, 4096), quick=True),
    LayerShape("resnet50 conv1", (3, 64), 224, 7, 2, pixels=True),
    LayerShape("resnet50 layer1 1x1", (64, 256), 56, quick=True),
    LayerShape("resnet50 layer2 3x3", (128, 128), 28, 3),
    LayerShape("resnet50 layer3 shortcut", (512, 1024), 28, 1, 2),
    LayerShape("resnet50 layer4 3x3", (512, 512), 7, 3),
    LayerShape("mobilenet_v2 depthwise", (144, 144), 56, 3, groups=144, quick=True),
    LayerShape("mobilenet_v2 depthwise /2", (144, 144), 56, 3, 2, groups=144),
    LayerShape("mobilenet_v2 pointwise", (144, 24), 56),
    LayerShape("mobilenet_v2 last", (320, 1280), 7),
)
RULES: dict[str, rules.LinearRule] = {
    "Epsilon": rules.Epsilon(),
    "ZPlus": rules.ZPlus(),
    "AlphaBeta": rules.AlphaBeta(),
    "Gamma": rules.Gamma(),
    "ZBox": rules.ZBox(-6.0, 6.0),
    "WSquare": rules.WSquare(),
    "Flat": rules.Flat(),
}
QUICK_RULES = ("Epsilon", "ZPlus", "AlphaBeta", "Gamma")


def cells(device: str = "cpu", batch: int = 4, triton: bool = False) -> Iterator[Cell]:
    """Every layer under every rule."""
    for shape in LAYERS:
        for name, rule in RULES.items():
            if shape.pixels == (name not in ("ZBox", "WSquare", "Flat")):
                continue  # pixel rules belong to the layers that see pixels, and no others
            suites = {"full"} | ({"quick", "window"} if shape.quick else set())
            suites |= {"window"} if shape.pixels and name == "ZBox" else set()
            rows = batch if shape.image else 16 * batch
            yield Cell(
                f"layer/{shape.name}/{name}/b{rows}",
                "layer",
                {"workload": shape.name, "method": name, "batch": rows, "size": _size(shape)},
                partial(_linear, shape, rule, rows, device, triton),
                frozenset(suites),
                limit=4.0,
            )


def _size(shape: LayerShape) -> str:
    if not shape.image:
        return f"{shape.channels[0]}-{shape.channels[1]}"
    grouped = f" /{shape.groups} groups" if shape.groups > 1 else ""
    return f"{shape.channels[0]}-{shape.channels[1]}, {shape.kernel}x{shape.kernel}, " \
           f"{shape.image} px{grouped}"  # fmt: skip


def _linear(
    shape: LayerShape, rule: rules.LinearRule, batch: int, device: str, triton: bool
) -> Workload:
    layer: Any = shape.module(torch.float32).to(device)
    a = shape.inputs(batch, 1)[0]
    xs = [x.to(device) for x in shape.inputs(batch, rotation(2 * a.nbytes))]
    # as a ReLU above leaves it: 0 where the output is negative, in proportion to it elsewhere
    rs = [torch.rand_like(z).mul_(z) for z in (layer(x).relu_() for x in xs[:2])]
    pairs = [(x, rs[number % 2]) for number, x in enumerate(xs)]
    sample = (xs[0][:1], rs[0][:1])
    linear_map, w, b = shape.map(), layer.weight, layer.bias
    gate = _gate(linear_map, rule, w, b, sample, device)

    def variant(library: str, explain: Callable[[Tensor, Tensor], Tensor], gate: Gate) -> Variant:
        return Variant(
            library,
            in_turn(lambda pair: explain(*pair), pairs),
            lambda: explain(*sample),
            gate,
            batch,
        )

    variants = [variant(GRADIENT, backward(layer), _gradient_gate(linear_map, w, sample))]
    call = LinearCall(linear_map, rule, nonnegative=not shape.pixels)
    for library, name in (
        ("relprop", "aten"),
        *((("relprop triton", "triton"),) if triton else ()),
    ):
        variants.append(variant(library, partial(_backend, name, call, w, b), gate))
    zennit = zennit_rule(shape.module(torch.float32).to(device), rule)
    if zennit is not None:
        variants.append(variant("zennit", zennit, gate))
    naive = partial(_backend, "reference", call, w, b)
    variants.append(variant("naive reference", naive, gate))
    counts = products(rule, nonnegative=not shape.pixels)
    return Workload(variants, lambda: Work([LinearWork(linear_map, xs[0], w, *counts)]), batch)


def _backend(
    name: str, call: LinearCall, w: Tensor, b: Tensor | None, x: Tensor, r: Tensor
) -> Tensor:
    backend = backends.get(name)
    with torch.no_grad():
        _, saved = backend.forward(call, x, w, b)
        return backend.relevance(call, saved, r.unsqueeze(0))[0]


def _gate(
    linear_map: LinearMap,
    rule: rules.LinearRule,
    w: Tensor,
    b: Tensor | None,
    sample: Pair,
    device: str,
) -> Gate:
    x, r = (t.double() for t in sample)
    w, b = w.double(), None if b is None else b.double()

    def exact(size: float = 0.0) -> Tensor:
        weight = perturbed(w, size) if size else w
        return reference.linear_relevance(linear_map, x, weight, b, r, rule)

    return Gate(exact, exact, device)


def _gradient_gate(linear_map: LinearMap, w: Tensor, sample: Pair) -> Gate:
    x, r = (t.double() for t in sample)
    w = w.double()

    def exact(size: float = 0.0) -> Tensor:
        return linear_map.adjoint(r, perturbed(w, size) if size else w, x.shape)

    return Gate(exact, exact)
