"""Launchers of the convolution kernels: operands, strides, tiles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from relprop.graph.maps import Conv
from relprop.kernels import library
from relprop.kernels.axes import Strides, lifted_strides, part_strides
from relprop.kernels.constants import (
    adjoint_constants,
    contraction_constants,
    operand_type,
    tile_constants,
)
from relprop.kernels.conv.adjoint import conv_adjoint
from relprop.kernels.conv.contraction import conv_contraction
from relprop.kernels.conv.geometry import Geometry, axes, geometry_of
from relprop.kernels.operands import AdjointCall, ContractionCall, LeftBox, Pass, lower_numbers
from relprop.kernels.tiling import Demand, Tile, direct_tile
from relprop.kernels.tuning import launch

__all__ = ["contract", "propagate"]


def contract(call: ContractionCall) -> None:
    """Launch `conv_contraction` for a `relprop.graph.maps.Conv`; z and y share one layout."""
    conv, program, a = call.map, call.program, call.a
    assert isinstance(conv, Conv)
    target = call.z
    if target is None:
        assert call.y is not None
        target = call.y[None]
    if target.numel() == 0:
        return
    images, spatial = a.shape[0], conv.spatial
    geometry = geometry_of(conv, call.weight.tensor, a, target, adjoint=False)
    operand, precision = operand_type(call.weight.source, call.precision)
    box = LeftBox.of(program, a, conv.feature_axis)
    accumulators = 1 + max(p.accumulator for p in call.products)
    demand = _demand("conv_contraction", geometry, a, images, operand, precision)
    demand = replace(demand, accumulators=accumulators, parts=call.weight.parts)
    if box.boxed:
        demand = replace(demand, registers=32)

    def run(tile: Tile) -> None:
        conv_contraction[(geometry.programs(images, tile),)](
            a, call.weight.tensor, a if call.bias is None else call.bias,
            box.tensor if box.boxed else a, a if call.z is None else call.z,
            a if call.y is None else call.y, images, conv.groups,
            geometry.columns, geometry.channels, geometry.source, geometry.target,
            lifted_strides(a, spatial), *geometry.weight_strides,
            *_box_strides(box, spatial), box.start, box.stop,
            *part_strides(target, spatial), program.gamma, **contraction_constants(call),
            OPERAND=operand, PRECISION=precision, **_constants(geometry, tile),
        )  # fmt: skip

    launch(
        demand, call.tile, a, run, library.contraction(call), True,
        f"{_details(geometry, a)} products={len(call.products)}",
        _direct(geometry, demand),
    )  # fmt: skip


def propagate(call: AdjointCall) -> None:
    """Launch `conv_adjoint`, once for every two input factors of the rule."""
    conv, s, a, out = call.map, call.s, call.a, call.out
    assert isinstance(conv, Conv)
    if out.numel() == 0:
        return
    program, weight, spatial, images = call.program, call.weight, conv.spatial, out.shape[1]
    geometry = geometry_of(conv, weight.tensor, s, a, adjoint=True)
    box = LeftBox.of(program, a, conv.feature_axis)
    lower = call.lower.z if call.lower else out
    for step in call.passes():
        operand, precision = operand_type(weight.source, call.precision, adjoint=True)
        demand = _demand("conv_adjoint", geometry, s, images, operand, precision)
        demand = replace(demand, accumulators=len(step.factors), quotients=step.quotients)
        if step.quotients == 2:
            demand = replace(demand, registers=min(32, demand.registers))
        if box.boxed:
            demand = replace(demand, deepest=32)
        if not step.stacked:
            lefts, registers = s.shape[0], demand.registers // s.shape[0]
            demand = replace(demand, parts=weight.parts, lefts=lefts, registers=registers)

        def run(
            tile: Tile, step: Pass = step, operand: object = operand, precision: str = precision
        ) -> None:
            conv_adjoint[(geometry.programs(images, tile),)](
                s, weight.tensor, a, box.tensor if box.boxed else a, lower, out,
                images, max(a.shape[0], 1), conv.groups, geometry.columns, geometry.channels,
                geometry.source, geometry.target, *part_strides(s, spatial),
                *geometry.weight_strides, lifted_strides(a, spatial),
                *_box_strides(box, spatial), box.start, box.stop,
                *part_strides(lower, spatial), *part_strides(out, spatial),
                program.gamma, lower_numbers(call.lower), **adjoint_constants(call, step),
                OPERAND=operand, PRECISION=precision, **_constants(geometry, tile),
            )  # fmt: skip

        launch(
            demand, call.tile, s, run, library.adjoint(call, step), not step.add,
            f"{_details(geometry, s)} products={len(step.products)} lower={step.lower}",
            _direct(geometry, demand),
        )  # fmt: skip


def _box_strides(box: LeftBox, spatial: int) -> Strides:
    """Of `[2, channels, *spatial]`: every image has the same bounds."""
    if not box.boxed:
        return 0, (0,) * 5
    part, *rest = lifted_strides(box.tensor, spatial)
    return part, (0, *rest)


def _constants(geometry: Geometry, tile: Tile) -> dict[str, Any]:
    """Geometry and tile of a launch."""
    return {
        "EVEN": geometry.even(tile),
        "AXES": axes(geometry.conv, geometry.taps),
        "PHASED": geometry.phased,
        "DOT": not geometry.direct,
        **tile_constants(tile, 1 if geometry.direct else tile.k),
    }


def _demand(
    kernel: str, geometry: Geometry, left: Tensor, images: int, operand: object, precision: str
) -> Demand:
    channels_last = left.stride(-1 - geometry.conv.spatial) == 1
    demand = Demand(
        geometry.rows(images),
        geometry.columns,
        geometry.channels,
        operand,
        precision,
        left_width=left.element_size(),
        registers=64 if channels_last else 16,
        deepest=64 if channels_last else 32,
        kernel=kernel,
    )
    return replace(demand, registers=8) if demand.exact and not channels_last else demand


def _direct(geometry: Geometry, demand: Demand) -> list[Tile] | None:
    """The one tile of the depthwise form."""
    if geometry.direct:
        return [direct_tile(demand.m, geometry.columns * geometry.conv.groups)]
    return None


def _details(geometry: Geometry, left: Tensor) -> str:
    """What the time of a convolution depends on besides the extents of its product."""
    conv, order = geometry.conv, "last" if left.stride(-1 - geometry.conv.spatial) == 1 else "first"
    taps, size = "x".join(map(str, geometry.taps)), "x".join(map(str, geometry.source))
    steps = "x".join(map(str, conv.stride))
    wide = "x".join(map(str, conv.dilation))
    return f"{taps} on {size} by {steps} dilated {wide} groups={conv.groups} channels {order}"
