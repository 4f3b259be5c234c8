"""What the bits of a register mean: the types of PTX, and numbers shorter than float32."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

__all__ = ["BITS", "TYPES", "Array", "decode", "encode", "family", "unsigned"]

Array = np.ndarray[Any, Any]

TYPES: dict[str, Any] = {
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8,
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64,
    "f32": np.float32, "f64": np.float64,
}  # fmt: skip
BITS: dict[int, Any] = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}

FLOATS = ("f32", "f64")
PAIRS = ("s16x2", "u16x2")
HALVES = ("f16", "f16x2", "bf16", "bf16x2")
TF32 = np.uint32(0xFFFFE000)
"""The bits of a float32 that a TF32 product takes."""


@lru_cache
def family(suffix: str) -> str:
    """Which numbers a type's name stands for."""
    if suffix in FLOATS:
        return "float"
    if suffix in HALVES:
        return "half"
    if suffix == "pred":
        return "predicate"
    if suffix in PAIRS:
        return "pair"
    return "integer" if suffix in TYPES else ""


@lru_cache
def unsigned(kind: Any) -> Any:
    """The unsigned integers of a type's size."""
    return BITS[8 * np.dtype(kind).itemsize]


def decode(bits: Array, kind: str) -> Array:
    """Bits of one of the types of a product as float32."""
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind == "f16":
        return bits.astype(np.uint16).view(np.float16).astype(np.float32)
    if kind == "tf32":
        return (bits.astype(np.uint32) & TF32).view(np.float32)
    return bits.view(np.float32)


def encode(values: Array, kind: str) -> Array:
    """Float32 rounded to the nearest number of a type, ties to even; of TF32 away from 0."""
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.astype(np.float32).view(np.uint32)
    if kind == "tf32":
        return (bits.astype(np.uint64) + np.uint64(0x1000)).astype(np.uint32) & TF32
    if kind == "bf16":
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        rounded = (bits.astype(np.uint64) + np.uint64(0x7FFF) + odd) >> np.uint64(16)
        return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)
    return bits
