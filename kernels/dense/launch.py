"""Launchers of the dense layers' kernels: rows, strides, tiles."""

from __future__ import annotations

from math import prod

import triton
from torch import Tensor

from relprop.kernels import library
from relprop.kernels.constants import (
    adjoint_constants,
    contraction_constants,
    operand_type,
    tile_constants,
)
from relprop.kernels.dense.products import dense_adjoint, dense_contraction
from relprop.kernels.operands import AdjointCall, ContractionCall, LeftBox, Pass, lower_numbers
from relprop.kernels.tiling import Demand, Tile
from relprop.kernels.tuning import launch

__all__ = ["contract", "propagate"]


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with all axes but the last flattened (a view wherever strides allow it)."""
    return tensor.reshape(prod(tensor.shape[:-1]), tensor.shape[-1])


def contract(call: ContractionCall) -> None:
    """Launch `dense_contraction`; `call.z` and `call.y` are contiguous and receive the result."""
    program, x = call.program, _rows(call.a)
    weight = call.weight
    (m, k), n = x.shape, weight.tensor.shape[1]
    if m * n == 0:
        return
    operand, precision = operand_type(weight.source, call.precision)
    box = LeftBox.of(program, call.a, feature_axis=-1)
    box_rows = box.tensor.reshape(2, prod(box.tensor.shape[1:-1]), k) if box.boxed else x[None]
    accumulators = 1 + max(p.accumulator for p in call.products)
    demand = Demand(
        m, n, k, operand, precision, accumulators, weight.parts, 1, x.element_size(),
        registers=32 if box.boxed else 64 if program.mode == "gamma" else 128,
        kernel="dense_contraction",
    )  # fmt: skip

    def run(tile: Tile) -> None:
        dense_contraction[(_programs(m, n, tile),)](
            x, weight.tensor, call.bias if call.bias is not None else x, box_rows,
            call.z if call.z is not None else x, call.y if call.y is not None else x,
            m, n, k, (0, *x.stride()), weight.tensor.stride(), box_rows.stride(),
            box_rows.shape[1], box.start, box.stop,
            call.z.stride(0) if call.z is not None else 0, n, n, program.gamma,
            **contraction_constants(call), OPERAND=operand, PRECISION=precision,
            EVEN=_even(k, tile), **tile_constants(tile, tile.k),
        )  # fmt: skip

    details = f"products={len(call.products)} columns={x.stride(1)}"
    launch(demand, call.tile, x, run, library.contraction(call), details=details)


def propagate(call: AdjointCall) -> None:
    """Launch `dense_adjoint`, once for every two input factors of the rule."""
    a, s, out = _rows(call.a), _part_rows(call.s), _part_rows(call.out)
    weight, program = call.weight, call.program
    (_, m, k), n = s.shape, a.shape[1]
    if m * n == 0:
        return
    box = LeftBox.of(program, call.a, feature_axis=-1)
    box_rows = box.tensor.reshape(2, prod(box.tensor.shape[1:-1]), n) if box.boxed else a[None]
    lower = a[None]
    if call.lower is not None:
        lower = call.lower.z
        if not call.lower.program.own_input:
            lower = lower[(slice(None), *(slice(0, 1),) * (lower.dim() - 2))]
        lower = lower.reshape(len(lower), -1, n)
    for step in call.passes():
        operand, precision = operand_type(weight.source, call.precision, adjoint=True)
        lefts, parts = (1, 1) if step.stacked else (s.shape[0], weight.parts)
        registers = (128 if step.lower in (None, "input") else 32) // lefts
        demand = Demand(
            m, n, k, operand, precision, len(step.factors), parts, lefts, registers=registers,
            kernel="dense_adjoint", quotients=step.quotients,
        )  # fmt: skip

        def run(
            tile: Tile, step: Pass = step, operand: object = operand, precision: str = precision
        ) -> None:
            dense_adjoint[(_programs(m, n, tile),)](
                s, weight.tensor, a, box_rows, lower, out, m, n, k, max(a.shape[0], 1),
                (*s.stride()[:2], 1), weight.tensor.transpose(1, 2).stride(), a.stride(),
                box_rows.stride(), box_rows.shape[1], box.start, box.stop,
                lower.stride(0), n if lower.shape[1] > 1 else 0, out.stride(0), out.stride(1),
                program.gamma, lower_numbers(call.lower), **adjoint_constants(call, step),
                OPERAND=operand, PRECISION=precision, EVEN=_even(k, tile),
                **tile_constants(tile, tile.k),
            )  # fmt: skip

        details = f"products={len(step.products)} lower={step.lower}"
        launch(demand, call.tile, s, run, library.adjoint(call, step), not step.add, details)


def _part_rows(tensor: Tensor) -> Tensor:
    """Parts `[parts, ..., features]` with the axes between flattened, features side by side."""
    rows = tensor.reshape(tensor.shape[0], prod(tensor.shape[1:-1]), tensor.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def _programs(m: int, n: int, tile: Tile) -> int:
    return triton.cdiv(m, tile.m) * triton.cdiv(n, tile.n)


def _even(k: int, tile: Tile) -> bool:
    """Whether whole blocks are contracted, so that none needs a mask."""
    return k % tile.k == 0 and k > 0
