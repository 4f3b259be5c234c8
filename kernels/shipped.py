"""Block sizes for an H100 before anything is measured there.

An untimed starting point: no GPU has run these kernels yet.  The rows follow from what compiles
without spills, with asynchronous products and within shared memory (README.md, "Tiling"); measured
choices take their place.
"""

from __future__ import annotations

from typing import NamedTuple

from relprop.kernels.tiling import Demand, Tile

__all__ = ["H100", "Row", "shipped"]


class Row(NamedTuple):
    """For which products a tile is meant: its kernel, least rows and columns, most accumulators.

    Accumulators count all float32 tiles that a step adds to.
    """

    kernel: str
    rows: int
    columns: int
    accumulators: int
    tile: Tile


H100 = [
    # one or two accumulators in 8 warps: 64 or 128 accumulator registers a thread
    Row("dense_contraction", 128, 128, 2, Tile(128, 128, 64, 8, 3)),
    Row("dense_contraction", 128, 64, 2, Tile(128, 64, 64, 8, 3)),
    Row("dense_contraction", 64, 64, 2, Tile(64, 64, 64, 4, 3)),
    Row("dense_adjoint", 128, 128, 1, Tile(128, 128, 64, 8, 3)),
    Row("dense_adjoint", 128, 64, 1, Tile(128, 64, 64, 8, 3)),
    Row("dense_adjoint", 64, 64, 1, Tile(64, 64, 64, 4, 3)),
    # a convolution's index arithmetic takes registers: 64 columns, room for two programs a core
    Row("conv_contraction", 128, 64, 2, Tile(128, 64, 64, 8, 3)),
    Row("conv_contraction", 128, 32, 2, Tile(128, 32, 64, 4, 3)),
    Row("conv_adjoint", 128, 64, 1, Tile(128, 64, 64, 8, 3)),
    Row("conv_adjoint", 128, 32, 1, Tile(128, 32, 64, 4, 3)),
]
"""Most preferred first."""


def shipped(demand: Demand, tiles: list[Tile]) -> Tile | None:
    """The first row that serves a product of half-precision operands, if `tiles` allows it."""
    for row in H100:
        fits = row.kernel == demand.kernel and demand.m >= row.rows and demand.n >= row.columns
        if fits and demand.accumulators <= row.accumulators and row.tile in tiles:
            return row.tile
    return None
