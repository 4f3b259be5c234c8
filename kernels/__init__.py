"""Triton kernels of the relevance pass: plain tensors in, plain tensors out.

Three passes serve every linear rule (see README.md): `contraction` gives the denominators z,
`quotient` turns relevance into s = R / st(z), `adjoint` gives the relevance of the input.  Nothing
here registers operators, queries a device or reads the environment at import; Triton is imported
when the first name below is used.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "Contraction",
    "Program",
    "Tile",
    "adaptive_average_pool",
    "adaptive_average_pool_relevance",
    "adaptive_max_pool",
    "adaptive_max_pool_relevance",
    "adjoint",
    "average_pool",
    "average_pool_relevance",
    "below",
    "compile_rule",
    "contraction",
    "flat_relevance",
    "interpreted",
    "linear_resample",
    "linear_resample_relevance",
    "max_pool",
    "max_pool_relevance",
    "prepare_weights",
    "quotient",
    "residual_split",
    "residual_sum",
    "runs_on",
]

_HOMES = {
    "Contraction": "layer",
    "Program": "program",
    "Tile": "tiling",
    "adaptive_average_pool": "pool.average",
    "adaptive_average_pool_relevance": "pool.average",
    "adaptive_max_pool": "pool.maximum",
    "adaptive_max_pool_relevance": "pool.maximum",
    "adjoint": "layer",
    "average_pool": "pool.average",
    "average_pool_relevance": "pool.average",
    "below": "layer",
    "compile_rule": "program",
    "contraction": "layer",
    "flat_relevance": "flat",
    "interpreted": "runtime",
    "linear_resample": "pool.resample",
    "linear_resample_relevance": "pool.resample",
    "max_pool": "pool.maximum",
    "max_pool_relevance": "pool.maximum",
    "prepare_weights": "weights",
    "quotient": "layer",
    "residual_split": "residual",
    "residual_sum": "residual",
    "runs_on": "runtime",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
