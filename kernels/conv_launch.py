"""Launchers of the convolution kernels: geometry, strides, tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd, prod

import triton
from torch import Tensor

from relprop.kernels import library
from relprop.kernels.conv import conv_adjoint, conv_contraction
from relprop.kernels.modifiers import ACTIVATIONS, ATOMS, BOX_ATOMS
from relprop.kernels.operands import AdjointCall, ContractionCall, LeftBox, Pass
from relprop.kernels.tiles import FUSION, operand_type, remask, terms
from relprop.kernels.tiling import Demand, Tile, direct_tile
from relprop.kernels.tuning import launch
from relprop.maps import Conv

__all__ = ["axes", "contract", "lift", "lifted_strides", "propagate"]

DIRECT_CHANNELS = 8
"""Up to this many contracted channels a group, grouped layers take the depthwise form."""


@dataclass(frozen=True)
class Geometry:
    """One direction of a convolution, lifted to three dimensions.

    Attributes:
        phased: whether the source coordinate divides by the stride (see `conv.py`).
        columns, channels: result and contracted channels of a group.
        weight_strides: of part, group, result channel, contracted channel, three taps.
        source, target: the three extents of the left operand and of the result.
    """

    conv: Conv
    phased: bool
    columns: int
    channels: int
    weight_strides: tuple[int, ...]
    taps: tuple[int, ...]
    source: tuple[int, ...]
    target: tuple[int, ...]

    @property
    def direct(self) -> bool:
        """Whether the depthwise form is used: no matrix product."""
        return self.channels == 1 or (self.conv.groups > 1 and 0 < self.channels <= DIRECT_CHANNELS)

    def even(self, tile: Tile) -> bool:
        """Whether whole blocks of channels are contracted, so that none needs a mask."""
        return not self.direct and self.channels % tile.k == 0 and self.channels > 0

    def rows(self, images: int) -> int:
        """Rows of the tiles of one phase."""
        if not self.phased:
            return images * prod(self.target)
        strides = lift(self.conv.stride, 1)
        return images * prod(
            triton.cdiv(size, step) for size, step in zip(self.target, strides, strict=True)
        )

    def programs(self, images: int, tile: Tile) -> int:
        """Programs of a launch."""
        phases = prod(self.conv.stride) if self.phased else 1
        groups = 1 if self.direct else self.conv.groups
        width = self.columns * (self.conv.groups if self.direct else 1)
        tiles = triton.cdiv(self.rows(images), tile.m) * triton.cdiv(width, tile.n)
        return phases * groups * tiles


def lift(values: Sequence[int], unit: int) -> tuple[int, ...]:
    """Three values for three axes, `unit` for those the layer lacks."""
    return (*(unit,) * (3 - len(values)), *values)


def axes(conv: Conv, taps: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The constexpr description of the three axes (see `conv.phase_taps`)."""
    result = []
    pads = lift([before for before, _ in conv.padding], 0)
    for stride, pad, dilation, count in zip(
        lift(conv.stride, 1), pads, lift(conv.dilation, 1), lift(taps, 1), strict=True
    ):
        common = gcd(stride, dilation)
        step = stride // common
        inverse = pow(dilation // common, -1, step) if step > 1 else 0
        result.append((stride, pad, dilation, count, common, step, inverse))
    return tuple(result)


def _geometry(
    conv: Conv, weight: Tensor, source: Tensor, target: Tensor, adjoint: bool
) -> Geometry:
    """Of one direction, from left operand `[..., channels, *spatial]` to result.

    The weight is `[parts, out, in / groups, *taps]`, transposed `[parts, in, out / groups, *taps]`:
    its first channel axis belongs to the contraction's result unless the layer is transposed.
    """
    spatial = conv.spatial
    groups = conv.groups
    first, second = weight.shape[1] // groups, weight.shape[2]
    part, s0, s1, *tap_strides = weight.stride()
    result_first = adjoint == conv.transposed
    columns, channels = (first, second) if result_first else (second, first)
    strides = (s0, s1) if result_first else (s1, s0)
    return Geometry(
        conv=conv,
        phased=adjoint != conv.transposed,
        columns=columns,
        channels=channels,
        weight_strides=(part, first * s0, *strides, *lift(tap_strides, 0)),
        taps=tuple(weight.shape[3:]),
        source=lift(source.shape[-spatial:], 1),
        target=lift(target.shape[-spatial:], 1),
    )


def lifted_strides(tensor: Tensor, spatial: int) -> tuple[int, ...]:
    """Strides with three spatial axes; unit axes get 0."""
    lead = tensor.stride()[: tensor.dim() - spatial]
    return (*lead, *lift(tensor.stride()[tensor.dim() - spatial :], 0))


def contract(call: ContractionCall) -> None:
    """Launch `conv_contraction` for a `relprop.maps.Conv`; z and y share one layout."""
    conv, program, a = call.map, call.program, call.a
    assert isinstance(conv, Conv)
    target = call.z if call.z is not None else call.y
    assert target is not None
    if target.numel() == 0:
        return
    images, spatial = a.shape[0], conv.spatial
    geometry = _geometry(conv, call.weight.tensor, a, target, adjoint=False)
    products = program.products + (program.completion if call.output else ())
    operand, precision = operand_type(call.weight.source, call.precision)
    boxed = program.box is not None
    box = LeftBox.of(program, a, conv.feature_axis)
    box_strides = lifted_strides(box.tensor, spatial) if boxed else (0,) * 5
    accumulators = 1 + max(p.accumulator for p in products)
    demand = _demand("conv_contraction", geometry, a, images, operand, precision)
    demand = replace(demand, accumulators=accumulators, parts=call.weight.parts)
    if boxed:
        demand = replace(demand, registers=32)
    z_strides = lifted_strides(target, spatial)

    def run(tile: Tile) -> None:
        conv_contraction[(geometry.programs(images, tile),)](
            a, call.weight.tensor, a if call.bias is None else call.bias,
            box.tensor if boxed else a, a if call.z is None else call.z,
            a if call.y is None else call.y, images, conv.groups,
            geometry.columns, geometry.channels, *geometry.source, *geometry.target,
            *lifted_strides(a, spatial), *geometry.weight_strides,
            *box_strides, box.start, box.stop,
            *(z_strides if call.z is not None else (0, *z_strides)), program.gamma,
            WEIGHTS=call.weight.parts, TERMS=terms(products, call.weight.atoms, boxed), BOXED=boxed,
            REMASK=remask(products), BIASED=call.bias is not None,
            BIAS=tuple(ATOMS[b.kind] for b in program.bias), GATED=program.mode == "gamma",
            OUTPUT=call.output, ACTIVATION=ACTIVATIONS[call.activation], SAVE=call.z is not None,
            OPERAND=operand, PRECISION=precision,
            EVEN=geometry.even(tile),
            AXES=axes(conv, geometry.taps), PHASED=geometry.phased, DOT=not geometry.direct,
            BM=tile.m, BN=tile.n, BK=1 if geometry.direct else tile.k, GROUP=tile.group,
            num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=FUSION,
        )  # fmt: skip

    launch(
        demand, call.tile, a, run, library.contraction(call), True,
        f"{_details(geometry, a)} products={len(products)}",
        _direct(geometry, demand),
    )  # fmt: skip


def propagate(call: AdjointCall) -> None:
    """Launch `conv_adjoint`, once for every two input factors of the rule."""
    conv, s, a, out = call.map, call.s, call.a, call.out
    assert isinstance(conv, Conv)
    if out.numel() == 0:
        return
    program, weight, spatial, images = call.program, call.weight, conv.spatial, out.shape[1]
    geometry = _geometry(conv, weight.tensor, s, a, adjoint=True)
    box = LeftBox.of(program, a, conv.feature_axis)
    box_strides = lifted_strides(box.tensor, spatial) if box.boxed else (0,) * 5
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
                *geometry.source, *geometry.target, *lifted_strides(s, spatial),
                *geometry.weight_strides,
                *lifted_strides(a, spatial), *box_strides, box.start, box.stop,
                *lifted_strides(lower, spatial), *lifted_strides(out, spatial),
                program.gamma, *call.lower_numbers(),
                LEFTS=s.shape[0], WEIGHTS=weight.parts,
                TERMS=terms(step.products, weight.atoms, False), STACKED=step.stacked,
                FACTORS=tuple((BOX_ATOMS if box.boxed else ATOMS)[f] for f in step.factors),
                READ=step.reads, BOXED=box.boxed, ADD=step.add, LOWER=step.lower,
                OPERAND=operand, PRECISION=precision,
                EVEN=geometry.even(tile),
                AXES=axes(conv, geometry.taps), PHASED=geometry.phased, DOT=not geometry.direct,
                BM=tile.m, BN=tile.n, BK=1 if geometry.direct else tile.k, GROUP=tile.group,
                num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=FUSION,
            )  # fmt: skip

        launch(
            demand, call.tile, s, run, library.adjoint(call, step), not step.add,
            f"{_details(geometry, s)} products={len(step.products)} lower={step.lower}",
            _direct(geometry, demand),
        )  # fmt: skip


def _demand(
    kernel: str, geometry: Geometry, left: Tensor, images: int, operand: object, precision: str
) -> Demand:
    channels_last = left.stride(-1 - geometry.conv.spatial) == 1
    return Demand(
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
