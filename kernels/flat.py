"""Flat: relevance spread evenly over the receptive field, without products.

The denominators are counts: an output at position q sees n(q) taps of C / groups channels each, so
s(q) = sum over the group's outputs of R(q) / (n(q) C / groups + epsilon), and a box filter of ones,
the depthwise form of the adjoint, carries s back.
"""

from __future__ import annotations

from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from relprop.graph.maps import Conv, Dense, LinearMap
from relprop.kernels.axes import coordinates, lift, lifted_strides, spot
from relprop.kernels.conv.geometry import axes
from relprop.kernels.conv.launch import propagate
from relprop.kernels.layouts import ordered_empty
from relprop.kernels.operands import AdjointCall, Weight
from relprop.kernels.program import compile_rule
from relprop.kernels.runtime import FUSION, interpreted
from relprop.rules import Flat

__all__ = ["flat_relevance"]


@triton.jit
def flat_dense(r, out, M, N, K, stride_rm, stride_rn, epsilon, BM: tl.constexpr, BN: tl.constexpr):
    """out [M, K]: every row the sum of r [M, N] over its N outputs, divided by K + epsilon."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    row_mask = (rows < M)[:, None]
    total = tl.zeros((BM, BN), tl.float32)
    wide = rows.to(tl.int64)[:, None]
    for first in range(0, N, BN):
        columns = first + tl.arange(0, BN)
        pointers = r + wide * stride_rm + columns.to(tl.int64)[None, :] * stride_rn
        total += tl.load(pointers, mask=row_mask & (columns < N)[None, :], other=0.0)
    share = tl.sum(total, axis=1)[:, None] / (K + epsilon)
    for first in range(0, K, BN):
        columns = first + tl.arange(0, BN)
        value = tl.broadcast_to(share, (BM, BN))
        tl.store(out + wide * K + columns[None, :], value, mask=row_mask & (columns < K)[None, :])


@triton.jit
def seen_taps(q, size, AXES: tl.constexpr, A: tl.constexpr, TRANSPOSED: tl.constexpr):
    """How many taps of one axis meet the input at output coordinate q."""
    count = q * 0
    for tap in range(0, AXES[A][3]):
        if TRANSPOSED:
            spread = q + AXES[A][1] - tap * AXES[A][2]
            source = spread // AXES[A][0]
            hit = (spread >= 0) & (spread % AXES[A][0] == 0) & (source < size)
        else:
            source = q * AXES[A][0] - AXES[A][1] + tap * AXES[A][2]
            hit = (source >= 0) & (source < size)
        count += hit.to(tl.int32)
    return count


@triton.jit
def flat_quotient(
    r,
    s,
    images,
    groups,
    outputs,
    channels,
    source,
    target,
    strides_r,
    epsilon,
    AXES: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """s [images, groups, *target] of r [images, groups * outputs, *target] by strides."""
    index = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    valid = index < tl.cast(images, tl.int64) * groups * target[0] * target[1] * target[2]
    i = coordinates(index, target[1], target[2])
    at = ((i[0] % target[0]).to(tl.int32), i[1].to(tl.int32), i[2].to(tl.int32))
    slot = i[0] // target[0]
    group = slot % groups
    image = slot // groups
    place = image * strides_r[0] + group * outputs * strides_r[1] + spot(at, strides_r)
    total = tl.zeros((BM, BN), tl.float32)
    for first in range(0, outputs, BN):
        columns = first + tl.arange(0, BN)
        pointers = r + place[:, None] + columns.to(tl.int64)[None, :] * strides_r[1]
        total += tl.load(pointers, mask=valid[:, None] & (columns < outputs)[None, :], other=0.0)
    count = seen_taps(at[0], source[0], AXES, 0, TRANSPOSED)
    count *= seen_taps(at[1], source[1], AXES, 1, TRANSPOSED)
    count *= seen_taps(at[2], source[2], AXES, 2, TRANSPOSED)
    count = count.to(tl.float32) * channels
    empty = count == 0
    value = tl.where(empty, 0.0, tl.sum(total, axis=1) / tl.where(empty, 1.0, count + epsilon))
    tl.store(s + index, value, mask=valid)


def flat_relevance(linear_map: LinearMap, rule: Flat, a: Tensor, w: Tensor, r: Tensor) -> Tensor:
    """Relevance of a layer's input under Flat.

    Args:
        linear_map: a `Dense` or a `Conv`.
        rule: Flat with its stabilizer.
        a: the layer's input; only its shape and memory layout are used.
        w: the layer's weight; only its shape is used.
        r: relevance of the output, `[targets, batch, ...]`.

    Returns:
        `[targets, *a.shape]`, float32.
    """
    if isinstance(linear_map, Dense):
        return _dense(rule, a, r)
    assert isinstance(linear_map, Conv)
    conv, targets, images = linear_map, r.shape[0], r.shape[0] * a.shape[0]
    out = ordered_empty((1,), (images, *a.shape[1:]), a)
    if out.numel():
        s = _conv_shares(conv, rule, a, w, r.flatten(0, 1))
        narrow = [conv.groups, w.shape[1]] if not conv.transposed else [w.shape[0], 1]
        ones = a.new_ones((), dtype=torch.float32).expand(1, *narrow, *w.shape[2:])
        weight = Weight(ones, ["one"], torch.float32)
        program = compile_rule(rule)
        propagate(AdjointCall(conv, program, s[None], a, weight, out, None, "highest", None))
    return out[0].unflatten(0, (targets, a.shape[0]))


def _dense(rule: Flat, a: Tensor, r: Tensor) -> Tensor:
    out = a.new_empty((r.shape[0], *a.shape), dtype=torch.float32)
    rows = r.reshape(prod(r.shape[:-1]), r.shape[-1])
    (m, n), k = rows.shape, a.shape[-1]
    if out.numel():
        block = 64 if interpreted() else 4
        flat_dense[(triton.cdiv(m, block),)](
            rows, out, m, n, k, *rows.stride(), rule.epsilon, BM=block, BN=256,
            enable_fp_fusion=FUSION,
        )  # fmt: skip
    return out


def _conv_shares(conv: Conv, rule: Flat, a: Tensor, w: Tensor, r: Tensor) -> Tensor:
    """s `[images, groups, *spatial]`."""
    spatial, groups = conv.spatial, conv.groups
    s = r.new_empty((r.shape[0], groups, *r.shape[2:]), dtype=torch.float32)
    if s.numel() == 0:
        return s
    block = 512 if interpreted() else 64
    flat_quotient[(triton.cdiv(s.numel(), block),)](
        r, s, r.shape[0], groups, r.shape[1] // groups, a.shape[1] // groups,
        lift(a.shape[2:], 1), lift(r.shape[2:], 1), lifted_strides(r, spatial), rule.epsilon,
        AXES=axes(conv, w.shape[2:]), TRANSPOSED=conv.transposed, BM=block, BN=32,
        enable_fp_fusion=FUSION,
    )  # fmt: skip
    return s
