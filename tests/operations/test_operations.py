"""Every operation that relevance goes through: the ATen path equals the naive reference.

Each registered operation has a row in `CASES`; most functions are captured by recording, which is
quick and keeps the composite operators that torch.export takes apart, the commonest ones again by
export.  Answers that can be worked out by hand are worked out below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

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
from relprop.composites import Composite
from relprop.engine import run
from relprop.engine.plan import Plan
from relprop.errors import PlanningError
from relprop.graph import Graph
from relprop.graph.canonical import canonical
from relprop.operations import registered

aten = torch.ops.aten


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


class Case(NamedTuple):
    """An operation, something that uses it, and the shape of a sample."""

    operation: str
    make: Callable[..., Any] | nn.Module
    shape: tuple[int, ...]


def _weight(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


class Bags(nn.Module):
    """The embedding bag of each sample, of tokens that real numbers are rounded to."""

    def __init__(self, mode: str, weighted: bool = False, **options: Any) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(9, 4, mode=mode, **options)
        self.weighted = weighted

    def forward(self, ids: Tensor) -> Tensor:
        weights = (
            torch.linspace(-1, 1, 5).to(self.bag.weight).expand(ids.shape)
            if self.weighted
            else None
        )
        return self.bag(ids, per_sample_weights=weights)


EDGES = torch.tensor([1, 0, 2, 1, 1])
PICKED, WRITTEN = torch.tensor([[0, 4, 4, 6]]), torch.tensor([[5, 1]])


def put(x: Tensor, y: Tensor) -> Tensor:
    x = x.clone()
    x[:, [0, 2]] = y[:, :2]
    return x


COLUMN, ROW, ONES = _weight(3, 1), _weight(7), torch.ones(3, 7)


WEIGHT = _weight(4, 3)
GRID, GRID_3D = _weight(1, 3, 4, 2).tanh(), _weight(1, 2, 3, 2, 3).tanh()


def _moments(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, 1, keepdim=True, correction=0)
    return x * torch.rsqrt(variance + 1e-5) * mean.sigmoid()


class Scaled(nn.Module):
    """A function that also gets a parameter of the model."""

    def __init__(self, shape: tuple[int, ...], function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(_weight(*shape))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.weight)


# a shift that keeps denominators away from 0, where float32 would lose digits
def _layer_norm(x: Tensor, w: Tensor) -> Tensor:
    return F.layer_norm(x, [5, 7], w, w + 5)


def _group_norm(x: Tensor, w: Tensor) -> Tensor:
    return F.group_norm(x, 2, w, w + 5, eps=1e-3)


def _instance_norm(x: Tensor, w: Tensor) -> Tensor:
    return F.instance_norm(x, weight=w, bias=w + 5)


SEQUENCE, IMAGE, VOLUME = (3, 7), (3, 5, 7), (2, 3, 5, 4)

CASES: dict[str, Case] = {
    # linear layers
    "dense": Case("dense_map", nn.Linear(7, 5), (7,)),
    "dense, time": Case("dense_map", nn.Linear(7, 5, bias=False), SEQUENCE),
    "matmul": Case("dense_map", Scaled((7, 4), lambda x, w: x @ w), SEQUENCE),
    "mm, transposed": Case("dense_map", Scaled((4, 7), lambda x, w: torch.mm(x, w.t())), (7,)),
    "addmm": Case("dense_map", Scaled((5, 7), lambda x, w: torch.addmm(w[0], x, w)), (5,)),
    "product": Case("product_map", Scaled((5, 4, 3), lambda x, w: w @ x[:, None]), SEQUENCE),
    "conv1d": Case("conv_map", nn.Conv1d(3, 4, 3, 2, 1), SEQUENCE),
    "conv2d": Case("conv_map", nn.Conv2d(3, 4, (3, 2), (1, 2), (0, 1), bias=False), IMAGE),
    "conv2d same": Case("conv_map", nn.Conv2d(3, 2, (4, 3), padding="same"), IMAGE),
    "conv2d depthwise": Case("conv_map", nn.Conv2d(3, 6, 3, groups=3, dilation=(1, 2)), IMAGE),
    "conv2d reflect": Case(
        "conv_map", nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"), IMAGE
    ),
    "conv2d circular": Case(
        "conv_map", nn.Conv2d(3, 2, 3, padding=(1, 2), padding_mode="circular"), IMAGE
    ),
    "conv3d": Case("conv_map", nn.Conv3d(2, 3, 2, padding=(1, 0, 1)), VOLUME),
    "transposed1d": Case("conv_transpose_map", nn.ConvTranspose1d(3, 2, 3, 2, 1, 1), SEQUENCE),
    "transposed2d": Case("conv_transpose_map", nn.ConvTranspose2d(3, 4, 2, (3, 2)), IMAGE),
    "transposed3d": Case("conv_transpose_map", nn.ConvTranspose3d(2, 4, 2, 2, groups=2), VOLUME),
    "batch norm": Case("diagonal_map", nn.BatchNorm2d(3), IMAGE),
    "batch norm 1d": Case("diagonal_map", nn.BatchNorm1d(7, affine=False), (7,)),
    "batch norm time": Case("diagonal_map", nn.BatchNorm1d(3), SEQUENCE),
    # normalisation
    "layer norm": Case("layer_norm", Scaled((5, 7), _layer_norm), IMAGE),
    "layer norm, plain": Case("layer_norm", nn.LayerNorm(7, elementwise_affine=False), SEQUENCE),
    "rms norm": Case("rms_norm", Scaled((7,), lambda x, w: F.rms_norm(x, [7], w)), SEQUENCE),
    "group norm": Case("group_norm", Scaled((4,), _group_norm), (4, 5, 3)),
    "instance norm": Case("instance_norm", Scaled((3,), _instance_norm), IMAGE),
    # activations
    "relu": Case("relu", torch.relu, SEQUENCE),
    "relu6": Case("relu6", F.relu6, SEQUENCE),
    "leaky_relu": Case("leaky_relu", F.leaky_relu, SEQUENCE),
    "elu": Case("elu", F.elu, SEQUENCE),
    "selu": Case("selu", F.selu, SEQUENCE),
    "celu": Case("celu", F.celu, SEQUENCE),
    "gelu": Case("gelu", F.gelu, SEQUENCE),
    "silu": Case("silu", F.silu, SEQUENCE),
    "mish": Case("mish", F.mish, SEQUENCE),
    "tanh": Case("tanh", torch.tanh, SEQUENCE),
    "sigmoid": Case("sigmoid", torch.sigmoid, SEQUENCE),
    "log_sigmoid": Case("log_sigmoid", F.logsigmoid, SEQUENCE),
    "softplus": Case("softplus", F.softplus, SEQUENCE),
    "hardsigmoid": Case("hardsigmoid", F.hardsigmoid, SEQUENCE),
    "hardswish": Case("hardswish", F.hardswish, SEQUENCE),
    "hardtanh": Case("hardtanh", F.hardtanh, SEQUENCE),
    "hardshrink": Case("hardshrink", F.hardshrink, SEQUENCE),
    "softshrink": Case("softshrink", F.softshrink, SEQUENCE),
    **{
        f"bag {mode}{note}": Case("bag", Bags(mode, **options), (5,))
        for mode in ("sum", "mean", "max")
        for note, options in {"": {}, ", padded": {"padding_idx": 2}}.items()
    },
    "bag weighted": Case("bag", Bags("sum", weighted=True), (5,)),
    "vector norm": Case(
        "linalg_vector_norm", lambda x: torch.linalg.vector_norm(x, dim=2), SEQUENCE
    ),
    "vector norm, order 3": Case(
        "linalg_vector_norm", lambda x: torch.linalg.vector_norm(x, 3, (1, 2), True), SEQUENCE
    ),
    "vector norm, largest": Case(
        "linalg_vector_norm", lambda x: torch.linalg.vector_norm(x, math.inf, -1), SEQUENCE
    ),
    "norm": Case("norm", lambda x: aten.norm.ScalarOpt_dim(x, 1, [1], False), SEQUENCE),
    "index_add": Case(
        "index_add",
        lambda x: x.flip(2).index_add(1, EDGES, x[:, [2, 0, 1, 1, 2]], alpha=0.5),
        SEQUENCE,
    ),
    "index_add to zeros": Case(
        "index_add",
        lambda x: x.new_zeros(x.shape).index_add(1, EDGES, x[:, [2, 0, 1, 1, 2]]),
        SEQUENCE,
    ),
    "scatter_add": Case(
        "scatter_add",
        lambda x: x.scatter_add(2, PICKED.expand(len(x), 3, 4), x.flip(1)[..., :4]),
        SEQUENCE,
    ),
    "scatter_mean": Case(
        "scatter_mean",
        lambda x: x.scatter_reduce(2, PICKED.expand(len(x), 3, 4), x.flip(1)[..., :4], "mean"),
        SEQUENCE,
    ),
    "scatter_mean alone": Case(
        "scatter_mean",
        lambda x: x.scatter_reduce(
            2, PICKED.expand(len(x), 3, 4), x.flip(1)[..., :4], "mean", include_self=False
        ),
        SEQUENCE,
    ),
    "index_put_add": Case(
        "index_put_add",
        lambda x: x.index_put((torch.zeros(1).long(), EDGES[:2]), x[0, 1], accumulate=True),
        SEQUENCE,
    ),
    "index_put": Case("index_put", lambda x: put(x, x.flip(2)), SEQUENCE),
    "index_copy": Case(
        "index_copy", lambda x: x.index_copy(1, EDGES[1:3], x[:, 1:].flip(2)), SEQUENCE
    ),
    "scatter": Case(
        "scatter",
        lambda x: x.scatter(2, WRITTEN.expand(len(x), 3, 2), x.flip(1)[..., :2]),
        SEQUENCE,
    ),
    "pointwise": Case("pointwise", lambda x: x + torch.sin(x) ** 2, SEQUENCE),
    "threshold": Case("threshold", nn.Threshold(0.1, -2.0), SEQUENCE),
    "rrelu": Case("rrelu", F.rrelu, SEQUENCE),
    "prelu": Case("prelu", nn.PReLU(3), SEQUENCE),
    "prelu kernel": Case(
        "_prelu_kernel", Scaled((3, 1), lambda x, w: aten._prelu_kernel(x, w)), SEQUENCE
    ),
    "clamp": Case("clamp", lambda x: x.clamp(-0.5, 0.5), SEQUENCE),
    "clip": Case("clip", lambda x: x.clip(-0.5, 0.5), SEQUENCE),
    "clamp_min": Case("clamp_min", lambda x: x.clamp_min(0.25), SEQUENCE),
    "clamp_max": Case("clamp_max", lambda x: x.clamp_max(0.25), SEQUENCE),
    "neg": Case("neg", lambda x: -x, SEQUENCE),
    "cast": Case("to", lambda x: x.to(torch.float32), SEQUENCE),
    "cast, canonical": Case("_to_copy", lambda x: aten._to_copy(x, dtype=torch.float32), SEQUENCE),
    # sums and products
    "x + f(x)": Case("add", lambda x: x + x.flip(2).tanh(), SEQUENCE),
    "x + x": Case("add", lambda x: x + x, SEQUENCE),
    "x - x": Case("sub", lambda x: x - x, SEQUENCE),
    "alpha": Case("add", lambda x: torch.add(x, x.flip(2).tanh(), alpha=-0.5), SEQUENCE),
    "sub alpha": Case("sub", lambda x: torch.sub(x, x.flip(2).tanh(), alpha=3), SEQUENCE),
    "add constant": Case("add", lambda x: x + 0.75, SEQUENCE),
    "constant add": Case("add", lambda x: COLUMN + x, SEQUENCE),
    "sub constant": Case("sub", lambda x: x - 0.75, SEQUENCE),
    "rsub": Case("rsub", lambda x: 0.75 - x, SEQUENCE),
    "rsub alpha": Case("rsub", lambda x: torch.rsub(x, x.tanh(), alpha=2), SEQUENCE),
    "add broadcast": Case("add", lambda x: x + x[:, :1], SEQUENCE),
    "add broadcast axes": Case("add", lambda x: x.mean((1, 2), keepdim=True) + x, SEQUENCE),
    "add broadcast sample": Case("add", lambda x: x[:1] + x, SEQUENCE),
    "add fewer axes": Case("add", lambda x: x + x[0, 0], SEQUENCE),
    "mul constant": Case("mul", lambda x: -1.5 * x, SEQUENCE),
    "mul parameter": Case("mul", Scaled((3, 1), lambda x, w: x * w), SEQUENCE),
    "mul parameter, broadcast input": Case(
        "mul", Scaled((4, 3, 7), lambda x, w: x[:, None] * w), SEQUENCE
    ),
    "mul gate": Case("mul", lambda x: x.flip(2).sigmoid() * x, SEQUENCE),
    "mul broadcast gate": Case("mul", lambda x: x * x.mean(2, keepdim=True).sigmoid(), SEQUENCE),
    "mul broadcast signal": Case("mul", lambda x: x[:, :, :1] * x.sigmoid(), SEQUENCE),
    "div": Case("div", lambda x: x / 4, SEQUENCE),
    "div tensor": Case("div", lambda x: x / ROW, SEQUENCE),
    "true_divide": Case("true_divide", lambda x: torch.true_divide(x, -3.0), SEQUENCE),
    "glu": Case("glu", lambda x: F.glu(x, 1), (4, 3)),
    "glu last": Case("glu", F.glu, (3, 4)),
    # movement
    "reshape": Case("reshape", lambda x: x.reshape(-1, 7), SEQUENCE),
    "view": Case("reshape", lambda x: x.view(-1, 7, 3), SEQUENCE),
    "ravel": Case("ravel", lambda x: x.ravel(), SEQUENCE),
    "view_as": Case("view_as", lambda x: x.view_as(x.tanh()), SEQUENCE),
    "reshape_as": Case("reshape_as", lambda x: x.reshape_as(x.mT), SEQUENCE),
    "flatten": Case("flatten", lambda x: x.flatten(1), IMAGE),
    "unflatten": Case("unflatten", lambda x: x.unflatten(1, (2, 2)), (4, 3)),
    "squeeze": Case("squeeze", lambda x: x[:, :1].squeeze(1), SEQUENCE),
    "unsqueeze": Case("unsqueeze", lambda x: x.unsqueeze(-2), SEQUENCE),
    "permute": Case("permute", lambda x: x.permute(2, 0, 3, 1), IMAGE),
    "transpose": Case("transpose", lambda x: x.transpose(-1, 1), IMAGE),
    "swapaxes": Case("swapaxes", lambda x: x.swapaxes(1, 3), IMAGE),
    "swapdims": Case("swapaxes", lambda x: x.swapdims(-1, 1), IMAGE),
    "mT": Case("transpose", lambda x: x.mT, IMAGE),
    "mH": Case("transpose", lambda x: x.mH, SEQUENCE),
    "adjoint": Case("transpose", lambda x: x.adjoint(), SEQUENCE),
    "movedim": Case("movedim", lambda x: x.movedim((1, 2), (3, 0)), IMAGE),
    "moveaxis": Case("movedim", lambda x: x.moveaxis(1, 3), IMAGE),
    "t": Case("t", lambda x: x.t(), (7,)),
    "T": Case("numpy_T", lambda x: x.T, (7,)),
    "expand": Case("expand", lambda x: x[:, None, :1].expand(-1, 4, 5, -1), SEQUENCE),
    "expand_as": Case("expand_as", lambda x: x[:, :1].expand_as(x.tanh()), SEQUENCE),
    "broadcast_to": Case("broadcast_to", lambda x: torch.broadcast_to(x, (2, *x.shape)), SEQUENCE),
    "slice": Case("slice", lambda x: x[:, 1:, ::2], SEQUENCE),
    "slice from the end": Case("slice", lambda x: x[:, -2:, :-1], SEQUENCE),
    "select": Case("select", lambda x: x[:, -1], SEQUENCE),
    "narrow": Case("narrow", lambda x: x.narrow(2, 1, 3), SEQUENCE),
    "diagonal": Case("diagonal", lambda x: x.diagonal(1, 1, 2), SEQUENCE),
    "split": Case("slice", lambda x: torch.add(*[p.tanh() for p in x.split(3, 2)][:2]), (2, 6)),
    "split sizes": Case("slice", lambda x: x.split([2, 5], 2)[1], SEQUENCE),
    "chunk": Case("slice", lambda x: x.chunk(3, 2)[2] + x.chunk(3, 2)[0][..., :1], SEQUENCE),
    "tensor_split": Case("slice", lambda x: x.tensor_split(3, -1)[1], SEQUENCE),
    "unbind": Case("select", lambda x: x.unbind(1)[2] - x.unbind(1)[0], SEQUENCE),
    "cat": Case("cat", lambda x: torch.cat([x, x[:, :1], x], 1), SEQUENCE),
    "cat constant": Case("cat", lambda x: torch.cat([torch.ones_like(x), x], -1), SEQUENCE),
    "concat": Case("concat", lambda x: torch.concat([x.tanh(), x], 2), SEQUENCE),
    "concat of itself": Case("concat", lambda x: torch.concat([x.flip(1), x], 2), SEQUENCE),
    "stack of itself": Case("stack", lambda x: torch.stack([x, x.flip(2)], 1), SEQUENCE),
    "stack": Case("stack", lambda x: torch.stack([x, x.relu(), torch.zeros_like(x)], -1), SEQUENCE),
    "pad": Case("constant_pad_nd", lambda x: F.pad(x, (1, 0, 2, 3)), IMAGE),
    "pad value": Case("constant_pad_nd", lambda x: F.pad(x, (0, 2), value=-1.5), SEQUENCE),
    "crop": Case("constant_pad_nd", lambda x: F.pad(x, (-1, 2, 0, -2)), IMAGE),
    "pad reflect": Case("pad", lambda x: F.pad(x, (2, 1), mode="reflect"), SEQUENCE),
    "pad replicate": Case("pad", lambda x: F.pad(x, (0, 1, 2, 0), mode="replicate"), IMAGE),
    "pad circular": Case("pad", lambda x: F.pad(x, (1, 2, 0, 1), mode="circular"), IMAGE),
    **{
        f"{kind}_pad{n}d": Case(
            f"{kind}_pad{n}d",
            lambda x, n=n, kind=kind: getattr(aten, f"{kind}_pad{n}d")(x, [1, 0] * n),
            (SEQUENCE, IMAGE, VOLUME)[n - 1],
        )
        for kind in ("reflection", "replication")
        for n in (1, 2, 3)
    },
    "where": Case("where", lambda x: torch.where(x > 0.1, x, x.flip(2)), SEQUENCE),
    "where constant": Case("where", lambda x: torch.where(x.flip(2) > 0.1, 2.0, x), SEQUENCE),
    "where broadcast": Case("where", lambda x: torch.where(x > 0, x[:, :1], x), SEQUENCE),
    "where same": Case("where", lambda x: torch.where(x.flip(2) > 0, x, x), SEQUENCE),
    "masked_fill": Case("masked_fill", lambda x: x.masked_fill(x.flip(2) < 0, -9.0), SEQUENCE),
    "masked_fill broadcast": Case(
        "masked_fill", lambda x: x.masked_fill(COLUMN > 0, 1.0), SEQUENCE
    ),
    "assign": Case(
        "slice_scatter", lambda x: aten.slice_scatter(x, x[:, :, :2].tanh(), 2, 1, 5, 2), SEQUENCE
    ),
    "assign one": Case(
        "select_scatter", lambda x: aten.select_scatter(x.tanh(), x[:, 2], 1, -3), SEQUENCE
    ),
    "assign constant": Case(
        "select_scatter", lambda x: aten.select_scatter(x, aten.fill(x[:, 1], 2.0), 1, 1), SEQUENCE
    ),
    "assign to a constant": Case(
        "slice_scatter",
        lambda x: aten.slice_scatter(torch.zeros_like(x), x[:, 1:], 1, 0, 2),
        SEQUENCE,
    ),
    "overwrite": Case("expand_as", lambda x: aten.copy(x.tanh(), x[:, :1]), SEQUENCE),
    "roll": Case("roll", lambda x: x.roll((1, -2), (1, 2)), SEQUENCE),
    "flip": Case("flip", lambda x: x.flip(0, 2), SEQUENCE),
    "fliplr": Case("fliplr", lambda x: x.fliplr(), SEQUENCE),
    "flipud": Case("flipud", lambda x: x.flipud(), SEQUENCE),
    "repeat": Case("repeat", lambda x: x.repeat(2, 1, 3), SEQUENCE),
    "tile": Case("tile", lambda x: x.tile(2, 2), SEQUENCE),
    "repeat_interleave": Case("repeat_interleave", lambda x: x.repeat_interleave(3, 1), SEQUENCE),
    "index": Case("index", lambda x: x[:, [2, 0, 2]], SEQUENCE),
    "index pairs": Case("index", lambda x: x[:, [0, 2, 2], [6, 1, 1]], SEQUENCE),
    "index_select": Case(
        "index_select", lambda x: x.index_select(2, torch.tensor([1, 1, 6])), SEQUENCE
    ),
    "gather": Case("gather", lambda x: x.gather(1, x.argsort(1)[:, :2]), SEQUENCE),
    "take_along_dim": Case(
        "take_along_dim", lambda x: x.take_along_dim(torch.tensor([[[2], [2]]]), 1), SEQUENCE
    ),
    "rot90": Case("rot90", lambda x: x.rot90(1, (1, 2)), SEQUENCE),
    "unfold": Case("unfold", lambda x: x.unfold(2, 3, 2), SEQUENCE),
    "pixel_shuffle": Case("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), (8, 3, 2)),
    "pixel_unshuffle": Case("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), (2, 4, 6)),
    "channel_shuffle": Case("channel_shuffle", lambda x: F.channel_shuffle(x, 2), (6, 3, 2)),
    "native_channel_shuffle": Case(
        "channel_shuffle", lambda x: F.native_channel_shuffle(x, 3), (6, 3, 2)
    ),
    "upsample_nearest1d": Case(
        "upsample_nearest1d", lambda x: F.interpolate(x, scale_factor=2.5), SEQUENCE
    ),
    "upsample_nearest2d": Case(
        "upsample_nearest2d", lambda x: F.interpolate(x, scale_factor=(2, 3)), IMAGE
    ),
    "upsample_nearest3d": Case(
        "upsample_nearest3d", lambda x: F.interpolate(x, size=(4, 7, 3)), VOLUME
    ),
    "nearest-exact 1d": Case(
        "_upsample_nearest_exact1d",
        lambda x: F.interpolate(x, scale_factor=1.6, mode="nearest-exact"),
        SEQUENCE,
    ),
    "nearest-exact 3d": Case(
        "_upsample_nearest_exact3d",
        lambda x: F.interpolate(x, size=(3, 2, 7), mode="nearest-exact"),
        VOLUME,
    ),
    "nearest-exact": Case(
        "_upsample_nearest_exact2d",
        lambda x: F.interpolate(x, size=(7, 3), mode="nearest-exact"),
        IMAGE,
    ),
    # pooling and resampling
    "avg_pool1d": Case("avg_pool1d", nn.AvgPool1d(3, 2, 1), SEQUENCE),
    "avg_pool1d ceil": Case("avg_pool1d", nn.AvgPool1d(2, ceil_mode=True), SEQUENCE),
    "avg_pool2d": Case("avg_pool2d", nn.AvgPool2d((3, 2), 1, 1), IMAGE),
    "avg_pool2d ceil": Case(
        "avg_pool2d", nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), IMAGE
    ),
    "avg_pool2d divisor": Case("avg_pool2d", nn.AvgPool2d(2, divisor_override=3), IMAGE),
    "sum pool": Case("avg_pool2d", nn.AvgPool2d(2, 1, divisor_override=1), IMAGE),
    "avg_pool3d": Case(
        "avg_pool3d", nn.AvgPool3d(2, (1, 2, 1), 1, count_include_pad=False), VOLUME
    ),
    "adaptive_avg_pool1d": Case("adaptive_avg_pool1d", nn.AdaptiveAvgPool1d(3), SEQUENCE),
    "adaptive_avg_pool2d": Case("adaptive_avg_pool2d", nn.AdaptiveAvgPool2d((3, 4)), IMAGE),
    "adaptive_avg_pool2d, canonical": Case(
        "_adaptive_avg_pool2d", lambda x: aten._adaptive_avg_pool2d(x, (3, 4)), IMAGE
    ),
    "adaptive_avg_pool3d": Case("adaptive_avg_pool3d", nn.AdaptiveAvgPool3d((2, 3, 1)), VOLUME),
    "adaptive_avg_pool3d, canonical": Case(
        "_adaptive_avg_pool3d", lambda x: aten._adaptive_avg_pool3d(x, (2, 3, 3)), VOLUME
    ),
    "max_pool1d": Case("max_pool1d", nn.MaxPool1d(3, 2, 1), SEQUENCE),
    "max_pool1d dilation": Case("max_pool1d", nn.MaxPool1d(2, 1, dilation=3), SEQUENCE),
    "max_pool2d": Case("max_pool2d", nn.MaxPool2d(2), IMAGE),
    "max_pool2d overlap": Case("max_pool2d", nn.MaxPool2d(3, 1, 1), IMAGE),
    "max_pool2d ceil": Case("max_pool2d", nn.MaxPool2d((2, 3), ceil_mode=True), IMAGE),
    "max_pool2d dilation": Case("max_pool2d", nn.MaxPool2d(2, 1, 1, dilation=(2, 3)), IMAGE),
    "max_pool2d indices": Case(
        "max_pool2d", lambda x: F.max_pool2d(x, 2, return_indices=True)[0], IMAGE
    ),
    "max_pool3d": Case("max_pool3d", nn.MaxPool3d(2, (1, 2, 1), 1, ceil_mode=True), VOLUME),
    "adaptive_max_pool1d": Case("adaptive_max_pool1d", nn.AdaptiveMaxPool1d(3), SEQUENCE),
    "adaptive_max_pool2d": Case("adaptive_max_pool2d", nn.AdaptiveMaxPool2d((2, 3)), IMAGE),
    "adaptive_max_pool3d": Case("adaptive_max_pool3d", nn.AdaptiveMaxPool3d((2, 2, 3)), VOLUME),
    "amax": Case("amax", lambda x: x.amax((1, 3)), IMAGE),
    "amax keepdim": Case("amax", lambda x: x.amax((2, -1), keepdim=True), IMAGE),
    "amax of everything": Case("amax", lambda x: x.amax(), SEQUENCE),
    "max(dim)": Case("amax", lambda x: x.max(1)[0], SEQUENCE),
    "max(dim) keepdim": Case("amax", lambda x: x.max(-1, keepdim=True).values, SEQUENCE),
    "max of everything": Case("max", lambda x: x.max(), SEQUENCE),
    "mean": Case("mean", lambda x: x.mean((2, 3)), IMAGE),
    "mean keepdim": Case("mean", lambda x: x.mean(-1, keepdim=True), IMAGE),
    "mean of everything": Case("mean", lambda x: x.mean(), SEQUENCE),
    "sum": Case("sum", lambda x: x.sum(1), SEQUENCE),
    "sum first axis": Case("sum", lambda x: x.sum(0), SEQUENCE),
    "sum keepdim": Case("sum", lambda x: x.sum((1, -1), keepdim=True), IMAGE),
    "sum of everything": Case("sum", lambda x: x.sum(), SEQUENCE),
    "linear": Case(
        "upsample_linear1d", lambda x: F.interpolate(x, scale_factor=1.7, mode="linear"), SEQUENCE
    ),
    "bilinear": Case(
        "upsample_bilinear2d", lambda x: F.interpolate(x, size=(7, 4), mode="bilinear"), IMAGE
    ),
    "bilinear corners": Case(
        "upsample_bilinear2d",
        lambda x: F.interpolate(x, scale_factor=2.5, mode="bilinear", align_corners=True),
        IMAGE,
    ),
    "bilinear recomputed": Case(
        "upsample_bilinear2d",
        lambda x: F.interpolate(x, scale_factor=1.3, mode="bilinear", recompute_scale_factor=True),
        IMAGE,
    ),
    "bicubic": Case(
        "upsample_bicubic2d", lambda x: F.interpolate(x, scale_factor=1.6, mode="bicubic"), IMAGE
    ),
    "trilinear": Case(
        "upsample_trilinear3d", lambda x: F.interpolate(x, size=(3, 5, 2), mode="trilinear"), VOLUME
    ),
    "bilinear antialiased": Case(
        "_upsample_bilinear2d_aa",
        lambda x: F.interpolate(x, size=(3, 2), mode="bilinear", antialias=True),
        IMAGE,
    ),
    "bicubic antialiased": Case(
        "_upsample_bicubic2d_aa",
        lambda x: F.interpolate(x, scale_factor=0.6, mode="bicubic", antialias=True),
        IMAGE,
    ),
    "grid sample": Case(
        "grid_sampler",
        lambda x: F.grid_sample(x, GRID.to(x).expand(len(x), -1, -1, -1), align_corners=False),
        IMAGE,
    ),
    "grid sample 3-d": Case(
        "grid_sampler",
        lambda x: F.grid_sample(
            x, GRID_3D.to(x).expand(len(x), -1, -1, -1, -1), "nearest", "border", True
        ),
        VOLUME,
    ),
    "maximum": Case("maximum", lambda x: torch.maximum(x, -x.flip(1)), SEQUENCE),
    "maximum of a constant": Case("maximum", lambda x: torch.max(ROW.to(x), x), SEQUENCE),
    "maximum broadcast": Case("maximum", lambda x: torch.maximum(x[:, :1], x), SEQUENCE),
    "maximum of equals": Case(
        "maximum", lambda x: torch.maximum(x.flip(2), x.flip(2, 1).flip(1)), SEQUENCE
    ),
    "minimum": Case("minimum", lambda x: torch.min(x.tanh(), x.flip(2)), SEQUENCE),
    "im2col": Case("im2col", nn.Unfold(2, dilation=2, padding=1, stride=2), IMAGE),
    "max_unpool2d": Case(
        "max_unpool2d",
        lambda x: F.max_unpool2d(
            *F.max_pool2d(x, 2, return_indices=True), 2, output_size=x.shape[2:]
        ),
        IMAGE,
    ),
    "max_unpool3d": Case(
        "max_unpool3d",
        lambda x: F.max_unpool3d(
            *F.max_pool3d(x, 2, return_indices=True), 2, output_size=x.shape[2:]
        ),
        VOLUME,
    ),
    "hstack": Case("cat", lambda x: torch.hstack([x, 2 * x]), SEQUENCE),
    "vstack": Case("cat", lambda x: torch.vstack([x, 2 * x])[: len(x)], SEQUENCE),
    "dstack": Case("cat", lambda x: torch.dstack([x, 2 * x]), SEQUENCE),
    "lerp": Case("add", lambda x: torch.lerp(x, x.flip(1), 0.3), SEQUENCE),
    "lerp of a gate": Case("add", lambda x: torch.lerp(x, x.flip(1), x.sigmoid()), SEQUENCE),
    "addcmul": Case("add", lambda x: torch.addcmul(x, x.flip(1), ROW.to(x), value=0.7), SEQUENCE),
    "addcdiv": Case("add", lambda x: torch.addcdiv(x, x.flip(1), ROW.to(x)), SEQUENCE),
    "weight on the left": Case("dense_map", lambda x: WEIGHT.to(x) @ x, SEQUENCE),
    "variance and mean": Case("mul", _moments, SEQUENCE),
    "embedding": Case("embedding", nn.Embedding(9, 4), (5,)),
}


def _module(case: Case, dtype: torch.dtype = torch.float64, positive: bool = False) -> nn.Module:
    """A module of its own, with random parameters; `positive`: no two summands cancel."""
    module = Function(case.make) if not isinstance(case.make, nn.Module) else deepcopy(case.make)
    module.to(dtype).eval()
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            random = _weight(*tensor.shape)
            tensor.copy_(random.abs() + 0.1 if positive else random)
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.mul_(0 if positive else 1)
            norm.running_var.abs_().add_(0.5)
    return module


def _input(case: Case, batch: int) -> Tensor:
    if case.operation in ("embedding", "bag"):
        return torch.randint(0, 9, (batch, *case.shape))
    return torch.randn(batch, *case.shape, dtype=torch.float64)


def planned(
    module: nn.Module,
    *inputs: Tensor,
    composite: Composite | None = None,
    graph: Graph | None = None,
    backend: str = "aten",
) -> Plan:
    """The plan of a recorded module."""
    with neutral_modes():
        graph = graph or canonical(record(module, inputs, {}, 0))
    floating = [n for n, x in zip(graph.inputs, inputs, strict=True) if x.is_floating_point()]
    integer = [name for name in graph.inputs if name not in floating]
    return Plan.make(
        graph,
        graph.output_names[0],
        composite or Composite(),
        floating=floating,
        integer=integer,
        backend=backend,
    )


def relevance(
    plan: Plan, module: nn.Module, *inputs: Tensor, start: Tensor | None = None, count: int = 1
) -> tuple[list[Tensor], Tensor]:
    """Relevance of the inputs, `[K, ...]`, for a start `[K, *output]` (random if None)."""
    engine = run.Engine(backends.get(plan.backend))
    values = dict(zip(plan.graph.inputs, inputs, strict=True))
    with neutral_modes():
        passed = run.forward(plan, engine, module, values)
        if start is None:
            start = torch.randn(count, *passed.output.shape, dtype=passed.output.dtype)
        found = run.relevance(plan, engine, passed, start, list(values))
    return [found[name] for name in values if name in found], start


def test_every_operation_has_a_row() -> None:
    apart = ("packed", "recurrent")  # sequences are tested in files of their own
    ours = {
        name
        for name, operation in registered().items()
        if type(operation).__module__.rpartition(".")[2] not in apart
    }
    assert ours == {case.operation for case in CASES.values()}


@pytest.mark.parametrize("name", CASES)
def test_equals_reference(name: str) -> None:
    case = CASES[name]
    module = _module(case)
    for batch in (1, 3):
        x = _input(case, batch)
        plan = planned(module, x)
        assert case.operation in {step.node.op for step in plan.steps.values()}
        oracle = planned(module, x, backend="reference")
        for count in (1, 3):
            (found,), start = relevance(plan, module, x, count=count)
            (expected,), _ = relevance(oracle, module, x, start=start)
            assert found.shape == (count, *x.shape)
            assert_close(found, expected, rtol=1e-9, atol=1e-11 * float(expected.abs().max()))


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if len(c.shape) in (3, 4)])
def test_channels_last_inputs(name: str) -> None:
    case = CASES[name]
    module, x = _module(case), _input(case, 3)
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    plan = planned(module, x)
    (expected,), start = relevance(plan, module, x, count=2)
    y = x.contiguous(memory_format=layout)
    (found,), _ = relevance(planned(module, y), module, y, start=start)
    assert_close(found, expected, rtol=1e-9, atol=1e-12)


# differences cancel: float32 has no digits left there
_CANCELLING = ("x - x", "sub", "rsub", "alpha", "bicubic", "layer norm, plain")


_EXACT_ENOUGH = [
    n
    for n, case in CASES.items()
    if case.operation not in ("embedding", "bag") and not n.startswith(_CANCELLING)
]


@pytest.mark.parametrize("carry", sorted({operation.carry for operation in registered().values()}))
def test_float32_is_near_float64(carry: str) -> None:
    for name in _EXACT_ENOUGH:
        if registered()[CASES[name].operation].carry == carry:
            _check_float32(name, CASES[name])


def _check_float32(name: str, case: Case) -> None:
    x = _input(case, 2).abs() + 0.1
    wide = _module(case, positive=True)
    (expected,), start = relevance(planned(wide, x, backend="reference"), wide, x, count=2)
    x = x.float()
    narrow = _module(case, torch.float32, positive=True)
    (found,), _ = relevance(planned(narrow, x), narrow, x, start=start.float())
    scale = float(expected.abs().max())
    assert_close(
        found.double(), expected.double(), rtol=0, atol=2e-6 * scale,
        msg=lambda text: f"{name}: {text}",
    )  # fmt: skip


def explained(
    function: Callable[..., Any],
    *inputs: Tensor,
    start: Tensor,
    composite: Composite | None = None,
    backend: str = "aten",
) -> list[Tensor]:
    """Relevance of the inputs of a function for one starting relevance."""
    module = Function(function).eval()
    plan = planned(module, *inputs, composite=composite, backend=backend)
    found, _ = relevance(plan, module, *inputs, start=start.unsqueeze(0))
    return [row.squeeze(0) for row in found]


def _double(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


BOTH = pytest.mark.parametrize("backend", ["aten", "reference"])


@BOTH
def test_ties_go_to_the_first_index(backend: str) -> None:
    x = _double([[1, 5, 5, 5, 2], [3, 3, 3, 3, 3]])
    (found,) = explained(lambda x: F.max_pool1d(x, 3, 1), x, start=_double([[1, 10, 100]] * 2),
                         backend=backend)  # fmt: skip
    assert found.tolist() == [[[0, 11, 100, 0, 0], [1, 10, 100, 0, 0]]]
    image = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    (found,) = explained(lambda x: F.max_pool2d(x, 2, 1), image, backend=backend,
                         start=_double([[[1, 2], [3, 4]]]))  # fmt: skip
    assert found.tolist() == [[[[1, 2, 0], [3, 4, 0], [0, 0, 0]]]]
    (found,) = explained(lambda x: x.amax((2, 3)), image, start=_double([7]), backend=backend)
    assert found.flatten().tolist() == [7, 0, 0, 0, 0, 0, 0, 0, 0]
    (found,) = explained(lambda x: F.adaptive_max_pool1d(x, 2), x, backend=backend,
                         start=_double([[1, 2], [4, 8]]))  # fmt: skip
    assert found.tolist() == [[[0, 1, 2, 0, 0], [4, 0, 8, 0, 0]]]
    (found,) = explained(lambda x: x.max(-1).values, x, start=_double([5, 7]), backend=backend)
    assert found.tolist() == [[[0, 5, 0, 0, 0], [7, 0, 0, 0, 0]]]


@BOTH
def test_max_pool_never_gives_to_padding(backend: str) -> None:
    x = -torch.ones(1, 1, 3, dtype=torch.float64)
    (found,) = explained(lambda x: F.max_pool1d(x, 2, 2, 1), x, start=_double([[3, 4]]),
                         backend=backend)  # fmt: skip
    assert found.tolist() == [[[3, 4, 0]]]


@BOTH
def test_average_pool_by_hand(backend: str) -> None:
    x = _double([[1, 3, -2, 6]])  # windows 1 + 3, 3 - 2, -2 + 6; a share is a / (2 st(mean))
    (found,) = explained(lambda x: F.avg_pool1d(x, 2, 1), x, start=_double([[1, 1, 1]]),
                         backend=backend)  # fmt: skip
    e = 1e-6
    first, second, third = 1 / (2 + e), 1 / (0.5 + e), 1 / (2 + e)
    expected = [0.5 * first, 1.5 * (first + second), -1 * (second + third), 3 * third]
    assert_close(found.flatten(), _double(*expected), rtol=1e-14, atol=0)


@BOTH
def test_sums_by_hand(backend: str) -> None:
    x, y = _double([3.0, -1.0]), _double([-1.0, 1.0])
    r = _double([10.0, 10.0])
    found = explained(lambda x, y: torch.sub(x, y, alpha=2), x, y, start=r, backend=backend)
    z = [3 + 2 + 1e-6, -1 - 2 - 1e-6]
    assert_close(found[0], _double([3 / z[0] * 10, -1 / z[1] * 10]), rtol=1e-14, atol=0)
    assert_close(found[1], _double([2 / z[0] * 10, -2 / z[1] * 10]), rtol=1e-14, atol=0)
    found = explained(lambda x, y: x + y, x, y, start=r, backend=backend)
    shares = [_double([3 / (2 + 1e-6) * 10, -1 / 1e-6 * 10]), _double([-10 / (2 + 1e-6), 1e7])]
    assert_close(found, shares, rtol=1e-14, atol=0)  # the sign of a sum of zero is +1
    (found_x,) = explained(lambda x: x - x, x, start=r, backend=backend)
    assert found_x.tolist() == [[0.0, 0.0]]
    (found_x,) = explained(lambda x: x + x, x, start=r, backend=backend)
    assert_close(found_x, _double([60 / (6 + 1e-6), 20 / (2 + 1e-6)]), rtol=1e-14, atol=0)
    (found_x,) = explained(lambda x: 1.0 - x, x, start=r, backend=backend)
    assert_close(found_x, _double([-30 / (-2 - 1e-6), 10 / (2 + 1e-6)]), rtol=1e-14, atol=0)


@BOTH
def test_broadcast_operands_are_summed_after_the_split(backend: str) -> None:
    x, y = _double([1.0, 2.0, 4.0]), _double([3.0])
    r = _double([4.0, 5.0, 14.0])
    found = explained(lambda x, y: x + y, x, y, start=r, backend=backend)
    e = 1e-6
    assert_close(found[0], _double([4 / (4 + e), 10 / (5 + e), 56 / (7 + e)]), rtol=1e-14, atol=0)
    whole = 12 / (4 + e) + 15 / (5 + e) + 42 / (7 + e)
    assert_close(found[1], _double([whole]), rtol=1e-14, atol=0)
    gated = explained(lambda g, x: g.sigmoid() * x, x, y, start=r, backend=backend)
    assert gated[-1].tolist() == [[23.0]]  # the gate gets nothing, the signal the sum


@BOTH
def test_zero_stabilizer_gives_zero_for_empty_sums(backend: str) -> None:
    x = _double([1.0, 0.0])
    composite = relprop.methods.resolve("lrp_zero").composite  # type: ignore[attr-defined]
    found = explained(lambda x: x - 1.0, x, start=_double([3.0, 3.0]), backend=backend,
                      composite=composite)  # fmt: skip
    assert found[0].tolist() == [[0.0, 0.0]]


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "relu6(x + 3) / 6": lambda g: F.relu6(g + 3) / 6,
    "hardtanh(x + 3) / 6": lambda g: F.hardtanh(g + 3, 0.0, 6.0) / 6,
    "clamp(x + 3) / 6": lambda g: (g + 3).clamp(0, 6) / 6,
    "clamp": lambda g: g.clamp(0, 1),
    "softmax": lambda g: g.softmax(-1),
    "softmax of exp": lambda g: (g.exp() + 1).softmax(1),
    "1 - sigmoid": lambda g: 1 - g.sigmoid(),
    "1.0 - softmax": lambda g: 1.0 - g.softmax(1),
    "ones - sigmoid": lambda g: torch.ones_like(g) - g.sigmoid(),
    "1 - (1 - sigmoid)": lambda g: 1 - (1 - g.sigmoid()),
    "view": lambda g: g.sigmoid().view(-1, 3, 4)[:, 0, :].view(-1, 1, 4),
    "expand": lambda g: g[:, :1, :1].sigmoid().expand(-1, 3, 4),
    "slice": lambda g: torch.cat([g, g], 1).sigmoid()[:, 1:4],
    "chunk": lambda g: torch.cat([g, g], 1).sigmoid().chunk(2, 1)[1],
    "cast": lambda g: g.float().sigmoid().double(),
    "permute": lambda g: g.transpose(1, 2).sigmoid().permute(0, 2, 1),
    "unsqueeze": lambda g: g.mean(2).sigmoid().unsqueeze(-1),
    "bool mask": lambda g: g > 0,
    "float mask": lambda g: (g > 0).to(g.dtype),
    "dropout": lambda g: F.dropout(g.sigmoid(), 0.5, False),
    "expit": lambda g: torch.special.expit(g),
    "clip": lambda g: g.clip(0, 1),
    "clip(x + 3) / 6": lambda g: (g + 3).clip(0, 6) / 6,
    "clamped": lambda g: g.sigmoid().clamp(0.1, 0.6),
    "larger of two": lambda g: torch.maximum(g.sigmoid(), 1 - g.sigmoid()),
    "share of a sum": lambda g: g.sigmoid() / g.sigmoid().sum(1, keepdim=True),
    "share of the largest": lambda g: g.sigmoid() / g.sigmoid().amax(2, keepdim=True),
    "masked": lambda g: g.sigmoid().masked_fill(g > 0, 0.25),
    "gathered": lambda g: g.sigmoid().gather(2, torch.tensor([[[0, 3, 1, 1]] * 3] * 2)),
    "resampled": lambda g: F.interpolate(g.sigmoid()[None], size=(3, 4), mode="bicubic")[0],
}


@BOTH
@pytest.mark.parametrize("name", GATES)
def test_signal_takes_all(name: str, backend: str) -> None:
    g, x = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4).double()
    start = torch.randn(2, 3, 4).double()
    gate = GATES[name]
    for product in (lambda g, x: gate(g) * x, lambda g, x: x * gate(g)):
        module = Function(product).eval()
        plan = planned(module, g, x, backend=backend)
        values = dict(zip(plan.graph.inputs, (g, x), strict=True))
        engine = run.Engine(backends.get(backend))
        with neutral_modes():
            passed = run.forward(plan, engine, module, values)
            found = run.relevance(plan, engine, passed, start[None], list(values))
        assert_close(passed.output, product(g, x))
        assert torch.equal(found[plan.graph.inputs[1]][0], start)
        assert not found.get(plan.graph.inputs[0], torch.zeros(1)).any()


def _packed_and_padded(x: Tensor) -> Tensor:
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2]), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)[0]


# these read the gate's tanh or ReLU too, which is no gate
_MORE_THAN_MOVED = ("concat", "stack", "where", "assign", "assign one", "split")
MOVES = {
    **{
        name: case
        for name, case in CASES.items()
        if registered()[case.operation].moves and name not in _MORE_THAN_MOVED
    },
    **{
        name: Case(name, _packed_and_padded, SEQUENCE)
        for name in ("_pack_padded_sequence", "_pad_packed_sequence", "getitem")
    },
}


class Gated(nn.Module):
    """A dense layer of all the input times the input's sigmoid, moved; several side by side."""

    def __init__(self, cases: list[Case], x: Tensor, gate_first: bool) -> None:
        super().__init__()
        self.moves = [_module(case) for case in cases]
        self.weights = [_weight(move(x).numel(), x.numel()).double() for move in self.moves]
        self.gate_first = gate_first

    def gates(self, x: Tensor) -> list[Tensor]:
        return [move(x.sigmoid()) for move in self.moves]

    def product(self, x: Tensor, gates: list[Tensor]) -> Tensor:
        products = []
        for weight, gate in zip(self.weights, gates, strict=True):
            signal = F.linear(x.reshape(1, -1), weight.to(x)).reshape(gate.shape)
            products.append(gate * signal if self.gate_first else signal * gate)
        return torch.cat([product.flatten() for product in products])

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.gates(x))


def _check_held(model: Gated, graph: Graph, x: Tensor) -> None:
    """LRP-0 is the input times the gradient of the product with its gates held fixed."""
    composite = relprop.methods.resolve("lrp_zero").composite  # type: ignore[attr-defined]
    plan = planned(model, x, graph=graph, composite=composite)
    (found,), _ = relevance(plan, model, x, start=model(x).unsqueeze(0))
    held, own = model.gates(x), x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.product(own, held).sum(), own)
    expected = (x * gradient)[None]
    assert_close(found, expected, rtol=1e-11, atol=1e-13 * float(expected.abs().max()))


def test_every_movement_moves_a_gate() -> None:
    moving = {name for name, operation in registered().items() if operation.moves}
    assert moving == {case.operation for case in MOVES.values()}


@pytest.mark.parametrize("name", MOVES)
def test_a_gate_that_moved_is_a_gate(name: str) -> None:
    x = _input(MOVES[name], 2)
    model = Gated([MOVES[name]], x, gate_first=False).eval()
    with neutral_modes():
        graph = canonical(record(model, (x,), {}, 0))
    assert MOVES[name].operation in {node.op for node in graph.nodes.values()}
    _check_held(model, graph, x)


@pytest.mark.parametrize("shape", sorted({case.shape for case in MOVES.values()}), ids=str)
def test_a_gate_that_moved_is_a_gate_in_an_exported_model(shape: tuple[int, ...]) -> None:
    movable = (case for case in MOVES.values() if case.make is not _packed_and_padded)
    cases = [case for case in movable if case.shape == shape]  # torch.export refuses packing
    x = torch.randn(2, *shape, dtype=torch.float64)
    model = Gated(cases, x, gate_first=True).eval()
    with neutral_modes():
        graph = canonical(capture_by_export(model, (x,), {}, 0))
    _check_held(model, graph, x)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x, y: x * y, "neither factor is a gate"),
        (lambda x, y: x * (x + y), "neither factor is a gate"),
        (lambda x, y: x.sigmoid() * y.sigmoid(), "both factors are gates"),
        (lambda x, y: x.softmax(1) * (1 - y.sigmoid()), "both factors are gates"),
        (lambda x, y: x / y, "both operands depend on the input"),
        (lambda x, y: ONES[:2, :3] / x + y, "the input is in the denominator"),
        (lambda x, y: torch.div(x, y, rounding_mode="floor") + y, "it rounds its result"),
        (lambda x, y: x.clamp(min=y), "several of its arguments depend on the input"),
        (lambda x, y: F.linear(x, y), "its weight depends on the input"),
        (lambda x, y: x @ y.T, "both factors depend on an explained input"),
        (lambda x, y: torch.hypot(x, y), "aten.hypot"),
        (lambda x, y: x.cumsum(1) + y, "aten.cumsum"),
        (lambda x, y: x.softmax(1) + y, "aten.softmax"),
    ],
)
def test_what_has_no_rule_is_a_planning_error(function: Callable[..., Any], words: str) -> None:
    x, y = torch.randn(2, 3).double(), torch.randn(2, 3).double()

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Function(function)

        def forward(self, x: Tensor, y: Tensor) -> Any:
            return self.inner(x, y)

    with pytest.raises(PlanningError, match=words) as error:
        planned(Block().eval(), x, y)
    assert "'inner'" in str(error.value)


def test_all_problems_are_named_at_once() -> None:
    x = torch.randn(2, 3).double()
    with pytest.raises(PlanningError, match="3 operations") as error:
        planned(Function(lambda x: (x.cumsum(1) * x).cumprod(1)).eval(), x)
    assert all(f"aten.{op}" in str(error.value) for op in ("cumsum", "mul", "cumprod"))


@BOTH
@pytest.mark.parametrize(
    ("mode", "shares"), [("half", (0.5, 0.5)), ("left", (1, 0)), ("right", (0, 1))]
)
def test_product_rule(mode: str, shares: tuple[float, float], backend: str) -> None:
    composite = Composite(rules=[("mul", rules.Product(mode))])
    x, y = torch.randn(2, 3, 1).double(), torch.randn(2, 1, 4).double()
    start = torch.randn(2, 3, 4).double()
    module = Function(lambda x, y: x * y).eval()
    plan = planned(module, x, y, composite=composite, backend=backend)
    engine, values = run.Engine(backends.get(backend)), dict(zip(plan.graph.inputs, (x, y)))
    with neutral_modes():
        passed = run.forward(plan, engine, module, values)
        found = run.relevance(plan, engine, passed, start[None], list(values))
    expected = [start.sum(2, keepdim=True) * shares[0], start.sum(1, keepdim=True) * shares[1]]
    for name, whole in zip(plan.graph.inputs, expected, strict=True):
        part = found.get(name, torch.zeros_like(whole)[None])
        assert_close(part[0], whole, rtol=1e-12, atol=1e-12)


def test_product_rule_outranks_a_gate() -> None:
    composite = Composite(rules=[("mul", rules.Product("half"))])
    x = torch.randn(2, 3).double()
    start = torch.randn(2, 3).double()
    (found,) = explained(lambda x: x * x.sigmoid(), x, start=start, composite=composite)
    assert_close(found, start)  # both halves meet again in x


@BOTH
def test_integer_inputs_carry_nothing_but_through_embeddings(backend: str) -> None:
    x, n = torch.randn(2, 3).double(), torch.tensor([[1, 0, 2], [2, 2, 1]])
    start = _double([1.0, 2.0, 4.0], [8.0, 16.0, 32.0])
    (found,) = explained(lambda x, n: x * n, x, n, start=start, backend=backend)
    assert torch.equal(found, start)
    (found,) = explained(lambda x, n: x.gather(1, n), x, n, start=start, backend=backend)
    assert found.tolist() == [[2, 1, 4], [0, 32, 24]]
    (found,) = explained(lambda x, n: x + n, x, n, start=start, backend=backend)
    assert_close(found, x / ((x + n) + 1e-6 * torch.where(x + n >= 0, 1, -1)) * start)


def test_a_gate_moved_to_places_that_are_an_input_is_a_gate() -> None:
    x, n = torch.randn(2, 3).double(), torch.tensor([[1, 0, 2], [2, 2, 1]])
    start = torch.randn(2, 3).double()
    found = explained(lambda x, n: x * x.sigmoid().gather(1, n), x, n, start=start)
    assert torch.equal(found[0], start)


@BOTH
def test_embedding_sums_over_its_vector(backend: str) -> None:
    table = torch.randn(5, 3).double()
    ids = torch.tensor([[4, 0], [1, 1]])
    start = torch.randn(2, 2, 3).double()
    (found,) = explained(lambda ids: F.embedding(ids, table), ids, start=start, backend=backend)
    assert_close(found, start.sum(-1))
    (found,) = explained(lambda ids: F.embedding(ids[:, :1], table), ids, start=start[:, :1],
                         backend=backend)  # fmt: skip
    assert_close(found, torch.stack([start[:, 0].sum(-1), torch.zeros(2).double()], 1))


@BOTH
def test_constant_padding_absorbs_and_joins_the_convolution(backend: str) -> None:
    x = _double([[2.0, 4.0]])
    (found,) = explained(lambda x: F.pad(x, (1, 1)), x, start=_double([[1, 2, 4, 8]]),
                         backend=backend)  # fmt: skip
    assert found.tolist() == [[[2.0, 4.0]]]
    convolution = nn.Conv1d(1, 2, 3).double()
    padded = nn.Sequential(nn.ConstantPad1d((2, 1), 0.0), convolution).eval()
    plan = planned(padded, x, backend=backend)
    assert [step.node.op for step in plan.steps.values()] == ["conv_map"]
    other = nn.Sequential(nn.ConstantPad1d((2, 1), 0.5), convolution).eval()
    plan = planned(other, x, backend=backend)
    assert [step.node.op for step in plan.steps.values()] == ["constant_pad_nd", "conv_map"]


class Group(nn.Module):
    """Several functions of one input, side by side, under one dense layer."""

    def __init__(self, makes: list[Any], x: Tensor) -> None:
        super().__init__()
        self.parts = nn.ModuleList([m if isinstance(m, nn.Module) else Function(m) for m in makes])
        size = sum(part(x).flatten(1).shape[1] for part in self.parts)
        self.head = nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([part(x).double().flatten(1) for part in self.parts], 1))


# The batch stays the leading axis in these, as torch.export's symbolic batch wants it.
_MIXES = ("everything", "first axis", "broadcast sample", "fewer axes", "broadcast_to", "rot90",
          "permute", "movedim", "reshape", "flip", "repeat", "tile", "T", "t", "ravel", "rrelu",
          "flipud", "split", "addmm", "x - x")  # fmt: skip


@pytest.mark.parametrize("shape", [SEQUENCE, IMAGE, VOLUME], ids=len)
def test_exported_operations(shape: tuple[int, ...]) -> None:
    names = [
        name
        for name, case in CASES.items()
        if case.shape == shape and not any(name.startswith(m) or m in name for m in _MIXES)
        and "canonical" not in name
    ]  # fmt: skip
    x = torch.randn(3, *shape).double()
    cases = [_module(CASES[name]) for name in names]
    model = Group(cases, x[:1]).double().eval()
    target = torch.tensor([[0, 1, 2], [2, 2, 1], [1, 0, 0]])
    found = relprop.Explainer(model, "lrp_epsilon")(x, target=target)
    assert isinstance(found, Tensor)
    explainer = relprop.Explainer(model, "lrp_epsilon", backend="reference")
    expected = explainer(x, target=target)
    assert isinstance(expected, Tensor) and isinstance(explainer.plan, Plan)
    assert explainer.plan.graph.origin == "export"
    assert_close(found, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
    recorded = planned(model, x)
    start = torch.zeros(3, 3, 3).double()
    output = model(x).detach()
    for sample, row in enumerate(target):
        for k, entry in enumerate(row):
            start[k, sample, entry] = output[sample, entry]
    (third,), _ = relevance(recorded, model, x, start=start)
    assert_close(found, third.movedim(0, 1), rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
