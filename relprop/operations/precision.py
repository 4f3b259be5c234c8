"""What products are computed in: the precision asked for, the process's settings kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["effective_precision", "float32_products"]


def effective_precision(precision: str, device: torch.device) -> str:
    """The precision that is really used: a CPU knows no TF32, and not every one has bfloat16."""
    if device.type != "cpu" or precision == "highest":
        return precision
    if precision == "medium" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return precision
    return "highest"


@contextmanager
def float32_products(precision: str, device: torch.device) -> Iterator[None]:
    """Float32 products mean float32 (or TF32 where `high` allows it), whatever the process set.

    The settings are the process's own, so they are written only where they differ.
    """
    backend = "cuda" if device.type == "cuda" else "mkldnn"
    wanted = "tf32" if backend == "cuda" and precision == "high" else "ieee"
    changed = {}
    try:
        for product in ("conv", "matmul"):
            if _float32_means(backend, product) != wanted:
                changed[product] = torch._C._get_fp32_precision_getter(backend, product)
                torch._C._set_fp32_precision_setter(backend, product, wanted)
        yield
    finally:
        for product, value in changed.items():
            torch._C._set_fp32_precision_setter(backend, product, value)


def _float32_means(backend: str, product: str) -> str:
    """What a float32 product computes in: torch's setting, or the more general one it defers to."""
    for level in ((backend, product), (backend, "all"), ("generic", "all")):
        value: str = torch._C._get_fp32_precision_getter(*level)
        if value != "none":
            return value
    return "ieee"
