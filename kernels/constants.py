"""What launches say at compile time: operand types, a rule's terms, the tile."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from relprop.errors import InputError
from relprop.kernels.modifiers import ACTIVATIONS, ATOMS, BOX_ATOMS, ZERO_PRESERVING
from relprop.kernels.operands import AdjointCall, ContractionCall, Pass
from relprop.kernels.program import Product
from relprop.kernels.runtime import FUSION, interpreted
from relprop.kernels.tiling import Tile

__all__ = [
    "adjoint_constants",
    "contraction_constants",
    "epilogue_constants",
    "operand_type",
    "tile_constants",
]


def operand_type(dtype: torch.dtype, precision: str, adjoint: bool = False) -> tuple[Any, str]:
    """The type in which operands enter a product, and `input_precision` for it.

    Args:
        dtype: of the weight.
        precision: "highest", "high" or "medium".
        adjoint: whether the left operand is s, which overflows float16.

    Raises:
        InputError: the type or precision has no kernel.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise InputError(
            f"Triton kernels take float32, bfloat16 or float16 operands, got {dtype}; "
            "use backend='aten' for float64"
        )
    modes = {"highest": "ieee", "high": "tf32x3", "medium": "ieee"}
    if precision not in modes:
        raise InputError(f"precision is {precision!r}; expected one of {sorted(modes)}")
    if interpreted():
        return tl.float32, "ieee"
    if triton.runtime.driver.active.get_current_target().backend != "cuda":
        modes["high"] = "ieee"  # AMD's matrix cores take float32
    if dtype == torch.float16:
        return (tl.float32, modes["high"]) if adjoint else (tl.float16, "ieee")
    if dtype == torch.bfloat16 or precision == "medium":
        return tl.bfloat16, "ieee"
    return tl.float32, modes[precision]


def _terms(products: tuple[Product, ...], atoms: list[str] | None, boxed: bool) -> tuple[Any, ...]:
    """The constexpr form of a program's products.

    Args:
        products: which operands meet in which accumulator.
        atoms: of each weight, applied in registers; None if they are applied in memory already.
        boxed: whether left atoms take the bounds of a box.
    """
    table = BOX_ATOMS if boxed else ATOMS
    return tuple(
        (
            p.accumulator,
            p.left,
            table[p.factor],
            0 if atoms else p.weight,
            ATOMS[atoms[p.weight] if atoms else "identity"],
        )
        for p in products
    )


def _remask(products: tuple[Product, ...]) -> bool:
    """Whether an input atom sends padding's 0 elsewhere, so that it has to be masked again."""
    return any(product.factor not in ZERO_PRESERVING for product in products)


def epilogue_constants(call: ContractionCall) -> dict[str, Any]:
    """Of what follows a contraction: bias, activation, what is written."""
    return {
        "BIASED": call.bias is not None,
        "BIAS": tuple(ATOMS[bias.kind] for bias in call.program.bias),
        "GATED": call.program.mode == "gamma",
        "OUTPUT": call.output,
        "ACTIVATION": ACTIVATIONS[call.activation],
        "SAVE": call.z is not None,
    }


def contraction_constants(call: ContractionCall) -> dict[str, Any]:
    """Of a contraction, but for its operands' type and its tile."""
    boxed = call.program.box is not None
    return {
        "WEIGHTS": call.weight.parts,
        "TERMS": _terms(call.products, call.weight.atoms, boxed),
        "BOXED": boxed,
        "REMASK": _remask(call.products),
        **epilogue_constants(call),
    }


def adjoint_constants(call: AdjointCall, step: Pass) -> dict[str, Any]:
    """Of one launch of an adjoint, but for its operands' type and its tile."""
    boxed = call.program.box is not None
    return {
        "LEFTS": call.s.shape[0],
        "WEIGHTS": call.weight.parts,
        "TERMS": _terms(step.products, call.weight.atoms, False),
        "STACKED": step.stacked,
        "FACTORS": tuple((BOX_ATOMS if boxed else ATOMS)[factor] for factor in step.factors),
        "READ": step.reads,
        "BOXED": boxed,
        "ADD": step.add,
        "LOWER": step.lower,
    }


def tile_constants(tile: Tile, depth: int) -> dict[str, Any]:
    """Of a tile whose blocks contract `depth` numbers at once."""
    return {
        "BM": tile.m,
        "BN": tile.n,
        "BK": depth,
        "GROUP": tile.group,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "enable_fp_fusion": FUSION,
    }
